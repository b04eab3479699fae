"""The metrics file and the progress lines."""

import json

import jax.numpy as jnp
import numpy as np

from train.metrics import MetricsLog, forget_after, last_step


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_written_one_call_late_and_all_at_the_end(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, steps=100, start=0, title="a-run")
    log.add(20, {"loss": jnp.asarray(1.5)})
    assert records(path) == []
    log.add(40, {"loss": jnp.asarray(0.25)})
    assert [r["step"] for r in records(path)] == [20]
    log.write({"step": 40, "heldout_loss": 2.0})
    log.close()
    first, heldout, second = records(path)
    assert first["loss"] == 1.5 and second["loss"] == 0.25
    assert set(first) == {"step", "steps_per_second", "loss"} and first["steps_per_second"] > 0
    assert heldout == {"step": 40, "heldout_loss": 2.0}
    # Not a terminal here: plain lines, and nothing on stdout.
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("a-run 20/100  loss 1.5  ") and lines[0].endswith(" min left")
    assert len(lines) == 2


def test_a_resumed_run_forgets_the_steps_it_makes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 2, "loss": 1}\n{"step": 4, "loss": 2}\n{"step": 4, "heldout_loss": 2}\n'
    path.write_text(kept + '{"step": 6, "loss": 3}\n{"step": 8, "lo')
    log = MetricsLog(path, steps=8, start=4, title="a-run")
    log.add(6, {"loss": jnp.asarray(9.0)})
    log.close()
    assert path.read_text().startswith(kept)
    assert [r["step"] for r in records(path)] == [2, 4, 4, 6]
    assert records(path)[-1]["loss"] == 9.0


def test_a_resumed_run_forgets_an_evaluation_that_it_makes_up(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 2, "heldout_loss": 1}\n{"step": 4, "loss": 2}\n'
    path.write_text(kept + '{"step": 4, "heldout_loss": 2}\n')
    MetricsLog(path, steps=8, start=4, keep_evaluation=False, title="a-run").close()
    assert path.read_text() == kept


def test_half_a_line_of_an_early_step_goes_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\nnot json\n{"step": 4}')
    forget_after(path, 10)
    assert path.read_text() == '{"step": 2}\n'
    forget_after(tmp_path / "missing", 10)


class Remembers:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.told = []

    def scalars(self, step, values):
        self.told.append((step, dict(values)))

    def samples(self, step, sheet, texts):
        self.told.append((step, sheet.shape, texts))

    def close(self):
        self.told.append("closed")


def test_loggers_are_told_the_same_numbers(tmp_path):
    path, logger = tmp_path / "metrics.jsonl", Remembers()
    log = MetricsLog(path, steps=8, start=0, title="a-run", loggers=[logger])
    log.add(2, {"loss": jnp.asarray(1.5)})
    log.write({"step": 2, "heldout_loss": 2.0})
    log.samples(2, np.zeros((4, 4, 3), np.uint8), {"prompts": ["a cat"]})
    log.close()
    held_out, pictures, scalars, closed = logger.told
    assert held_out == (2, {"heldout_loss": 2.0})
    assert pictures == (2, (4, 4, 3), {"prompts": ["a cat"]})
    assert scalars[0] == 2 and scalars[1]["loss"] == 1.5 and "step" not in scalars[1]
    assert closed == "closed"


def test_numbers_that_are_not_finite_leave_the_file_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, steps=8, start=0, title="a-run")
    log.add(2, {"loss": jnp.asarray(jnp.nan), "grad_norm": jnp.asarray(jnp.inf)})
    log.close()
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    (record,) = records(path)
    assert record["loss"] is None and record["grad_norm"] is None


def test_the_last_step_of_a_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text('{"step": 0, "heldout_loss": 1}\n{"step": 7, "loss": 1}\n{"step": 9')
    assert last_step(path) == 7
