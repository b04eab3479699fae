"""FLOPs and bytes against numbers worked out by hand."""

import dataclasses

import jax
import pytest

from janus_jax.config import DEBUG, JANUS_PRO_1B, JANUS_PRO_7B
from janus_jax.errors import InputError
from train.config import Mixture, TrainConfig
from train.data.packing import PackedShape
from train.plan import memory
from train.plan.chips import compiler_options, parse_topology
from train.plan.layout import Layout, Lengths, make_layout
from train.plan.report import kernel_call_flops
from train.plan.step import plan_step
from train.plan.work import layer_weights, step_work

ADAPTORS = ("aligner", "gen_aligner", "image_head", "gen_embed")
LENGTHS = Lengths(question=4, answer=6, text=12, caption=4)


def stage(*more: str, **changes) -> TrainConfig:
    fields = dict(
        name="stage",
        model="debug",
        objective="janus",
        trainable=(*ADAPTORS, *more),
        data=("d",),
        batch_size=0,
        rows=32,
        length=128,
        mixture=Mixture(understanding=1, text=1, generation=2),
        mesh="fsdp=all",
        compute_dtype="bfloat16",
        remat="qkv",
    )
    return TrainConfig(**(fields | changes))


def layout(**changes) -> Layout:
    shape = PackedShape(1, 64, 2, 16, 16, 1, 8)
    fields = dict(
        rows=32,
        length=64,
        groups=16,
        accumulate=2,
        shape=shape,
        pictures=10.0,
        drawings=20.0,
        text_targets=300.0,
        image_tokens=16,
    )
    return Layout(**(fields | changes))


def test_weights_of_a_published_layer():
    assert layer_weights(JANUS_PRO_7B) == 4 * 4096**2 + 3 * 4096 * 11008 == 202_375_168
    assert layer_weights(JANUS_PRO_1B) == 4 * 2048**2 + 3 * 2048 * 5632 == 51_380_224


def test_every_part_of_the_work_of_the_second_stage():
    parts = step_work(stage("llm"), DEBUG, layout()).parts
    layer = 4 * 48 * 48 + 3 * 48 * 80
    assert parts["layers"] == 6 * 2 * layer * 32 * 64
    assert parts["text head"] == 6 * 48 * 2048 * 300
    assert parts["image head"] == 6 * (48 * 48 + 48 * 64) * 20 * 16
    # Frozen, and nothing before it trains: forward only.
    assert parts["vision"] == 2 * (2 * (4 * 32**2 + 2 * 32 * 64) + 3 * 4**2 * 32) * 10 * 16
    assert parts["aligner"] == 6 * (32 * 48 + 48 * 48) * 10 * 16
    assert parts["code aligner"] == 6 * (8 * 48 + 48 * 48) * 20 * 16


def test_the_first_stage_makes_no_gradient_of_the_frozen_weights():
    first = step_work(stage(), DEBUG, layout())
    second = step_work(stage("llm"), DEBUG, layout())
    assert first.parts["layers"] == second.parts["layers"] * 4 / 6
    assert first.parts["text head"] == second.parts["text head"] * 4 / 6
    assert first.attention == second.attention


def test_the_third_stage_trains_the_tower():
    second = step_work(stage("llm"), DEBUG, layout()).parts
    third = step_work(stage("llm", "vision"), DEBUG, layout()).parts
    assert third == second | {"vision": 3 * second["vision"]}


def test_attention_is_half_a_square_forward_and_twice_that_backward():
    assert step_work(stage("llm"), DEBUG, layout()).attention == (
        3 * 4 * 2048 * 64 / 2 * 3 * 16 * 2
    )


@pytest.fixture(scope="module")
def planned():
    return plan_step(stage("llm"), parse_topology("v5e:4x4"), LENGTHS)


def test_state_of_a_device(planned):
    """Widths of 48 and 32 divide by 16; norms, biases and what has no rule are whole everywhere."""
    places = planned.shardings
    trained = memory.device_bytes(planned.state.trainable, places.trainable)
    moments = memory.device_bytes(planned.state.opt_state, places.opt_state)
    # Two moments of all that trains, and the counters of steps.
    assert moments == 2 * trained + 4 * len(
        [x for x in jax.tree.leaves(planned.state.opt_state) if x.ndim == 0]
    )
    embed = planned.shardings.trainable["llm"]["embed"]["embedding"].get_value()
    assert embed.shard_shape((2048, 48)) == (2048, 3)


