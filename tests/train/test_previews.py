"""Sample sheets."""

from dataclasses import replace
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from janus_jax import Janus
from janus_jax.config import DEBUG
from tests import debug_model
from tests.processing.fakes import emoji_like
from tests.train.data.records.sets import generation, picture, understanding, write_set
from train import previews
from train.init import Origin

ORIGIN = Origin(DEBUG, emoji_like(), debug_model.processor(DEBUG))


def test_a_grid_literally():
    black, grey = np.zeros((2, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 100, np.uint8)
    sheet = np.asarray(previews.grid([black, grey], scale=1, margin=1))
    o, w = 0, 255
    want = [
        [o, o, w, o, o, w],
        [o, o, w, o, o, w],
        [w, w, w, w, w, w],
        [100, 100, w, w, w, w],
        [100, 100, w, w, w, w],
        [w, w, w, w, w, w],
    ]
    assert sheet[..., 0].tolist() == want
    assert previews.grid([black], scale=3).size == (24, 12)


def test_the_tokenizer_shows_reconstructions_with_one_program_for_all_sheets(model, tmp_path):
    params = nnx.State({"vq": nnx.split(model)[1]["vq"]})
    program: Any = previews._reconstruct
    compiled = program._cache_size()
    for step in (1, 2):
        previews.save_preview(params, ORIGIN, tmp_path / "previews" / str(step))
    assert program._cache_size() == compiled + 1
    first, second = (np.asarray(Image.open(tmp_path / "previews" / f"{k}.png")) for k in (1, 2))
    assert first.shape == (4 * 18 * 2, 16 * 18 * 2, 3)
    np.testing.assert_array_equal(first, second)


def test_siglip_alone_shows_nothing(tmp_path):
    assert previews.save_preview(nnx.State({}), ORIGIN, tmp_path / "1") == (None, {})
    assert list(tmp_path.iterdir()) == []


def test_answers_are_those_of_a_chat(debug_model, tmp_path):
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    questions = {
        "train": [previews.Question((pictures[0],), "What is this?", "red | a\nsquare")],
        "heldout": [
            previews.Question((pictures[1],), "What is it?", "a blue square"),
            previews.Question((b"no picture",), "And this?", "nothing"),
        ],
    }
    examples = previews.Examples({}, None, questions)
    path = tmp_path / "previews" / "0000003"
    assert debug_model.config == DEBUG
    origin = Origin(DEBUG, debug_model.tokenizer, debug_model.processor)
    sheet, texts = previews.save_preview(debug_model.params, origin, path, examples)
    # There is nothing to draw.
    assert sheet is None and [p.name for p in path.parent.iterdir()] == ["0000003.md"]
    model = Janus(debug_model)
    asked = [found[0] for found in questions.values()]
    want = [
        model.chat(q.text, images=list(q.images), max_tokens=previews.ANSWER_TOKENS) for q in asked
    ]
    assert want[0] != want[1] and all(want)
    assert texts["train answers"] == [f"{want[0]} (What is this? red | a\nsquare)"]
    first, second = texts["heldout answers"]
    assert first == f"{want[1]} (What is it? a blue square)"
    assert second.startswith("[not answered: question 2: ")
    rows = path.with_suffix(".md").read_text().splitlines()
    assert rows[:2] == [
        "| split | question | true answer | the model's answer |",
        "|---|---|---|---|",
    ]
    assert rows[2].startswith("| train | What is this? | red \\| a square | ")
    assert len(rows) == 5 and max(map(len, rows)) < 400


def test_long_texts_are_cut_in_the_table():
    assert previews._cell("x" * 300) == "x" * 199 + "…"


def test_records_that_training_passes_over_are_no_examples(tmp_path, debug_model):
    origin = Origin(DEBUG, debug_model.tokenizer, debug_model.processor)
    size, most = DEBUG.num_image_tokens, DEBUG.vq.codebook_size
    codes = np.arange(size, dtype=np.int32)
    records = [
        replace(generation(0), codes=codes[:-1]),
        replace(generation(1), codes=codes + most),
        replace(generation(2), codes=None),
        *(replace(generation(i), codes=codes) for i in range(3, 6)),
        ("understanding", b"not a record"),
        *(understanding(i, images=(picture(i),)) for i in range(2)),
    ]
    folder = write_set(tmp_path / "set", records)
    found = previews.find_examples(origin, {"train": [str(folder)], "heldout": []})
    assert found is not None and found.captions == {"train": [f"a heart {i}" for i in range(3, 6)]}
    assert found.codes is not None and found.codes.tolist() == [codes.tolist()] * 3
    assert [q.answer for q in found.questions["train"]] == ["a red 0", "a red 1"]
    nothing = write_set(tmp_path / "nothing", records[:3])
    assert previews.find_examples(origin, {"train": [str(nothing)]}) is None
