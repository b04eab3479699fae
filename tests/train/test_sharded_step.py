"""The train step over meshes: one loss, one trajectory, whatever the layout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.config import DEBUG
from janus_jax.nn.layers import ShapesOnly
from janus_jax.sharding import make_mesh
from tests.debug_model import random_params
from train.objectives import grouped
from train.scanned import ScannedJanus, stack, unstack
from train.state import split_state, state_shardings
from train.step import make_step

GROUPS, LENGTH, P = 8, 64, DEBUG.num_image_tokens
PARTS = ("aligner", "gen_embed", "gen_aligner", "image_head", "llm", "vision")


def batch() -> dict:
    """Each group is a row: 5 + P + 4 tokens of understanding, then 4 tokens and a picture."""
    rng = np.random.default_rng(0)
    n, prompt = 5 + P + 4, 4
    end = n + prompt + P - 1
    ids = rng.integers(0, DEBUG.llm.vocab_size, (GROUPS, LENGTH), np.int32)
    segments, positions = np.zeros_like(ids), np.zeros_like(ids)
    images, codes_at = np.full_like(ids, -1), np.full_like(ids, -1)
    segments[:, :n], segments[:, n:end] = 1, 2
    positions[:, :n], positions[:, n:end] = np.arange(n), np.arange(end - n)
    images[:, 5 : 5 + P], codes_at[:, n + prompt : end] = np.arange(P), np.arange(P - 1)
    codes = rng.integers(0, DEBUG.vq.codebook_size, (GROUPS, P), np.int32)
    answers = np.arange(n - 4, n)
    return {
        "tokens": ids,
        "segment_ids": segments,
        "positions": positions,
        "pixels": rng.integers(0, 256, (GROUPS, 16, 16, 3), np.uint8),
        "image_index": images,
        "codes": codes,
        "code_index": codes_at,
        "text_positions": np.tile(answers - 1, GROUPS).astype(np.int32),
        "text_targets": ids[:, answers].reshape(-1),
        "text_weights": {"understanding": np.ones(4 * GROUPS, np.float32)},
        "image_positions": np.tile(np.arange(P) + n + prompt - 1, GROUPS).astype(np.int32),
        "image_targets": codes.reshape(-1),
        "image_weights": np.ones(P * GROUPS, np.float32),
    }


def loss(model, batch, key):
    return grouped.loss(model, batch, key, groups=GROUPS, chunk=8)


def trajectory(sizes: dict[str, int] | None, steps: int = 10) -> list[float]:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, 0.9, 0.95))
    graphdef = nnx.split(ScannedJanus(DEBUG, ShapesOnly()))[0]
    state = split_state(stack(random_params(DEBUG)), PARTS, optimizer)
    devices = jax.devices() if sizes else jax.devices()[:1]
    mesh = make_mesh(sizes or {"fsdp": 1}, devices)
    places = state_shardings(state, mesh)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    state, data = jax.device_put(state, places), jax.device_put(batch(), rows)
    step, losses = make_step(graphdef, loss, optimizer, 0, places), []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = step(state, data)
            losses.append(float(metrics["loss"]))
    return losses


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return trajectory(None)


@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 8},
        {"fsdp": 4, "tensor": 2},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"sequence": 2, "fsdp": 4},
    ],
    ids=str,
)
def test_every_mesh_takes_the_steps_of_one_device(alone, sizes):
    losses = trajectory(sizes)
    np.testing.assert_allclose(losses[0], alone[0], rtol=1e-5)
    np.testing.assert_allclose(losses, alone, rtol=1e-4)
    assert alone[-1] < alone[0]


def test_stacking_is_undone():
    params = random_params(DEBUG)
    flat = dict(nnx.to_flat_state(params))
    again = dict(nnx.to_flat_state(unstack(stack(params))))
    assert set(again) == {path for path in flat if path[0] != "vq"}
    for path, variable in again.items():
        assert jnp.array_equal(variable.get_value(), flat[path].get_value())
        assert variable.get_metadata("axes") == flat[path].get_metadata("axes")
