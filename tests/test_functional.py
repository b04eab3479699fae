"""The pure functions: what `build` and `abstract` promise, and the flat form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from janus_jax import functional
from janus_jax.config import DEBUG


@pytest.fixture(scope="module")
def built():
    return functional.build(DEBUG, seed=3)


def test_abstract_is_what_is_built(built):
    graphdef, params = built
    same, shapes = functional.abstract(DEBUG)
    assert graphdef == same and hash(graphdef) == hash(same)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    for real, shape in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (real.shape, real.dtype) == (shape.shape, shape.dtype)


def test_the_seed_decides_the_weights(built):
    _, params = built
    flat = functional.flat_params(params)
    again = functional.flat_params(functional.build(DEBUG, seed=3)[1])
    other = functional.flat_params(functional.build(DEBUG, seed=4)[1])
    assert all(np.array_equal(flat[path], again[path]) for path in flat)
    drawn = [path for path in flat if path.endswith(("kernel", "embedding", "codebook"))]
    assert not any(np.array_equal(flat[path], other[path]) for path in drawn)
    # No two matrices of one shape start alike, so no key was used twice.
    matrices = [np.asarray(flat[path], np.float32).tobytes() for path in drawn]
    assert len(set(matrices)) == len(matrices)


def test_fresh_weights_are_scaled_to_their_inputs(built):
    flat = {k: np.asarray(v, np.float32) for k, v in functional.flat_params(built[1]).items()}
    assert all(not flat[k].any() for k in flat if k.endswith("/bias"))
    assert all((flat[k] == 1).all() for k in flat if k.endswith("/scale"))
    kernel = flat["vq/encoder/mid/res1/conv1/kernel"]  # 3 x 3 x 64 inputs
    np.testing.assert_allclose(kernel.std(), (9 * 64) ** -0.5, rtol=0.05)
    np.testing.assert_allclose(flat["llm/embed/embedding"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(flat["vision/blocks/0/mlp/fc1/kernel"].std(), 32**-0.5, rtol=0.1)


def test_flat_paths_are_the_documented_ones():
    flat = functional.flat_params(functional.abstract(DEBUG)[1])
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    assert len(shapes) == 254
    expected = {
        "vision/patch_embed/kernel": (4, 4, 3, 32),
        "vision/pos_embed": (16, 32),
        "vision/blocks/1/attn/out/bias": (32,),
        "aligner/fc1/kernel": (32, 48),
        "gen_embed/embedding": (64, 8),
        "gen_aligner/fc1/kernel": (8, 48),
        "image_head/out/kernel": (48, 64),
        "llm/embed/embedding": (2048, 48),
        "llm/layers/1/mlp/down/kernel": (80, 48),
        "llm/layers/0/attn_norm/scale": (48,),
        "llm/lm_head/kernel": (48, 2048),
        "vq/encoder/down/0/downsample/kernel": (3, 3, 32, 32),
        "vq/encoder/down/2/res/0/shortcut/kernel": (1, 1, 32, 64),
        "vq/decoder/up/0/attn/1/q/kernel": (1, 1, 64, 64),
        "vq/decoder/up/1/res/0/shortcut/kernel": (1, 1, 64, 32),
        "vq/decoder/up/0/upsample/kernel": (3, 3, 64, 64),
        "vq/quant_conv/kernel": (1, 1, 32, 8),
        "vq/codebook": (64, 8),
    }
    assert {path: shapes.get(path) for path in expected} == expected
    # Only the deepest level attends, and the finest one is not enlarged further.
    assert not [
        p for p in shapes if p.startswith(("vq/encoder/down/0/attn", "vq/decoder/up/2/attn"))
    ]
    assert "vq/decoder/up/2/upsample/kernel" not in shapes


def test_shapes_and_dtypes_of_the_signatures_are_checked_in_tests():
    """Fails where JANUS_JAX_TYPECHECK=0 turns the checks off, as it should."""
    graphdef, params = functional.abstract(DEBUG)
    x, places = jnp.zeros((2, 4, DEBUG.llm.width)), jnp.zeros((2, 4), jnp.int32)
    for mask in (jnp.ones((1, 4), bool), jnp.ones((2, 4))):
        with pytest.raises(TypeCheckError, match="mask"):
            functional.hidden(graphdef, params, x, places, mask)
    with pytest.raises(TypeCheckError, match="pixels"):
        functional.encode_image(graphdef, params, jnp.zeros((1, 16, 8, 3)))
