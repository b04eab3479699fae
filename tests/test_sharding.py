"""Rules that refuse by name, and a forward pass that is the same on eight devices as on one."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from janus_jax import functional
from janus_jax.config import DEBUG, JANUS_PRO_1B
from janus_jax.errors import InputError
from janus_jax.sharding import DEFAULT_RULES, constrain, make_mesh, param_shardings
from tests.debug_model import random_params


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 8
    return make_mesh({"fsdp": 4, "tensor": 2})


def test_a_mesh_has_every_axis_and_is_auto(mesh):
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert dict(make_mesh().shape)["fsdp"] == 8


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 3}, "3 places for 8 devices"),
        ({"model": 8}, "'model'"),
        ({"fsdp": 8, "tensor": 0}, "positive sizes"),
        ({"fsdp": -8}, "positive sizes"),
    ],
)
def test_impossible_meshes_are_refused(sizes, words):
    with pytest.raises(InputError, match=words):
        make_mesh(sizes)


def test_specs_written_out(mesh):
    def spec(*axes_and_shape):
        axes, shape = axes_and_shape
        return DEFAULT_RULES.spec(axes, shape, mesh)

    assert spec(("embed", "mlp"), (8, 6)) == P(("fsdp",), ("tensor",))
    assert spec(("vocab", "embed"), (2, 4)) == P(("tensor",), ("fsdp",))
    assert spec((None, "mlp"), (7, 2)) == P(None, ("tensor",))
    assert spec(("norm",), (7,)) == P(None)
    assert spec(("batch", "length", None), (4, 7, 7)) == P(("fsdp",), None, None)


def test_axes_of_size_one_are_left_out():
    whole = make_mesh({"fsdp": 8})
    assert DEFAULT_RULES.spec(("embed", "mlp"), (8, 7), whole) == P(("fsdp",), None)


def test_two_dimensions_on_one_mesh_axis_are_refused_with_the_path(mesh):
    with pytest.raises(InputError, match=r"llm/x/kernel: axes \('mlp', 'heads'\).*'tensor'"):
        DEFAULT_RULES.spec(("mlp", "heads"), (4, 4), mesh, "llm/x/kernel")
    rules = dataclasses.replace(DEFAULT_RULES, mlp=("fsdp",))
    with pytest.raises(InputError, match=r"aligner/fc1/kernel.*'fsdp'"):
        param_shardings(functional.abstract(DEBUG)[1], mesh, rules)


def test_a_dimension_that_does_not_divide_is_refused_with_the_path(mesh):
    with pytest.raises(InputError, match=r"llm/x/kernel: dimension 'embed' of size 6 .* 4 devices"):
        DEFAULT_RULES.spec(("embed", "mlp"), (6, 4), mesh, "llm/x/kernel")
    llm = dataclasses.replace(DEBUG.llm, mlp_dim=81)
    params = functional.abstract(dataclasses.replace(DEBUG, llm=llm))[1]
    with pytest.raises(InputError, match=r"llm/layers/0/mlp/.*'mlp' of size 81"):
        param_shardings(params, mesh)


def split_ways(spec: P, mesh) -> int:
    axes = [axis for part in spec if part for axis in ([part] if isinstance(part, str) else part)]
    return math.prod(mesh.shape[axis] for axis in axes)


@pytest.fixture(scope="module")
def pro_1b():
    params = functional.abstract(JANUS_PRO_1B)[1]
    return params, {
        path: math.prod(x.shape) * 4 for path, x in functional.flat_params(params).items()
    }


def test_nothing_large_is_replicated_at_1b(mesh, pro_1b):
    params, sizes = pro_1b
    ways = {
        path: split_ways(sharding.spec, mesh)
        for path, sharding in functional.flat_params(param_shardings(params, mesh)).items()
    }
    assert not [path for path, size in sizes.items() if size > 2**20 and ways[path] == 1]
    # The language model, where the memory is, is split over all eight.
    large = [p for p, size in sizes.items() if p.startswith("llm/") and size > 2**20]
    assert large and all(ways[path] == 8 for path in large)


def test_what_stays_whole_on_an_fsdp_mesh_at_1b(pro_1b):
    """Known and small: the VQ convolutions (frozen) and two first aligner layers' input sides."""
    params, sizes = pro_1b
    mesh = make_mesh({"fsdp": 8})
    whole = [
        path
        for path, sharding in functional.flat_params(param_shardings(params, mesh)).items()
        if sizes[path] > 2**20 and split_ways(sharding.spec, mesh) == 1
    ]
    assert {path.split("/")[0] for path in whole} <= {"vq", "aligner"}
    assert sum(sizes[path] for path in whole) < 0.05 * sum(sizes.values())


def test_constrain_is_nothing_without_a_mesh_and_never_splits_unevenly(mesh):
    x = jnp.ones((3, 5, 2))
    assert constrain(x, "batch", "length", None) is x
    with jax.set_mesh(mesh):
        inside = jax.jit(lambda x: constrain(x, "batch", "length", None))
        assert inside(x).sharding.is_fully_replicated
        assert inside(jnp.ones((4, 5, 2))).sharding.spec[0] == "fsdp"


def test_eight_devices_compute_what_one_does(mesh):
    graphdef, _ = functional.abstract(DEBUG)
    params = random_params(DEBUG)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    tokens = rng.integers(0, 2048, (4, 24)).astype(np.int32)
    index = np.full((4, 24), -1, np.int32)
    index[:, 3:19] = np.arange(64).reshape(4, 16)
    mask = np.ones((4, 24), bool)
    mask[1, :3] = mask[2, :1] = False
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    codes = rng.integers(0, 64, (4, 16)).astype(np.int32)

    def forward(params, pixels, tokens, index, positions, mask, codes):
        features = functional.encode_image(graphdef, params, pixels)
        x = functional.embed(graphdef, params, tokens, features, index)
        h, cache = functional.prefill(graphdef, params, x, positions, mask, 26)
        x = functional.embed_image_tokens(graphdef, params, codes[:, :1])
        step, cache = functional.decode_step(graphdef, params, x, positions[:, -1:] + 1, cache)
        return {
            "features": features,
            "hidden": jnp.where(mask[..., None], h, 0),
            "text": functional.text_logits(graphdef, params, step),
            "image": functional.image_logits(graphdef, params, step),
            "picture": functional.vq_decode(graphdef, params, codes),
            "length": cache.length,
        }

    args = (pixels, tokens, index, positions, mask, codes)
    one = jax.jit(forward)(params, *args)
    split = jax.device_put(params, param_shardings(params, mesh))
    with jax.set_mesh(mesh):
        eight = jax.jit(forward)(split, *args)
    kernel = functional.flat_params(split)["llm/layers/0/attn/q/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (12, 24)
    for name, value in one.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(eight[name], value, atol=1e-5 * scale, err_msg=name)
