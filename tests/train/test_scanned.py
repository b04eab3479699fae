"""The scanned model's own way of doing things, against the plain one's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from janus_jax.config import get_config
from janus_jax.functional import abstract
from janus_jax.nn.layers import ShapesOnly
from janus_jax.nn.rope import apply_rope, rope_tables
from janus_jax.nn.segments import segment_attention
from train import scanned
from train.scanned import ScannedJanus, rotated, stack


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_halves_swapped_by_a_product_are_those_of_rope(dtype):
    """Exactly: a product with ones and minus ones rounds nothing."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 16), dtype)
    rope = rope_tables(jnp.arange(10).reshape(2, 5) * 7, head_dim=16, theta=1e4)
    want = apply_rope(x, *rope)
    got = rotated(x.swapaxes(1, 2), *rope).swapaxes(1, 2)
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))


def test_the_layers_of_a_tpu_are_those_of_a_cpu(monkeypatch):
    """Heads before tokens, rope by a product, heads summed by one: outputs and all gradients."""
    interpreted = functools.partial(segment_attention, interpret=True)
    debug = get_config("debug")
    llm = dataclasses.replace(debug.llm, width=256, num_heads=2, num_kv_heads=2, depth=2)
    config = dataclasses.replace(debug, llm=llm)
    shapes, tree = jax.tree.flatten(stack(abstract(config)[1])["llm"])
    keys = jax.random.split(jax.random.key(0), len(shapes))
    # Scores far from equal, so that every part of attention shows.
    params = tree.unflatten(
        0.2 * jax.random.normal(key, x.shape) + (x.ndim < 3)
        for key, x in zip(keys, shapes, strict=True)
    )
    x, g = jax.random.normal(jax.random.key(1), (2, 1, 128, 256))
    ids = jnp.asarray(np.repeat([1, 2, 3], [40, 60, 28])[None], jnp.int32)
    positions = jnp.asarray(np.concatenate([np.arange(n) for n in (40, 60, 28)])[None], jnp.int32)

    def run(kernel):
        model = ScannedJanus(config, ShapesOnly(), kernel=kernel, remat="minimal")
        graphdef, others = nnx.split(model)

        def hidden(llm, x):
            whole = nnx.merge(graphdef, nnx.State({**others, "llm": llm}))
            return whole.hidden(x, positions, ids)

        y, back = jax.vjp(jax.jit(hidden), params, x)
        return y, back(g)

    monkeypatch.setattr(scanned, "segment_attention", segment_attention)
    want = run("chunked")
    monkeypatch.setattr(scanned, "segment_attention", interpreted)
    for got, plain in zip(jax.tree.leaves(run("splash")), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, plain, atol=1e-5 * float(jnp.abs(plain).max()))
