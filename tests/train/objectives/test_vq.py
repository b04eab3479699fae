"""The tokenizer's losses on a two-line tokenizer whose numbers can be worked out by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.vq import l2_normalize
from train.config import VQLossConfig
from train.objectives import vq

OFF = VQLossConfig(codebook=0, commitment=0, entropy=0, l1=0, edges=0)


class Toy:
    """A tokenizer of 2 x 2 pictures, one code a pixel: latents are the first two channels."""

    def __init__(self, codebook):
        self.codebook = jnp.asarray(codebook, jnp.float32)

    def latents(self, pixels):
        return l2_normalize(pixels[..., :2])

    def codes(self):
        return l2_normalize(self.codebook)

    def quantize(self, latents):
        flat = latents.reshape(latents.shape[0], -1, 2)
        return jnp.argmax(flat @ self.codes().T, -1)

    def decode_latents(self, latents):
        return jnp.concatenate([latents, latents[..., :1] * latents[..., 1:]], -1)


class Part:
    def __init__(self, tokenizer):
        self.vq = tokenizer


@pytest.fixture
def part() -> Part:
    return Part(Toy([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, -5.0]]))


@pytest.fixture
def pixels() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), np.uint8))


def by_hand(pixels: jax.Array) -> dict[str, float]:
    x = np.asarray(pixels) / 127.5 - 1.0
    z = x[..., :2] / np.linalg.norm(x[..., :2], axis=-1, keepdims=True)
    codes = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    ids = (z @ codes.T).argmax(-1)
    q = codes[ids]
    error = np.concatenate([q, q[..., :1] * q[..., 1:]], -1) - x
    distance = ((q - z) ** 2).sum(-1).mean()
    return {
        "squared": (error**2).mean(),
        "l1": abs(error).mean(),
        "edges": abs(np.diff(error, axis=1)).mean() + abs(np.diff(error, axis=2)).mean(),
        "codebook": distance,
        "commitment": distance,
        "used": len(np.unique(ids)) / 4,
    }


@pytest.mark.parametrize("term", ["l1", "edges", "codebook", "commitment"])
def test_each_term_is_added_with_its_weight(part, pixels, term):
    want = by_hand(pixels)
    config = VQLossConfig(**{**vars(OFF), term: 0.7})
    value, metrics = vq.loss(part, {"pixels": pixels}, config)
    assert float(value) == pytest.approx(want["squared"] + 0.7 * want[term], rel=1e-5)
    assert float(metrics["psnr"]) == pytest.approx(10 * np.log10(4 / want["squared"]), rel=1e-5)
    assert float(metrics["codes_used"]) == want["used"]
    assert float(metrics["commitment"]) == pytest.approx(want["commitment"], rel=1e-5)


def gradients(part: Any, pixels: jax.Array, config: VQLossConfig) -> tuple[np.ndarray, ...]:
    """Of the loss with respect to latents (added to them as a zero) and codebook."""
    toy = part.vq

    def value(shift, codebook):
        moved = Toy(codebook)
        moved.latents = lambda pixels: toy.latents(pixels) + shift
        toy_part: Any = Part(moved)
        return vq.loss(toy_part, {"pixels": pixels}, config)[0]

    shift = jnp.zeros((*pixels.shape[:3], 2))
    return tuple(map(np.asarray, jax.grad(value, (0, 1))(shift, toy.codebook)))


def test_reconstruction_reaches_the_encoder_as_if_nothing_were_quantised(part, pixels):
    latents, codebook = gradients(part, pixels, OFF)
    x = np.asarray(pixels) / 127.5 - 1.0
    z = x[..., :2] / np.linalg.norm(x[..., :2], axis=-1, keepdims=True)
    codes = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    q = codes[(z @ codes.T).argmax(-1)]
    d = 2 * (np.concatenate([q, q[..., :1] * q[..., 1:]], -1) - x) / x.size
    # The derivative of the decoder, taken at the codes.
    want = np.stack([d[..., 0] + d[..., 2] * q[..., 1], d[..., 1] + d[..., 2] * q[..., 0]], axis=-1)
    np.testing.assert_allclose(latents, want, atol=1e-6)
    assert (codebook == 0).all()


def test_commitment_moves_latents_and_the_codebook_term_codes(part, pixels):
    rest = gradients(part, pixels, OFF)
    commitment = gradients(part, pixels, VQLossConfig(**{**vars(OFF), "commitment": 1}))
    codebook = gradients(part, pixels, VQLossConfig(**{**vars(OFF), "codebook": 1}))
    assert (commitment[0] != rest[0]).any() and (commitment[1] == 0).all()
    np.testing.assert_array_equal(codebook[0], rest[0])
    assert (codebook[1] != 0).any()


def test_entropy_is_least_when_latents_are_certain_and_use_all_codes():
    k = 8
    certain = vq.entropy_loss(jnp.eye(k), 1e-3)
    undecided = vq.entropy_loss(jnp.zeros((k, k)), 1e-3)
    collapsed = vq.entropy_loss(jnp.eye(k)[:1].repeat(k, 0), 1e-3)
    assert float(certain) == pytest.approx(-np.log(k), abs=1e-5)
    assert float(undecided) == pytest.approx(0, abs=1e-5)
    assert float(collapsed) == pytest.approx(0, abs=1e-5)


def test_entropy_equals_its_definition():
    similarity, temperature = np.random.default_rng(1).uniform(-1, 1, (5, 3)), 0.5
    p = np.exp(-(2 - 2 * similarity) / temperature)
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    want = -(p * np.log(p)).sum(1).mean() + (mean * np.log(mean)).sum()
    got = vq.entropy_loss(jnp.asarray(similarity, jnp.float32), temperature)
    assert float(got) == pytest.approx(want, rel=1e-5)
