"""The VQ tokenizer's rules by hand: normalisation, nearest codes, padding, enlarging, order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from janus_jax import functional
from janus_jax.config import DEBUG
from janus_jax.models.vq import Level, ResBlock, VQTokenizer, l2_normalize
from janus_jax.nn.layers import ShapesOnly
from tests.debug_model import random_params

F32 = dict(dtype=jnp.float32, param_dtype=jnp.float32)


@pytest.fixture(scope="module")
def vq() -> VQTokenizer:
    return nnx.merge(functional.abstract(DEBUG)[0], random_params(DEBUG)).vq


def test_l2_normalize_by_hand():
    x = jnp.array([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0], [3e-13, 4e-13]])
    expected = [[0.6, 0.8], [0.0, -1.0], [0.0, 0.0], [0.3, 0.4]]
    # Below a length of 1e-12 the divisor is 1e-12, as in the reference.
    np.testing.assert_allclose(l2_normalize(x), expected, rtol=1e-5)


def test_l2_normalize_has_a_gradient_at_zero():
    gradient = jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3))
    assert np.isfinite(gradient).all()


def test_nearest_codes_row_by_row(vq: VQTokenizer):
    stored = vq.codebook[...]
    codes = np.zeros(stored.shape, np.float32)
    codes[:, 7] = 1.0
    # A long code wins no more often than a short one: only directions are compared.
    codes[5] = 100.0 * np.eye(8)[0]
    codes[6] = 0.01 * np.eye(8)[1]
    codes[9] = codes[6]
    vq.codebook[...] = jnp.asarray(codes)
    latents = np.eye(8, dtype=np.float32)[[0, 1, 1, 7, 0, 0]].reshape(1, 2, 3, 8)
    ids = vq.quantize(jnp.asarray(latents))
    vq.codebook[...] = stored
    assert ids.dtype == jnp.int32
    # The first of equal codes; rows of the picture one after the other.
    assert ids.tolist() == [[5, 6, 6, 0, 5, 5]]


def test_ids_of_a_picture_run_along_its_rows(vq: VQTokenizer):
    codes = vq.codes()
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1.0, rtol=1e-6)
    pictures = jax.jit(vq.decode)(jnp.arange(16, dtype=jnp.int32)[None])
    assert pictures.shape == (1, 16, 16, 3) and pictures.dtype == jnp.float32
    expected = jax.jit(vq.decode_latents)(codes[:16].reshape(1, 4, 4, 8))
    np.testing.assert_allclose(pictures, expected, atol=1e-5)


def level(**kwargs) -> Level:
    return Level(nnx.Rngs(0), 32, 32, 0, with_attention=False, **F32, **kwargs)


def impulse(conv, y: int, x: int) -> None:
    """Makes a 3x3 conv read one place of its window, each channel by itself."""
    kernel = np.zeros((3, 3, 32, 32), np.float32)
    kernel[y, x] = np.eye(32)
    conv.kernel[...] = jnp.asarray(kernel)


def test_downsampling_pads_right_and_below_only():
    down = level(downsample=True)
    x = jnp.broadcast_to(jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1), (1, 4, 4, 32))
    impulse(down.downsample, 0, 0)
    assert down(x)[0, ..., 0].tolist() == [[1, 3], [9, 11]]
    impulse(down.downsample, 1, 1)
    assert down(x)[0, ..., 0].tolist() == [[6, 8], [14, 16]]
    impulse(down.downsample, 2, 2)
    assert down(x)[0, ..., 0].tolist() == [[11, 0], [0, 0]]


def test_upsampling_repeats_pixels():
    up = level(upsample=True)
    x = jnp.broadcast_to(jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, ..., None], (1, 2, 2, 32))
    impulse(up.upsample, 1, 1)
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert up(x)[0, ..., 0].tolist() == expected
    # Padded on all four sides.
    impulse(up.upsample, 0, 0)
    assert up(x)[0, ..., 0].tolist() == [[0, 0, 0, 0], *([0, *row[:3]] for row in expected[:3])]


def test_a_shortcut_stands_only_where_channels_change():
    assert ResBlock(ShapesOnly(), 32, 32, **F32).shortcut is None
    assert ResBlock(ShapesOnly(), 32, 64, **F32).shortcut.kernel.shape == (1, 1, 32, 64)


def test_a_residual_block_of_zero_weights_is_the_identity():
    block = ResBlock(nnx.Rngs(0), 32, 32, **F32)
    block.conv2.kernel[...] = jnp.zeros((3, 3, 32, 32))
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 32))
    np.testing.assert_array_equal(block(x), x)


def test_encode_is_quantised_latents_and_taps_name_every_level(vq: VQTokenizer):
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    order: list[str] = []

    @jax.jit
    def encode(pixels):
        taps: dict[str, jax.Array] = {}
        ids = vq.encode(pixels, taps)
        order.extend(taps)
        return ids, vq.latents(pixels), taps

    ids, latents, taps = encode(pixels)
    assert ids.shape == (2, 16) and ids.dtype == jnp.int32
    assert [(name, taps[name].shape) for name in order] == [
        ("vq/encoder/down/0", (2, 8, 8, 32)),
        ("vq/encoder/down/1", (2, 4, 4, 32)),
        ("vq/encoder/down/2", (2, 4, 4, 64)),
        ("vq/encoder/mid", (2, 4, 4, 64)),
    ]
    np.testing.assert_allclose(jnp.linalg.norm(latents, axis=-1), 1.0, rtol=1e-5)
    assert len(set(np.asarray(ids).ravel().tolist())) > 1


def test_it_runs_in_float32_inside_a_bfloat16_model():
    graphdef, params = functional.abstract(DEBUG, dtype=jnp.bfloat16)
    pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    states = jax.ShapeDtypeStruct((1, 48), jnp.bfloat16)

    def dtypes(params, pixels, states):
        model = nnx.merge(graphdef, params)
        return {
            "latents": model.vq.encoder(pixels),
            "features": model.encode_image(pixels),
            "text logits": model.text_logits(states),
            "image logits": model.image_logits(states),
        }

    found = {k: v.dtype for k, v in jax.eval_shape(dtypes, params, pixels, states).items()}
    assert found.pop("features") == jnp.bfloat16
    assert set(found.values()) == {jnp.dtype(jnp.float32)}
