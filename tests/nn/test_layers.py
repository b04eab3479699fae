"""Layers by hand: norms and their epsilons, exact GELU, convolutions, declarations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from janus_jax.nn.layers import (
    Conv,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    RMSNorm,
    ShapesOnly,
    gelu,
    int8_product,
    param,
    tap,
)

F32 = dict(dtype=jnp.float32, param_dtype=jnp.float32)


def fill(module: nnx.Module, **values) -> None:
    for name, value in values.items():
        variable = getattr(module, name)
        variable[...] = jnp.asarray(value, variable.get_value().dtype)


def test_gelu_is_the_erf_form():
    x = [-3.0, -1.0, -0.1, 0.0, 0.5, 1.0, 2.0]
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(gelu(jnp.array(x)), exact, atol=2e-7)
    # The tanh form is 4.7e-4 off at 2.
    assert abs(float(jax.nn.gelu(jnp.array(2.0))) - exact[-1]) > 1e-5


def test_layer_norm_by_hand():
    norm = LayerNorm(nnx.Rngs(0), 2, eps=3.0, param_dtype=jnp.float32)
    fill(norm, scale=[1.0, 10.0], bias=[0.5, 0.0])
    # Mean 2, variance 1, root of 1 + 3 is 2.
    np.testing.assert_allclose(norm(jnp.array([[1.0, 3.0]])), [[0.0, 5.0]], rtol=1e-6)


def test_rms_norm_by_hand():
    norm = RMSNorm(nnx.Rngs(0), 2, eps=3.5, param_dtype=jnp.float32)
    fill(norm, scale=[1.0, 10.0])
    # Mean square 12.5, root of 12.5 + 3.5 is 4; the mean is not subtracted.
    np.testing.assert_allclose(norm(jnp.array([3.0, 4.0])), [0.75, 10.0], rtol=1e-6)


def test_rms_norm_statistics_are_float32_under_bfloat16():
    norm = RMSNorm(nnx.Rngs(0), 512, eps=1e-6, param_dtype=jnp.bfloat16)
    x = jnp.full((512,), 3.0, jnp.bfloat16)
    assert norm(x).dtype == jnp.bfloat16
    assert set(norm(x).tolist()) == {1.0}


def test_group_norm_by_hand():
    norm = GroupNorm(nnx.Rngs(0), 4, groups=2, eps=3.0, param_dtype=jnp.float32)
    fill(norm, scale=[1.0, 1.0, 1.0, 10.0], bias=[0.0, 0.0, 0.0, 1.0])
    # One picture, 1x2 pixels; channels 0, 1 are a group with values 1 and 3, channels 2, 3 another.
    x = jnp.array([[1.0, 3.0, 5.0, 7.0], [1.0, 3.0, 5.0, 7.0]]).reshape(1, 1, 2, 4)
    expected = [[-0.5, 0.5, -0.5, 6.0]] * 2
    np.testing.assert_allclose(norm(x)[0, 0], expected, rtol=1e-6)


def test_linear_is_x_times_kernel():
    layer = Linear(nnx.Rngs(0), 2, 3, (None, None), bias=True, **F32)
    fill(layer, kernel=[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], bias=[0.0, 0.0, 0.5])
    assert layer(jnp.array([1.0, 1.0])).tolist() == [11.0, 22.0, 33.5]
    assert Linear(nnx.Rngs(0), 2, 3, (None, None), bias=False, **F32).bias is None


def test_embedding_clips_rather_than_reading_elsewhere():
    table = Embedding(nnx.Rngs(0), 3, 2, (None, None), init=jax.nn.initializers.zeros, **F32)
    fill(table, embedding=[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    assert table(jnp.array([2, 0, 7])).tolist() == [[4, 5], [0, 1], [4, 5]]


def test_conv_kernel_is_hwio_and_is_not_flipped():
    conv = Conv(nnx.Rngs(0), 1, 1, kernel=3, **F32)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 2] = 1.0  # reads the pixel above and to the right
    fill(conv, kernel=kernel)
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    assert conv(x)[0, ..., 0].tolist() == [[0, 0, 0], [1, 2, 0], [4, 5, 0]]


def test_stride_two_with_padding_right_and_below():
    # The reference pads (0, 1, 0, 1) and convolves VALID; "SAME" would do so here too for an even
    # side, but not for an odd one, and padding on both sides would shift the picture by a pixel.
    conv = Conv(nnx.Rngs(0), 1, 1, kernel=3, stride=2, padding=((0, 1), (0, 1)), **F32)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 0] = 1.0
    fill(conv, kernel=kernel)
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert conv(x)[0, ..., 0].tolist() == [[0, 2], [8, 10]]
    kernel[:] = 1.0
    fill(conv, kernel=kernel)
    assert conv(jnp.ones((1, 4, 4, 1)))[0, ..., 0].tolist() == [[9, 6], [6, 4]]


def test_a_declaration_needs_an_axis_for_each_dimension():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs 2 axes"):
        param(nnx.Rngs(0), (2, 3), ("embed",), jax.nn.initializers.zeros, jnp.float32)


def test_a_declaration_carries_its_axes_with_or_without_an_array():
    args = ((2, 3), ("embed", None), jax.nn.initializers.ones, jnp.bfloat16)
    real, abstract = param(nnx.Rngs(0), *args), param(ShapesOnly(), *args)
    assert isinstance(abstract.get_value(), jax.ShapeDtypeStruct)
    for variable in (real, abstract):
        assert variable.get_metadata("axes") == ("embed", None)
        assert variable.shape == (2, 3) and variable.dtype == jnp.bfloat16


def test_tap_records_only_when_asked():
    x, taps = jnp.ones(2), {}
    assert tap(None, "a", x) is x
    assert tap(taps, "a", x) is x and taps["a"] is x


@pytest.mark.parametrize("d", [5, 256, 600])
@pytest.mark.parametrize("rows", [(1, 1), (2, 1), (3, 7)])
def test_int8_product_is_the_product(d, rows):
    """Whole blocks, a remainder, or too little for one; summed in float32 whatever x is."""
    rng = np.random.default_rng(d)
    x = rng.standard_normal((*rows, d)).astype(np.float32)
    kernel = rng.integers(-127, 128, (d, 9), np.int8)
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    wide = jax.jit(int8_product)(x, kernel)
    # 600 products of up to 127 * 4 in float32: 1e-6 of the sum of their sizes.
    np.testing.assert_allclose(wide, exact, atol=1e-6 * 127 * d)
    narrow = jnp.asarray(x, jnp.bfloat16)
    exact = np.asarray(narrow, np.float64) @ kernel.astype(np.float64)
    found = jax.jit(int8_product)(narrow, kernel)
    assert (wide.dtype, found.dtype) == (jnp.float32, jnp.bfloat16)
    # One rounding to 8 bits at the end, none between.
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-3)


def test_int8_product_widens_a_block_at_a_time_on_a_cpu_only():
    shapes = jax.ShapeDtypeStruct((2, 512), jnp.float32), jax.ShapeDtypeStruct((512, 64), jnp.int8)
    traced = jax.jit(int8_product).trace(*shapes)
    assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "while" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_float32_products_are_float32_on_every_backend():
    # A TPU would otherwise multiply in bfloat16; here the request is read from the program.
    linear = Linear(nnx.Rngs(0), 4, 3, (None, None), bias=True, **F32)
    conv = Conv(nnx.Rngs(0), 4, 3, kernel=3, **F32)
    asked = str(jax.make_jaxpr(lambda x: (linear(x), conv(x)))(jnp.ones((1, 5, 5, 4))))
    assert asked.count("HIGHEST") >= 2
    narrow = Linear(
        nnx.Rngs(0), 4, 3, (None, None), bias=True, dtype=jnp.bfloat16, param_dtype=jnp.float32
    )
    with jax.default_matmul_precision("default"):
        assert "HIGHEST" not in str(jax.make_jaxpr(narrow)(jnp.ones((1, 4))))
