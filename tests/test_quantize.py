"""Int8 weights: the rounding itself, and models that run with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import PartitionSpec

from janus_jax import Janus, functional, sharding
from janus_jax.config import DEBUG
from janus_jax.errors import InputError
from janus_jax.quantize import is_quantized, quantize, quantize_kernel


def test_rounding_by_hand():
    kernel = jnp.array([[1.27, 0.0, -2.0], [-0.63, 0.0, 0.5], [0.004, 0.0, 2.54]])
    q, scale = quantize_kernel(kernel)
    np.testing.assert_allclose(scale, [0.01, 1.0, 0.02], rtol=1e-6)
    np.testing.assert_array_equal(q, [[127, 0, -100], [-63, 0, 25], [0, 0, 127]])
    assert (q.dtype, scale.dtype) == (jnp.int8, jnp.float32)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float32, (7, 5), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False))
)
@example(np.full((7, 5), 1.2e-38, np.float32))
def test_no_weight_moves_by_more_than_half_a_step(kernel):
    q, scale = map(np.asarray, quantize_kernel(kernel))
    assert np.all(np.abs(q.astype(int)) <= 127)
    assert np.all(np.abs(q * scale - kernel) <= scale * 0.5001)


@pytest.fixture(scope="module")
def models():
    graphdef, params = functional.build(DEBUG, 0)
    return (graphdef, params), quantize(graphdef, params)


def test_what_is_quantized_and_what_is_not(models):
    (_, plain), (_, small) = models
    before, after = functional.flat_params(plain), functional.flat_params(small)
    matrices = {k for k, v in after.items() if v.dtype == jnp.int8}
    layers = range(DEBUG.llm.depth)
    names = ["attn/q", "attn/k", "attn/v", "attn/out", "mlp/gate", "mlp/up", "mlp/down"]
    assert matrices == {f"llm/layers/{i}/{name}/kernel" for i in layers for name in names} | {
        "llm/lm_head/kernel",
        "image_head/proj/kernel",
        "image_head/out/kernel",
    }
    assert after.keys() - before.keys() == {k.replace("kernel", "scale") for k in matrices}
    for name in before.keys() - matrices:
        assert after[name] is before[name]
    assert is_quantized(small) and not is_quantized(plain)


def test_the_model_computes_with_the_rounded_weights(models):
    (graphdef, plain), (small_def, small) = models
    flat = functional.flat_params(small)
    rounded = {
        name: flat[name].astype(jnp.float32) * flat[name.replace("kernel", "scale")]
        if flat[name].dtype == jnp.int8
        else value
        for name, value in functional.flat_params(plain).items()
    }
    rounded = functional.unflatten_params(plain, rounded)
    x = jax.random.normal(jax.random.key(1), (2, 6, DEBUG.llm.width))
    places, mask = jnp.broadcast_to(jnp.arange(6), (2, 6)), jnp.ones((2, 6), bool)

    @jax.jit
    def run(small, rounded):
        def logits(graphdef, params):
            h = functional.hidden(graphdef, params, x, places, mask)
            return (
                functional.text_logits(graphdef, params, h),
                functional.image_logits(graphdef, params, h),
            )

        return logits(small_def, small), logits(graphdef, rounded)

    for ours, wanted in zip(*run(small, rounded), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


def test_shapes_alone_and_a_mesh():
    graphdef, shapes = functional.abstract(DEBUG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    _, small = quantize(graphdef, shapes)
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2, "data": 2})
    placed = functional.flat_params(sharding.param_shardings(small, mesh))
    assert placed["llm/layers/0/mlp/gate/scale"].spec == PartitionSpec("tensor")
    flat = functional.flat_params(small)
    assert flat["llm/lm_head/kernel"].dtype == jnp.int8
    assert flat["llm/lm_head/scale"].shape == (DEBUG.llm.vocab_size,)


def test_an_int8_model_draws_and_is_not_saved(tmp_path):
    model = Janus.from_pretrained("debug", dtype="int8")
    assert model.dtype == np.int8
    codes = model.generate_codes(["red heart"], 2, seed=3)
    assert codes.shape == (1, 2, DEBUG.num_image_tokens)
    np.testing.assert_array_equal(model.generate_codes(["red heart"], 1, seed=3)[0, 0], codes[0, 0])
    with pytest.raises(InputError, match="int8 model cannot be saved"):
        model.save_pretrained(tmp_path / "m")
    assert nnx.merge(model.graphdef, model.params).llm.lm_head.scale is not None
