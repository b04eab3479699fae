"""The whole model against itself: padding, causality, batches, decoding, places of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from janus_jax import functional
from janus_jax.config import DEBUG
from janus_jax.models.janus import JanusModel
from tests.debug_model import random_params

WIDTH = DEBUG.llm.width


@pytest.fixture(scope="module")
def model() -> JanusModel:
    return nnx.merge(functional.abstract(DEBUG)[0], random_params(DEBUG))


@pytest.fixture(scope="module")
def hidden(model: JanusModel):
    return jax.jit(model.hidden)


def states(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (*shape, WIDTH))


def arange(rows: int, length: int) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(length), (rows, length))


def close(a, b) -> None:
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_image_features_stand_where_the_index_says(model: JanusModel):
    tokens = jnp.array([[5, 6, 7, 8], [9, 10, 11, 12]])
    features = jnp.arange(2.0 * 3 * WIDTH).reshape(2, 3, WIDTH)
    index = jnp.array([[-1, 4, 0, -1], [5, -1, -1, 2]])
    out = model.embed(tokens, features, index)
    text, rows = model.llm.embed.embedding[...], features.reshape(6, WIDTH)
    expected = [[text[5], rows[4], rows[0], text[8]], [rows[5], text[10], text[11], rows[2]]]
    np.testing.assert_array_equal(out, jnp.array(expected))
    np.testing.assert_array_equal(model.embed(tokens), text[tokens])


def test_image_codes_have_their_own_table(model: JanusModel):
    ids = jnp.array([[3, 60]])
    rows = model.gen_embed.embedding[...][ids]
    np.testing.assert_array_equal(model.embed_image_tokens(ids), model.gen_aligner(rows))
    assert not np.array_equal(model.gen_embed.embedding[...], model.vq.codebook[...])


def test_later_tokens_do_not_reach_back(hidden):
    x = states(0, 1, 6)
    mask = jnp.ones((1, 6), bool)
    changed = hidden(x.at[:, 4:].add(1.0), arange(1, 6), mask)
    same = hidden(x, arange(1, 6), mask)
    close(changed[:, :4], same[:, :4])
    assert np.abs(changed[:, 4:] - same[:, 4:]).max() > 1e-2


def test_left_padding_and_batching_change_nothing(hidden):
    """Spec trap 6: a short prompt beside a long one reads as it does alone."""
    short, long = states(1, 1, 4), states(2, 1, 6)
    alone = hidden(short, arange(1, 4), jnp.ones((1, 4), bool))
    padded = jnp.concatenate([jnp.full((1, 2, WIDTH), 50.0), short], 1)
    mask = jnp.array([[True] * 6, [False, False, True, True, True, True]])
    positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    both = hidden(jnp.concatenate([long, padded]), positions, mask)
    close(both[1, 2:], alone[0])
    close(both[0], hidden(long, arange(1, 6), jnp.ones((1, 6), bool))[0])
    assert np.isfinite(both).all()
    # Without the mask the padding is read, and the answer is another.
    wrong = hidden(padded, positions[1:], jnp.ones((1, 6), bool))
    assert np.abs(wrong[0, 2:] - alone[0]).max() > 1e-2


def test_only_distances_between_positions_matter(hidden):
    x, mask = states(3, 1, 5), jnp.ones((1, 5), bool)
    here, there = hidden(x, arange(1, 5), mask), hidden(x, arange(1, 5) + 100, mask)
    np.testing.assert_allclose(here, there, atol=1e-3)
    gap = hidden(x, jnp.array([[0, 1, 2, 30, 31]]), mask)
    assert np.abs(gap - here).max() > 1e-2


def test_decoding_is_the_whole_sequence_step_by_step(model: JanusModel, hidden):
    x = states(4, 2, 8)
    mask = jnp.ones((2, 8), bool).at[1, :2].set(False)
    positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    whole = hidden(x, positions, mask)

    h, cache = jax.jit(model.prefill, static_argnums=3)(x[:, :5], positions[:, :5], mask[:, :5], 9)
    close(h[mask[:, :5]], whole[:, :5][mask[:, :5]])
    step = jax.jit(model.decode_step)
    for t in range(5, 8):
        h, cache = step(x[:, t : t + 1], positions[:, t : t + 1], cache)
        close(h[:, 0], whole[:, t])
        assert int(cache.length) == t + 1
    assert cache.valid.astype(int).tolist() == [[1] * 8 + [0], [0, 0] + [1] * 6 + [0]]
    # Unused slots hold nothing and count for nothing.
    assert not np.asarray(cache.k[0][:, :, 8:]).any()


def test_both_orders_of_a_decode_step_agree(model: JanusModel):
    """A TPU reads the cache before it writes: the same results and the same cache."""
    layer, heads = model.llm.layers[0], (2, DEBUG.llm.num_kv_heads, 6, DEBUG.llm.head_dim)
    k, v = jax.random.normal(jax.random.key(8), (2, *heads))
    mask = jnp.array([[[True] * 4 + [False] * 2], [[False] + [True] * 3 + [False] * 2]])
    args = (states(9, 2, 1), model.llm.rope(jnp.array([[3], [2]])), mask, k, v, jnp.int32(3))
    here, there = layer._write_then_attend(*args), layer._attend_then_write(*args)
    for got, want in zip(there, here, strict=True):
        close(got, want)
    np.testing.assert_array_equal(there[1], here[1])
    assert not np.array_equal(here[1], k)
    for got, want in zip(layer.decode(*args), here, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_row_continues_alike_in_any_company(model: JanusModel):
    x, mask = states(5, 2, 4), jnp.ones((2, 4), bool)
    _, cache = jax.jit(model.prefill, static_argnums=3)(x, arange(2, 4), mask, 6)
    new, step = states(6, 2, 1), jax.jit(model.decode_step)
    one, _ = step(new, jnp.full((2, 1), 4), cache)
    copies = jax.tree.map(lambda a: jnp.repeat(a, 3, 0) if a.ndim else a, cache)
    three, _ = step(jnp.repeat(new, 3, 0), jnp.full((6, 1), 4), copies)
    close(three, jnp.repeat(one, 3, 0))


def test_heads_read_normalised_states(model: JanusModel):
    taps: dict[str, jax.Array] = {}
    x = states(7, 1, 3)
    h = model.hidden(x, arange(1, 3), jnp.ones((1, 3), bool), taps)
    assert list(taps) == ["llm/layers/0", "llm/layers/1", "llm/norm"]
    close(h, model.llm.norm(taps["llm/layers/1"]))
    close(model.text_logits(h), h @ model.llm.lm_head.kernel[...])
    assert model.text_logits(h).shape == (1, 3, 2048)
    assert model.image_logits(h).shape == (1, 3, 64)


def test_picture_features_follow_patches_from_the_top(model: JanusModel):
    """With attention and MLP silenced, a feature depends on its own patch alone."""
    graphdef, params = nnx.split(model)
    flat = functional.flat_params(params)
    silent = {
        path: jnp.zeros_like(value)
        if path.startswith("vision/blocks") and ("/out/" in path or "/fc2/" in path)
        else value
        for path, value in flat.items()
    }
    quiet = functional.unflatten_params(params, silent)
    pixels = np.zeros((1, 16, 16, 3), np.float32)
    plain = functional.encode_image(graphdef, quiet, jnp.asarray(pixels))
    pixels[0, 4:8, 12:16] = np.random.default_rng(0).uniform(-1, 1, (4, 4, 3))  # row 1, column 3
    moved = functional.encode_image(graphdef, quiet, jnp.asarray(pixels))
    changed = np.flatnonzero(np.abs(moved - plain).max(-1)[0] > 1e-6)
    assert changed.tolist() == [7]
    assert plain.shape == (1, 16, WIDTH)


def test_attention_over_the_picture_is_full(model: JanusModel):
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    taps: dict[str, jax.Array] = {}
    before = model.encode_image(jnp.asarray(pixels), taps)
    assert list(taps) == [
        "vision/embed",
        "vision/blocks/0",
        "vision/blocks/1",
        "vision/norm",
        "aligner",
    ]
    pixels[0, 12:, 12:] *= -1  # the last patch moves the features of all
    after = model.encode_image(jnp.asarray(pixels))
    assert (np.abs(after - before).max(-1) > 1e-5).all()
