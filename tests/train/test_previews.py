"""Sample sheets."""

from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from janus_jax.config import DEBUG
from train import previews


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
        previews.save_preview(params, DEBUG, tmp_path / "previews" / f"{step}.png")
    assert program._cache_size() == compiled + 1
    first, second = (np.asarray(Image.open(tmp_path / "previews" / f"{k}.png")) for k in (1, 2))
    assert first.shape == (4 * 18 * 2, 16 * 18 * 2, 3)
    np.testing.assert_array_equal(first, second)


def test_siglip_alone_shows_nothing(tmp_path):
    previews.save_preview(nnx.State({}), DEBUG, tmp_path / "1.png")
    assert list(tmp_path.iterdir()) == []
