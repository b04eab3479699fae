"""The train step over meshes: one loss, one set of gradients, one trajectory, on every layout."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from janus_jax.functional import flat_params
from tests.train.runs import tiny
from train.mesh import training_mesh
from train.optim import make_optimizer
from train.scanned import unstack
from train.state import abstract_state, create_params, first_state, state_shardings
from train.step import make_step
from train.task import make_task

STEPS = 10
MESHES = {
    "fsdp": "fsdp=8",
    "fsdp and tensor": "fsdp=4,tensor=2",
    "data, fsdp and tensor": "data=2,fsdp=2,tensor=2",
    "sequence": "sequence=2,fsdp=4",
}


class Trained:
    """Some steps of stage 3, with the same samples and weights whatever the mesh."""

    def __init__(self, mesh: str, tokenizer: nnx.State, steps: int = STEPS, **changes):
        config = tiny("emoji-stage3", mesh=mesh, batch_size=40, length=128, **changes)
        where = training_mesh(mesh)
        task = make_task(config, where, Path("unused"))
        optimizer = make_optimizer(config.optimizer, STEPS)
        like = abstract_state(task.abstract, config.trainable, optimizer)
        places = state_shardings(like, where)
        params = create_params(task.init, 0, nnx.State({}), places.params)
        state = first_state(params, config.trainable, optimizer, places)
        feed = task.feed(tokenizer, "train")
        step = make_step(
            task.graphdef,
            task.loss,
            optimizer,
            0,
            shardings=places,
            accumulate=config.accumulate,
        )
        self.places, self.losses, self.tokens = places, [], []
        with jax.set_mesh(where):
            for i in range(steps):
                state, metrics = step(state, feed.place(feed.read(i)))
                if not i:
                    # The first moment after one step is a tenth of the clipped gradient.
                    moments = state.opt_state[1][0].mu
                    self.gradients = {
                        k: np.asarray(v) for k, v in flat_params(unstack(moments)).items()
                    }
                self.losses.append(float(metrics["loss"]))
                self.tokens.append(float(metrics["generation_tokens"]))
        self.state = state


@pytest.fixture(scope="module")
def tokenizer(model) -> nnx.State:
    return nnx.split(model.vq)[1]


@pytest.fixture(scope="module")
def alone(tokenizer) -> Trained:
    return Trained("fsdp=1", tokenizer)


def assert_same(found: Trained, alone: Trained) -> None:
    np.testing.assert_allclose(found.losses[0], alone.losses[0], rtol=1e-5)
    np.testing.assert_allclose(found.losses, alone.losses[: len(found.losses)], rtol=1e-4)
    assert found.tokens == alone.tokens[: len(found.tokens)]
    largest = max(float(np.abs(g).max()) for g in alone.gradients.values())
    for path, want in alone.gradients.items():
        # Keys' biases have no gradient but rounding: softmax does not see them.
        scale = max(float(np.abs(want).max()), 1e-5 * largest)
        np.testing.assert_allclose(
            found.gradients[path], want, atol=2e-4 * scale, rtol=1e-3, err_msg=path
        )


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_every_mesh_takes_the_steps_of_one_device(alone, tokenizer, mesh):
    found = Trained(mesh, tokenizer)
    assert_same(found, alone)
    assert alone.losses[-1] < alone.losses[0]
    # What the step returns lies where it lay: no axis is lost on the way.
    same = jax.tree.map(lambda x, where: x.sharding == where, found.state, found.places)
    assert all(jax.tree.leaves(same))


def test_micro_steps_together_are_the_step(alone, tokenizer):
    assert_same(Trained("fsdp=2", tokenizer, steps=3, accumulate=2), alone)


def test_every_way_to_keep_activations_gives_the_same_step(alone, tokenizer):
    assert_same(Trained("fsdp=1", tokenizer, steps=2, remat="full"), alone)


def test_bfloat16_products_on_float32_masters(alone, tokenizer):
    found = Trained("fsdp=1", tokenizer, steps=2, compute_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(found.state.trainable)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found.losses, alone.losses[:2], rtol=2e-2)
    assert found.losses != alone.losses[:2]
