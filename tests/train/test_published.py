"""The published recipes, number by number, as the papers print them."""

import re

import pytest

from train.described import description
from train.presets import PRESETS
from train.published import PUBLISHED

ADAPTORS = {"aligner", "gen_aligner", "image_head", "gen_embed"}

# Learning rate, warm-up, steps, batch, understanding : text : generation, weight decay.
TABLES = {
    # arXiv 2501.17811, table 2; stage 2 is planned for 360,000 steps and stopped at 270,000.
    "janus-pro-1b-stage1": (1e-3, 600, 20_000, 256, (1, 0, 3), 0.0),
    "janus-pro-1b-stage2": (1e-4, 5000, 270_000, 512, (2, 3, 5), 0.0),
    "janus-pro-1b-stage3": (4e-5, 0, 80_000, 128, (5, 1, 4), 0.0),
    "janus-pro-7b-stage1": (1e-3, 600, 20_000, 256, (1, 0, 3), 0.0),
    "janus-pro-7b-stage2": (1e-4, 5000, 270_000, 512, (2, 3, 5), 0.0),
    "janus-pro-7b-stage3": (4e-5, 0, 40_000, 128, (5, 1, 4), 0.0),
    # arXiv 2410.13848, table 1.
    "janus-1.3b-stage1": (1e-3, 300, 10_000, 256, (1, 0, 1), 0.0),
    "janus-1.3b-stage2": (1e-4, 5000, 180_000, 512, (2, 3, 5), 0.0),
    "janus-1.3b-stage3": (2e-5, 0, 24_000, 256, (7, 3, 10), 0.1),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_preset_is_its_column_of_the_table(name):
    rate, warmup, steps, rows, mixture, decay = TABLES[name]
    preset = PRESETS[name]
    optimizer = preset.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (rate, warmup)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.95, decay)
    assert (optimizer.clip_norm, optimizer.schedule) == (1.0, "constant")
    assert (preset.steps, preset.rows, preset.length) == (steps, rows, 4096)
    kinds = preset.mixture
    assert (kinds.understanding, kinds.text, kinds.generation) == mixture
    # Samples of a step are as many as fill its rows, at exactly this ratio.
    assert preset.batch_size == 0
    assert preset.samples() == dict(
        zip(("understanding", "text", "generation"), mixture, strict=True)
    )
    assert preset.rows % preset.accumulate == 0


@pytest.mark.parametrize("name", TABLES)
def test_the_help_of_a_preset_is_its_command_and_what_it_needs(name):
    text = description(name)
    data = " ".join(PRESETS[name].data)
    assert f"\njanus-jax train {name} --data {data}\n" in text
    assert re.search(r"Hardware: a v5[ep]:\S+ slice \(\d+ chips of \d+ GB\)", text)
    assert re.search(r"\d GB a\schip\s\((compiled|estimated)\)", text)
    assert "`" not in text  # names of the command line, not of the code


def test_what_trains_grows_from_stage_to_stage():
    for preset in PUBLISHED:
        stage = int(preset.name[-1])
        assert set(preset.trainable) == ADAPTORS.union(["llm", "vision"][: stage - 1])


def test_every_stage_starts_from_the_one_before():
    for preset in PUBLISHED:
        stage = int(preset.name[-1])
        before = preset.name[:-1] + str(stage - 1)
        sources = preset.initial_runs()
        if stage == 1:
            assert sources == dict.fromkeys(("llm", "vision", "vq"), "pretrained")
        else:
            assert sources == dict.fromkeys((*ADAPTORS, "llm", "vision", "vq"), before)
            assert before in PRESETS


def test_the_original_recipe_has_imagenet_in_two_thirds_of_its_pictures():
    assert PRESETS["janus-1.3b-stage2"].data[2:] == ("data/imagenet:2", "data/pictures")
