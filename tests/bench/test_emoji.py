import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bench import emoji as script
from bench.emoji_evaluate import Drawings, Selection, World, evaluate
from bench.emoji_model import answer, draw, reconstruct
from janus_jax import Janus, functional
from janus_jax.config import get_config
from janus_jax.processing import EMOJI_PROCESSOR, ImageSettings, ProcessorConfig
from train.data.emoji import load_emoji
from train.data.samples import emoji_tokenizer
from train.data.split import concept_of

KEYS = {
    "caption_exact_train": True,
    "caption_exact_heldout": True,
    "role_heldout": True,
    "gender_heldout": True,
    "tone_heldout": True,
    "top5_train": True,
    "top5_heldout": True,
    "top5_shuffled": True,
    "vq_psnr_db": False,
}
"""The keys others rely on, and whether there is a chance level."""


@pytest.fixture(scope="module")
def model() -> Janus:
    config = get_config("debug")
    graphdef, params = functional.build(config)
    image = ImageSettings(image_size=config.image_size)
    loaded = SimpleNamespace(
        name="debug",
        config=config,
        graphdef=graphdef,
        params=params,
        tokenizer=emoji_tokenizer(config.llm.vocab_size),
        processor=ProcessorConfig(image, EMOJI_PROCESSOR.roles, EMOJI_PROCESSOR.system_prompt),
        fingerprint="random",
    )
    return Janus(loaded)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world() -> World:
    return World(get_config("debug").image_size)


def some(split: str, count: int) -> list:
    records = [e for e in load_emoji() if e.split == split]
    return records[:: len(records) // count][:count]


@pytest.fixture(scope="module")
def scores(model: Janus, tmp_path_factory: pytest.TempPathFactory) -> dict:
    train = some("train", 6)
    selection = Selection(train, train[:4], some("heldout", 6), some("concept", 3))
    path = tmp_path_factory.mktemp("bench") / "gallery.png"
    return evaluate(model, selection, seeds=2, gallery=path)


def test_the_promised_keys_are_numbers_with_chance_levels(scores: dict):
    assert json.loads(json.dumps(scores)) == scores
    for key, has_chance in KEYS.items():
        assert isinstance(scores[key], float), key
        assert (f"{key}_chance" in scores) == has_chance, key
    assert Path(scores["gallery"]).is_file()
    assert scores["top5_heldout_chance"] == 5 / 3941
    assert scores["caption_exact_train_chance"] == pytest.approx(1 / 3546)


def test_scores_are_in_range_and_random_weights_know_nothing(scores: dict):
    for key, value in scores.items():
        if isinstance(value, float) and key.startswith(
            ("caption", "role", "gender", "tone", "top")
        ):
            assert 0 <= value <= 1, key
    assert scores["caption_exact_train"] == scores["caption_exact_heldout"] == 0
    assert scores["n_questions_heldout"] > 6
    assert len(scores["top5_heldout_by_seed"]) == 2


def test_answers_do_not_depend_on_the_batch(model: Janus, world: World):
    # Questions of different length, so rows are padded differently.
    questions = ["What is this?", "Is it food?", "是动物吗？"]
    pictures = world.of(some("train", 3))
    together = answer(model, questions, pictures)
    alone = [answer(model, [q], p[None])[0] for q, p in zip(questions, pictures, strict=True)]
    assert together == alone


def test_answers_are_those_of_chat(model: Janus, world: World):
    picture = world.of(some("train", 1))
    chat = model.chat("What is this?", [Image.fromarray(picture[0])], max_tokens=32)
    assert answer(model, ["What is this?"], picture) == [chat]


def test_drawings_are_those_of_the_library_and_differ_by_seed(model: Janus):
    prompts = ["red heart", "man running"]
    drawn = draw(model, prompts, seed=3, cfg=5.0, temperature=1.0)
    library = model.generate_images(prompts[1:], seed=3)[0][0]
    assert (drawn[1] == np.asarray(library)).all()
    assert (draw(model, prompts, seed=4, cfg=5.0, temperature=1.0) != drawn).any()


def test_reconstruction_keeps_the_order_beyond_one_batch(model: Janus, world: World):
    pictures = world.of(some("train", 17))
    whole = reconstruct(model, pictures)
    assert whole.shape == pictures.shape
    assert (reconstruct(model, pictures[16:]) == whole[16:]).all()


def test_true_pictures_rank_first_and_shuffled_ones_do_not(world: World):
    records = [e for e in load_emoji() if e.split == "heldout"]
    drawings = Drawings(records, world.of(records), world)
    assert (drawings.ranks() == 1).all()
    assert drawings.closer_than_training().all()
    copied = world.pictures[world.nearest_training(drawings.errors)]
    assert not Drawings(records, copied, world).closer_than_training().any()
    shuffled = drawings.ranks(world.derangement(records))
    assert (shuffled > 5).mean() > 0.98


def test_the_control_leaves_the_family_and_the_picture(world: World):
    records = [e for e in load_emoji() if e.split != "concept"]
    mapped = world.derangement(records)
    looks = world.looks[world.indices(records)]
    for i, j in enumerate(mapped):
        one, other = records[i], records[j]
        assert concept_of(one.name, one.kind) != concept_of(other.name, other.kind)
        assert looks[i] != looks[j]


def test_silhouettes_share_their_rank(world: World):
    # The gendered families are one picture with many names: each is found first.
    silhouettes = [e for e in load_emoji() if e.name.startswith("family: ")]
    drawings = Drawings(silhouettes, world.of(silhouettes), world)
    assert (drawings.ranks() == 1).all()
    assert len(set(world.looks[drawings.true].tolist())) < len(silhouettes)


def test_everything_is_selected_by_default():
    full = Selection.full()
    assert [len(r) for r in (full.train, full.drawn, full.heldout, full.concept)] == [
        3546,
        3546,
        210,
        185,
    ]
    assert len(Selection.full(train_samples=100).drawn) == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds 0"),
        (["--train-samples", "0"], "--train-samples 0"),
        (["--gallery", "gallery.jpg"], "--gallery 'gallery.jpg'"),
        (["--model", "nonsense"], "nonsense"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], message: str, capsys):
    assert script.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_the_table_has_every_score(scores: dict, capsys):
    script.print_table(scores)
    shown = capsys.readouterr().out
    assert all(key in shown for key in scores if not key.endswith("_chance"))
