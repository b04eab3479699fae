"""What a run may be, and the ratios of the published recipe."""

import dataclasses

import pytest

from janus_jax.errors import InputError
from train.config import PARTS, Mixture, OptimizerConfig
from train.presets import EMOJI_RECIPE, PRESETS


def test_stages_freeze_and_mix_as_published():
    """Report, table 2, and section 2.2: the tokenizer is never trained."""
    adaptors = {"aligner", "gen_aligner", "image_head", "gen_embed"}
    stages = [PRESETS[f"emoji-stage{k}"] for k in (1, 2, 3)]
    assert [set(s.trainable) for s in stages] == [
        adaptors,
        adaptors | {"llm"},
        adaptors | {"llm", "vision"},
    ]
    assert [dataclasses.astuple(s.mixture) for s in stages] == [(1, 0, 3), (2, 3, 5), (5, 1, 4)]
    for stage in stages:
        assert (stage.optimizer.b1, stage.optimizer.b2) == (0.9, 0.95)
        assert (stage.optimizer.weight_decay, stage.optimizer.clip_norm) == (0.0, 1.0)


def test_every_part_of_a_later_run_was_made_by_an_earlier_one():
    made: dict[str, set[str]] = {}
    for run in EMOJI_RECIPE:
        for part, source in run.initial_runs().items():
            assert part in made[source], (run.name, part)
        made[run.name] = {*run.trainable, *run.initial_runs()}
    assert made[EMOJI_RECIPE[-1].name] == set(PARTS)


def test_batches_hold_exactly_the_mixture():
    config = dataclasses.replace(PRESETS["emoji-stage2"], batch_size=30)
    assert config.samples() == {"understanding": 6, "text": 9, "generation": 15}


@pytest.mark.parametrize(
    ("preset", "changes", "named"),
    [
        ("emoji-stage2", {"batch_size": 31}, "--batch-size 31"),
        ("emoji-stage2", {"mixture": Mixture()}, "--batch-size"),
        ("finetune", {"mixture": Mixture(text=1)}, "--mixture"),
        ("emoji-stage2", {"trainable": ()}, "--trainable"),
        ("emoji-stage2", {"trainable": ("llm", "vq")}, "--trainable llm vq"),
        ("emoji-vq", {"trainable": ("llm",)}, "--trainable llm"),
        ("emoji-vq", {"init": ("llm=emoji-llm",)}, "--init llm=emoji-llm"),
        ("emoji-stage1", {"init": ("vq",)}, "--init vq"),
        ("emoji-stage1", {"init": ("vq=a", "vq=b")}, "--init vq=b"),
        ("emoji-vq", {"steps": 0}, "--steps 0"),
        ("emoji-vq", {"log_every": 0}, "--log-every 0"),
        ("emoji-vq", {"preview_every": -1}, "--preview-every -1"),
        ("emoji-vq", {"shift_pixels": -1}, "--shift-pixels -1"),
        ("emoji-stage1", {"caption_drop": 1.5}, "--caption-drop 1.5"),
        ("emoji-vq", {"optimizer": OptimizerConfig(learning_rate=-1)}, "--optimizer.learning-rate"),
        ("emoji-vq", {"optimizer": OptimizerConfig(clip_norm=0)}, "--optimizer.clip-norm 0"),
        ("emoji-vq", {"optimizer": OptimizerConfig(warmup_steps=-1)}, "--optimizer.warmup-steps"),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_flag(preset, changes, named):
    with pytest.raises(InputError) as error:
        dataclasses.replace(PRESETS[preset], **changes)
    assert named in str(error.value)
    assert error.value.allowed
