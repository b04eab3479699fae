"""`janus-jax plan` from the command line, without the TPU compiler."""

import json

import jax
import pytest

from janus_jax.cli.main import run
from janus_jax.config import JANUS_PRO_7B
from train.plan import libtpu, memory, program, report
from train.plan.chips import parse_topology
from train.plan.layout import Lengths
from train.plan.step import PlannedStep, plan_step
from train.presets import PRESETS

GB = 1024**3
# Of item 6 of the plan: what --compile --json must have.
COMPILED = {
    "estimated_cycles",
    "model_flops_per_device",
    "modelled_dense_mfu",
    "modelled_mfu",
    "modelled_step_seconds",
    "dot_flops_over_model_flops",
    "hbm_bytes_per_device",
    "hbm_capacity_bytes",
    "loss_temp_bytes",
    "collective_bytes",
    "async_collective_fraction",
    "compile_seconds",
    "tokens_per_step",
    "largest_replicated_param_bytes",
    "dot_flops_per_token",
    "optimizer_bytes",
}


def test_the_published_second_stage_of_the_7b(capsys):
    assert run(["plan", "janus-pro-7b-stage2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["topology"] == "v5p:4x4x4" and figures["mesh"] == {"fsdp": 64}
    assert figures["tokens_per_step"] == 512 * 4096
    # 6 FLOPs for each of 30 layers' 202,375,168 weights and each token, before heads and encoders.
    layers = 6 * 30 * 202_375_168 * 512 * 4096
    assert figures["flops_per_step_by_part"]["layers"] == layers
    assert 1.0 < figures["flops_per_step"] / layers < 1.1
    assert figures["model_flops_per_device"] == figures["flops_per_step"] / 64
    seconds = figures["flops_per_step"] / (0.5 * 64 * 459e12)
    assert figures["days_at_assumed_mfu"] == pytest.approx(270_000 * seconds / 86_400)
    # Float32 masters and two moments of what trains, an even share each but for what is small.
    memory = figures["estimated_bytes_per_device"]
    assert memory["parameters"] == pytest.approx(4 * figures["parameters"] / 64, rel=0.05)
    assert memory["optimizer"] == pytest.approx(8 * figures["trainable_parameters"] / 64, rel=0.05)
    assert memory["total"] < figures["hbm_capacity_bytes"] == 95 * GB and figures["fits"]
    kept = figures["activation_bytes_by_remat"]
    assert kept["full"] < kept["qkv"] < kept["context"] < kept["minimal"] < kept["none"]


def planned(name: str, topology: str) -> PlannedStep:
    return plan_step(PRESETS[name], parse_topology(topology), Lengths())


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("janus-pro-1b-stage1", "v5e:16x16"),
        ("janus-pro-1b-stage3", "v5e:16x16"),
        ("janus-pro-7b-stage1", "v5p:4x4x4"),
        ("janus-pro-7b-stage3", "v5p:4x4x4"),
    ],
)
def test_no_parameter_above_1_mb_is_whole_everywhere(name, topology):
    step = planned(name, topology)
    assert memory.largest_replicated(step.state, step.shardings) <= 1e6


@pytest.mark.parametrize(
    ("model", "topology"), [("janus-pro-1b", "v5e:16x16"), ("janus-pro-7b", "v5p:4x4x4")]
)
def test_the_first_stage_keeps_little_optimizer_state(model, topology):
    def moments(stage: int) -> int:
        state = planned(f"{model}-stage{stage}", topology).state
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))

    assert moments(1) <= 0.03 * moments(2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["janus-pro-7b-stage4"], "did you mean janus-pro-7b-stage"),
        (["emoji-vq"], "unknown preset 'emoji-vq'"),
        (["janus-pro-1b-stage1", "--topology", "a100:8"], "--topology a100:8"),
        (["janus-pro-1b-stage1", "--mfu", "50"], "--mfu 50.0; allowed: above 0, at most 1"),
        (["janus-pro-1b-stage1", "--mesh", "fsdp=8"], "has 8 places for 256 devices"),
        (["janus-pro-1b-stage1", "--dump-hlo", "d"], "add --compile"),
        (["janus-pro-1b-stage1", "--rows", "100"], "a multiple of 256"),
    ],
)
def test_unusable_arguments(capsys, args, message):
    assert run(["plan", *args]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err


def test_without_the_compiler_it_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(libtpu, "installed", lambda: False)
    assert run(["plan", "janus-pro-1b-stage2", "--compile", "--json"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ".venv-tpu/bin/janus-jax plan janus-pro-1b-stage2 --compile --json" in err


def test_help_lists_the_presets(capsys):
    assert run(["plan", "--help"]) == 0
    out = capsys.readouterr().out
    assert "janus-pro-7b-stage2" in out and "emoji-vq" not in out


PROGRAM = """\
HloModule jit_step

%body (p: bf16[8]) -> bf16[8] {
  %f.1 = bf16[8] fusion(%p), kind=kLoop, calls=%c, backend_config={"estimated_cycles":"1000000"}
  %splash_mha_fwd_segmented_residuals.1 = (bf16[8]) custom-call(%p), \
custom_call_target="tpu_custom_call"
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %while.1 = (bf16[8]) while(%p), condition=%d, body=%body, \
backend_config={"known_trip_count":{"n":"30"}}
}
"""


def test_figures_of_a_compiled_program():
    step = planned("janus-pro-7b-stage2", "v5p:4x4x4")
    figures = report.compiled_figures(step, program.CompiledStep(PROGRAM, 30 * 10**9, 10**8, 60.0))
    assert figures.keys() >= COMPILED
    assert figures["estimated_cycles"] == 30_000_000
    seconds = 30e6 / 1.75e9
    per_device = figures["model_flops_per_device"]
    assert figures["modelled_dense_mfu"] == pytest.approx(per_device / (459e12 * seconds))
    # 2 rows of 4096 in blocks of 1024: ten of sixteen blocks, two products of 32 heads of 128.
    kernel = 30 * 2 * 2 * (4096**2 * 10 / 16) * 128 * 32 * step.layout.shape.rows
    assert JANUS_PRO_7B.llm.num_heads == 32
    assert figures["custom_call_seconds"] == pytest.approx(kernel / (report.KERNEL_RATE * 459e12))
    assert figures["modelled_step_seconds"] == seconds + figures["custom_call_seconds"]
    assert figures["async_collective_fraction"] == 1 and figures["dot_flops_per_token"] == 0
    assert not figures["score_buffers"] and not figures["logit_buffers"]
    whole = report.abstract_figures(step, 0.5) | figures
    assert report.fits(whole) and "modelled dense MFU" in report.text(whole)
    assert not report.fits(whole | {"hbm_bytes_per_device": 200 * GB})
    assert "214.7 GB" in report.refusal(step, whole | {"hbm_bytes_per_device": 200 * GB})
