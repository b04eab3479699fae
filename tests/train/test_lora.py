"""LoRA: nothing at first, a merged matrix afterwards, and only its own parameters train."""

import dataclasses
import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from janus_jax.config import DEBUG
from janus_jax.errors import InputError
from janus_jax.functional import flat_params
from tests.debug_model import random_params
from tests.train.runs import tiny
from train import loop
from train.config import LoraConfig, TrainConfig
from train.lora import LORA, abstract_lora, init_lora, to_layers
from train.mesh import training_mesh
from train.optim import make_optimizer
from train.scanned import stack
from train.state import abstract_state, state_shardings
from train.task import Task, make_task

RANK, ALPHA = 4, 12.0
LORA_CONFIG = LoraConfig(RANK, ALPHA)
BASE = tiny("emoji-stage3", length=128, code_noise=0.0)
CONFIG = dataclasses.replace(BASE, trainable=("llm",), lora=LORA_CONFIG)


def task_of(config: TrainConfig) -> Task:
    return make_task(config, training_mesh("fsdp=1"), Path("unused"))


@pytest.fixture(scope="module")
def base() -> nnx.State:
    return stack(random_params(DEBUG))


@pytest.fixture(scope="module")
def lora() -> nnx.State:
    """First values, and B no longer zero."""
    made = init_lora(DEBUG, LORA_CONFIG, jax.random.key(1))
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(2), x.shape), made)


@pytest.fixture(scope="module")
def losses(model):
    """`losses(task, params)`: the sums of one real batch."""
    tokenizer = nnx.split(model.vq)[1]
    feed = task_of(BASE).feed(tokenizer, "train")
    batch = feed.place(feed.read(0))

    def compute(task: Task, params: nnx.State) -> dict[str, np.ndarray]:
        def run(params, batch):
            return task.loss(nnx.merge(task.graphdef, params), batch, jax.random.key(0))

        return {k: np.asarray(total) for k, (total, _) in jax.jit(run)(params, batch).items()}

    return compute


def test_at_first_nothing_is_added_to_the_bit(base, losses):
    first = init_lora(DEBUG, LORA_CONFIG, jax.random.key(0))
    assert all(not pair["b"].get_value().any() for pair in first.values())
    assert all(pair["a"].get_value().std() > 0.05 for pair in first.values())
    plain = losses(task_of(BASE), base)
    adapted = losses(task_of(CONFIG), nnx.State({**base, LORA: first}))
    assert set(plain) == {"loss", "understanding_loss", "text_loss", "generation_loss"}
    assert all(np.array_equal(adapted[k], plain[k]) for k in plain)


def test_merged_matrices_are_those_beside_them(base, lora, losses):
    params = nnx.State({**base, LORA: lora})
    whole = stack(to_layers(params, LORA_CONFIG))
    adapted, after = losses(task_of(CONFIG), params), losses(task_of(BASE), whole)
    plain = losses(task_of(BASE), base)
    for name, value in after.items():
        np.testing.assert_allclose(adapted[name], value, rtol=1e-5)
        assert abs(value / plain[name] - 1) > 1e-3


def test_merging_adds_to_the_chosen_kernels_alone(base, lora):
    chosen = LoraConfig(RANK, ALPHA, ("q", "down"))
    some = nnx.State({name: lora[name] for name in chosen.targets})
    before = flat_params(base)
    after = flat_params(stack(to_layers(nnx.State({**base, LORA: some}), chosen)))
    assert before.keys() == after.keys()
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    assert changed == {"llm/layers/0/attn/q/kernel", "llm/layers/0/mlp/down/kernel"}
    a, b = (np.asarray(lora["q"][key].get_value(), np.float64) for key in ("a", "b"))
    want = np.asarray(before["llm/layers/0/attn/q/kernel"]) + a @ b * (ALPHA / RANK)
    np.testing.assert_allclose(after["llm/layers/0/attn/q/kernel"], want, atol=1e-6)
    kept = jnp.bfloat16(before["llm/layers/0/attn/q/kernel"])
    low = nnx.State({**base, LORA: some})
    low["llm"]["layers"][0]["attn"]["q"]["kernel"].set_value(kept)
    attn = to_layers(low, chosen)["llm"]["layers"][0]["attn"]
    assert attn["q"]["kernel"].dtype == jnp.float32


def test_a_task_s_layers_are_merged(base, lora):
    found = flat_params(task_of(CONFIG).to_layers(nnx.State({**base, LORA: lora})))
    want = flat_params(to_layers(nnx.State({**base, LORA: lora}), LORA_CONFIG))
    assert found.keys() == want.keys() and "llm/layers/1/mlp/up/kernel" in found
    assert all(np.array_equal(found[k], want[k]) for k in want)


def live() -> int:
    """Bytes of all arrays of this process."""
    return sum(x.nbytes for x in jax.live_arrays())