def test_activations_kept_by_the_layers(planned):
    """2 layers and a row of 128 tokens; bfloat16."""
    kept = {
        remat: memory.activations(planned.config, DEBUG, planned.layout, planned.sizes, remat)
        for remat in ("full", "qkv", "minimal")
    }
    tokens = 2 * 128 * planned.layout.shape.rows
    # Queries, keys and values.
    assert kept["qkv"] - kept["full"] == tokens * 3 * 48 * 2
    # What attention gives, the sums of its softmax in float32, its projection, and the MLP's two.
    assert kept["minimal"] - kept["qkv"] == tokens * (48 * 2 + 3 * 4 + 48 * 2 + 2 * 80 * 2)


def test_a_tensor_axis_splits_what_heads_and_mlp_keep():
    config = stage("llm", mesh="fsdp=2,tensor=2", model="emoji")
    planned = plan_step(config, parse_topology("v5p:2x2x1"), LENGTHS)
    whole = plan_step(
        dataclasses.replace(config, mesh="fsdp=4"), parse_topology("v5p:2x2x1"), LENGTHS
    )
    split = memory.activations(config, planned.model, planned.layout, planned.sizes, "qkv")
    plain = memory.activations(config, planned.model, planned.layout, planned.sizes, "full")
    alone = memory.activations(config, whole.model, whole.layout, whole.sizes, "qkv")
    tokens = 4 * 128
    assert split - plain == tokens * planned.layout.shape.rows * 3 * 128 * 2
    assert alone > split / 2


def test_the_batch_has_the_rows_of_the_preset(planned):
    packed = planned.layout
    assert packed.groups * packed.accumulate * packed.shape.rows == 32
    assert planned.batch["tokens"].shape == (32, 128)
    assert planned.batch["text_weights"].keys() == {"understanding", "text"}
    # 1:1:2, so that half of the samples are drawn; capacities are those of the fullest group.
    assert packed.drawings == pytest.approx(2 * packed.pictures)
    assert packed.shape.drawings * packed.groups >= packed.drawings


def test_micro_steps_are_the_first_axis():
    config = stage("llm", accumulate=2)
    batch = plan_step(config, parse_topology("v5e:4x4"), LENGTHS).batch
    assert batch["tokens"].shape == (2, 16, 128)
    assert batch["tokens"].sharding.shard_shape((2, 16, 128)) == (2, 1, 128)


def test_lengths_that_attention_cannot_take_are_refused():
    with pytest.raises(InputError, match=r"--length 96 .*multiples of 128"):
        plan_step(stage(length=96), parse_topology("v5e:4x4"), LENGTHS)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"--rows 24.*16 devices.*a multiple of 16"):
        make_layout(stage(rows=24), DEBUG, 16, LENGTHS)


def test_samples_longer_than_a_row_are_refused():
    with pytest.raises(InputError, match=r"--rows 32 and --length 16 hold no sample"):
        make_layout(stage(length=16), DEBUG, 16, LENGTHS)


@pytest.mark.parametrize("text", ["v5p", "v5p:4", "v5p:4x0x4", "h100:8x8", "v5p:4x4x4x4"])
def test_topologies_that_are_none(text):
    with pytest.raises(InputError, match="v5p:4x4x4 or v5e:16x16"):
        parse_topology(text)


def test_a_chip_with_two_devices():
    pod = parse_topology("tpu7x:4x4x4")
    assert (pod.chips, pod.devices) == (64, 128)
    assert pod.hbm_bytes == 96 * 1024**3


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("splash_mha_fwd_segmented_residuals", 2),
        ("splash_mha_dq_segmented_no_residuals", 3),
        ("splash_mha_dkv_segmented_no_residuals", 4),
    ],
)
def test_attention_kernels(planned, name, products):
    """Rows of 128 are one block: all of the square."""
    rows = planned.layout.shape.rows
    assert kernel_call_flops(planned, name) == products * 2 * 128 * 128 * 16 * 3 * rows


def test_other_kernels_are_not_guessed(planned):
    with pytest.raises(ValueError, match="no attention kernel"):
        kernel_call_flops(planned, "flash_attention")


def test_compiler_options_go_by_the_kind_of_device():
    assert compiler_options("TPU v5")["xla_tpu_prefer_async_allgather_to_allreduce"] == "true"
    assert compiler_options("cpu") == {}
