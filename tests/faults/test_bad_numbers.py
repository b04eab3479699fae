"""NaN and spikes in a run: nothing of them gets into the model, and too many end the run."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.faults.jobs import STEPS, Job, go_on_to_the_end, steps_saved
from tests.train.runs import checkpoint, metrics
from train.metrics import is_evaluation


def bad_steps(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "bad_steps.jsonl").read_text().splitlines()]


def of_steps(run_dir: Path) -> list[dict]:
    """The metrics without those on held-out data, which some runs were not asked for."""
    return [record for record in metrics(run_dir) if not is_evaluation(record)]


def test_nan_in_a_step_leaves_the_model_to_the_bit_and_is_written_down(tmp_path):
    run_dir = tmp_path / "run"
    job = Job(run_dir, "--steps", "3", "--checkpoint-every", "1", at="NaN in step 3")
    assert job.ended() == 0, job.said()
    before, after = checkpoint(run_dir, 2), checkpoint(run_dir, 3)
    learned = [k for k in before if not k.startswith((".step", ".guard"))]
    assert len(learned) > 10 and any(k.startswith(".opt_state") for k in learned)
    assert [k for k in learned if before[k].tobytes() != after[k].tobytes()] == []
    assert [r["skipped"] for r in metrics(run_dir)] == [0, 0, 1]
    (bad,) = bad_steps(run_dir)
    assert bad["step"] == 3 and bad["reason"] == "the gradient's norm is nan"
    read = [json.loads(line) for line in next(tmp_path.glob("run-*/ids.jsonl")).open()]
    assert bad["samples"] == dict(read)[2] and len(bad["samples"]) == 2


def test_nan_is_passed_over_and_the_run_goes_on(whole, tmp_path):
    run_dir = tmp_path / "run"
    job = Job(run_dir, at="NaN in step 3")
    assert job.ended() == 0, job.said()
    assert [r["skipped"] for r in metrics(run_dir)] == [0, 0, 1, 1, 1, 1]
    losses, want = ([r["loss"] for r in of_steps(d)] for d in (run_dir, whole))
    assert losses[:2] == want[:2] and all(loss > 0 for loss in losses[3:])
    assert losses[3:] != want[3:]


def test_a_spike_of_the_gradient_is_skipped_and_written_down(whole, tmp_path):
    """The largest of the gradients beside those before it, with a limit that only it exceeds."""
    norms = np.array([r["grad_norm"] for r in of_steps(whole)])
    usual = [float(np.exp(np.log(norms[:i]).mean())) for i in range(1, STEPS)]
    ratios = norms[1:] / usual
    place = int(ratios.argmax())
    factor = (ratios[place] + max([1.0, *ratios[:place]])) / 2
    run_dir = tmp_path / "run"
    job = Job(run_dir, "--guard.settle", "1", "--guard.spike-factor", f"{factor:.6f}")
    assert job.ended() == 0, job.said()
    spike = bad_steps(run_dir)[0]
    assert spike["step"] == place + 2
    assert spike["usual_grad_norm"] == pytest.approx(usual[place], rel=1e-4)
    assert spike["reason"].endswith(f"{ratios[place]:.3g} times the usual")
    assert [r["skipped"] for r in metrics(run_dir)][: place + 2] == [*[0] * (place + 1), 1]


@pytest.mark.parametrize(
    ("flags", "last", "in_a_row", "reason"),
    [
        (("--guard.max-skipped", "2"), 4, 2, "the loss is inf"),
        (("--guard.policy", "stop"), 3, 1, "the gradient's norm is nan"),
    ],
    ids=["too many in a row", "policy stop"],
)
def test_nan_and_infinity_end_the_run_and_what_was_saved_goes_on(
    flags, last, in_a_row, reason, whole, tmp_path
):
    run_dir = tmp_path / "run"
    job = Job(run_dir, "--checkpoint-every", "2", *flags, at="NaN in step 3, then infinity")
    line = job.refused(status=1)
    assert line.startswith(f"step {last}: {reason}; bad steps in a row: ")
    assert f": {in_a_row}, " in line and str(run_dir / "bad_steps.jsonl") in line
    assert [bad["step"] for bad in bad_steps(run_dir)] == list(range(3, last + 1))
    # What is bad is in no checkpoint; with sound numbers the run is as if nothing had been.
    assert max(steps_saved(run_dir)) == 2
    go_on_to_the_end(run_dir, whole, "--checkpoint-every", "2")
    assert bad_steps(run_dir) == [] and metrics(run_dir)[-1]["step"] == STEPS
