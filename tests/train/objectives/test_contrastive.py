"""The sigmoid loss on two pictures and two names, and the text tower's blindness to padding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from janus_jax.config import DEBUG
from train.objectives import contrastive
from train.objectives.contrastive import TextTower

SCALE, BIAS = 3.0, -1.0


class Toy:
    """Towers that return given vectors in the place of pictures and names."""

    def __init__(self, images, texts):
        self.images, self.texts = jnp.asarray(images), jnp.asarray(texts)
        self.log_scale, self.bias = jnp.log(jnp.array(SCALE)), jnp.array(BIAS)
        self.text_tower = self

    def vision(self, pixels):
        assert float(pixels.min()) >= -1 and float(pixels.max()) <= 1
        return pixels

    def image(self, features):
        return self.images

    def __call__(self, tokens, mask):
        return self.texts


def loss(images, texts, picture) -> tuple[float, float]:
    n = len(picture)
    pixels = np.random.default_rng(0).integers(0, 256, (n, 2, 2, 3), np.uint8)
    batch = {"pixels": pixels, "tokens": None, "mask": None, "picture": np.array(picture)}
    toy: Any = Toy(images, texts)
    value, metrics = contrastive.loss(toy, batch)
    return float(value), float(metrics["retrieval"])


def softplus(x: float) -> float:
    return np.log1p(np.exp(x))


def test_two_pictures_and_two_names_by_hand():
    value, retrieval = loss([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]], [0, 1])
    # Logits 3 s - 1 of the similarities 1, 0.6; 0, 0.8. Matches are on the diagonal.
    match = softplus(-(3 * 1.0 - 1)) + softplus(-(3 * 0.8 - 1))
    others = softplus(3 * 0.6 - 1) + softplus(3 * 0.0 - 1)
    assert value == pytest.approx((match + others) / 2, rel=1e-6)
    assert retrieval == 1.0


def test_pictures_that_look_the_same_match_each_other_s_names():
    vectors = [[1.0, 0.0], [1.0, 0.0]]
    value, retrieval = loss(vectors, vectors, [7, 7])
    assert value == pytest.approx(4 * softplus(-2.0) / 2, rel=1e-6)
    assert retrieval == 1.0
    other, _ = loss(vectors, vectors, [7, 8])
    assert other == pytest.approx((2 * softplus(-2.0) + 2 * softplus(2.0)) / 2, rel=1e-6)


def test_retrieval_counts_nearest_names_that_are_right():
    swapped = [[0.0, 1.0], [1.0, 0.0]]
    assert loss([[1.0, 0.0], [0.0, 1.0]], swapped, [0, 1])[1] == 0.0


def test_padding_does_not_reach_the_text_vector():
    tower = TextTower(DEBUG, nnx.Rngs(0))
    run = jax.jit(lambda tokens, mask: tower(tokens, mask))
    mask = np.array([[False, False, True, True, True]])
    a = run(np.array([[7, 8, 1, 2, 3]]), mask)
    b = run(np.array([[9, 4, 1, 2, 3]]), mask)
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(a), 1, atol=1e-5)
    c = run(np.array([[9, 4, 1, 2, 5]]), mask)
    assert abs(np.asarray(c - a)).max() > 1e-3