def test_merging_holds_one_matrix_at_a_time(base, lora):
    """Beside what is kept; all of them at once would be several times the weights."""
    params = nnx.State({**base, LORA: lora})
    largest = max(x.nbytes for x in jax.tree.leaves(to_layers(params, LORA_CONFIG)))
    gc.collect()
    before, more = live(), []

    def leaf(make):
        array = make()
        more.append(live() - before)
        del array

    to_layers(params, LORA_CONFIG, leaf)
    assert len(more) > 60 and 0 < max(more) <= largest


def test_what_a_run_leaves_is_merged_as_it_is_written(base, lora):
    params = nnx.State({**base, LORA: lora})
    want = flat_params(to_layers(params, LORA_CONFIG))
    gc.collect()
    before = live()
    found = flat_params(to_layers(params, LORA_CONFIG, loop.later))
    assert live() <= before
    assert found.keys() == want.keys()
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (want[name].shape, want[name].dtype)
        assert np.array_equal(np.asarray(tensor), want[name])


def test_only_low_rank_matrices_have_gradients_and_optimizer_state():
    task = task_of(CONFIG)
    optimizer = make_optimizer(CONFIG.optimizer, 1)
    state = abstract_state(task.abstract, CONFIG.trained_children(), optimizer)
    assert set(state.trainable) == {LORA}
    assert set(state.frozen) == {"aligner", "gen_aligner", "gen_embed", "image_head", "llm"} | {
        "vision"
    }
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(state.trainable))
    with_heads = dataclasses.replace(CONFIG, trainable=("llm", "image_head"))
    assert with_heads.trained_children() == (LORA, "image_head", "text_tower")
    # Without a rank the language model trains itself.
    assert dataclasses.replace(CONFIG, lora=LoraConfig()).trained_children()[0] == "llm"


def test_held_out_samples_get_no_noise(base, losses):
    """So their loss can be compared between runs with any noise and batch size."""
    noisy = task_of(dataclasses.replace(BASE, code_noise=0.9))
    plain, held, trained = (
        losses(task, base)
        for task in (
            task_of(BASE),
            dataclasses.replace(noisy, loss=noisy.heldout_loss),
            noisy,
        )
    )
    assert np.array_equal(held["generation_loss"], plain["generation_loss"])
    assert not np.array_equal(trained["generation_loss"], plain["generation_loss"])


def test_what_does_not_train_is_kept_in_the_compute_dtype():
    def dtypes(config: TrainConfig) -> dict[str, set]:
        shapes = task_of(config).abstract
        return {part: {x.dtype for x in jax.tree.leaves(shapes[part])} for part in shapes}

    half = dataclasses.replace(CONFIG, compute_dtype="bfloat16", trainable=("llm", "aligner"))
    wide, narrow = {jnp.dtype("float32")}, {jnp.dtype("bfloat16")}
    frozen = ("llm", "vision", "gen_aligner", "gen_embed", "image_head")
    assert dtypes(half) == {LORA: wide, "aligner": wide} | dict.fromkeys(frozen, narrow)
    assert half.stored_dtype("vq") == "float32"
    # Without LoRA nearly everything trains, and masters are float32.
    whole = dataclasses.replace(half, lora=LoraConfig())
    assert set.union(*dtypes(whole).values()) == wide


def test_matrices_are_split_as_their_kernels_are():
    mesh = training_mesh("fsdp=2,tensor=2")
    task = task_of(dataclasses.replace(CONFIG, mesh="fsdp=2,tensor=2"))
    optimizer = make_optimizer(CONFIG.optimizer, 1)
    like = abstract_state(task.abstract, CONFIG.trained_children(), optimizer)
    where = state_shardings(like, mesh).trainable[LORA]
    specs = {
        name: tuple(pair[key].get_value().spec for key in ("a", "b"))
        for name, pair in where.items()
    }
    wide, narrow = PartitionSpec(None, "fsdp", None), PartitionSpec(None, None, "tensor")
    assert all(specs[name] == (wide, narrow) for name in ("q", "k", "v", "gate", "up"))
    back = PartitionSpec(None, "tensor", None), PartitionSpec(None, None, "fsdp")
    assert specs["out"] == specs["down"] == back
    shapes = abstract_lora(DEBUG, LORA_CONFIG)
    assert shapes["down"]["a"].shape == (DEBUG.llm.depth, DEBUG.llm.mlp_dim, RANK)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora": LoraConfig(-1)}, "--lora.rank -1"),
        ({"lora": LoraConfig(4, 0.0)}, "--lora.alpha 0.0"),
        ({"lora": LoraConfig(4, targets=())}, "--lora.targets"),
        ({"lora": LoraConfig(4, targets=("q", "q"))}, "--lora.targets q q"),
        ({"trainable": ("aligner",)}, "without llm"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(changes, named):
    with pytest.raises(InputError) as error:
        dataclasses.replace(CONFIG, **changes)
    assert named in str(error.value) and error.value.allowed
