"""The planned step through a real compiler: that of the CPU, on two of its fake devices."""

from dataclasses import replace

import jax
import pytest

from janus_jax.nn import segments
from train.plan import hlo, program, report
from train.plan.chips import parse_topology
from train.plan.layout import Lengths
from train.plan.step import PlannedStep, plan_step
from train.presets import PRESETS

CHUNK = 32
CONFIG = replace(
    PRESETS["janus-pro-1b-stage2"],
    model="debug",
    rows=4,
    length=256,
    compute_dtype="float32",
    loss_chunk=CHUNK,
)


@pytest.fixture(scope="module")
def compiled():
    """`compiled(loss_chunk, attention_chunk)`: a step and the program that it becomes."""

    def compile(loss_chunk: int, attention_chunk: int) -> tuple[PlannedStep, hlo.Program]:
        config = replace(CONFIG, loss_chunk=loss_chunk)
        step = plan_step(config, parse_topology("v5e:2x1"), Lengths(8, 16, 24, 8))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "devices_of", lambda topology: jax.devices()[:2])
            patch.setattr(program, "compiler_options", lambda kind: None)
            patch.setattr(segments, "CHUNK", attention_chunk)
            found = program.compile_step(step)
        assert found.hbm_bytes > 0 and found.loss_temp_bytes > 0
        return step, hlo.computations(found.text)

    return compile


def test_no_program_of_a_step_has_whole_scores_or_logits(compiled):
    step, found = compiled(CHUNK, 64)
    assert step.layout.shape.text_targets > 2 * CHUNK
    assert report.needless_buffers(step, found) == {"score_buffers": [], "logit_buffers": []}


def test_scores_and_logits_that_are_made_at_once_are_found(compiled):
    step, found = compiled(10_000, 256)
    targets, words = step.layout.shape.text_targets, step.model.llm.vocab_size
    buffers = report.needless_buffers(replace(step, config=CONFIG), found)
    assert any(dims.count(256) >= 2 for dims in buffers["score_buffers"])
    assert any(targets in dims and words in dims for dims in buffers["logit_buffers"])
