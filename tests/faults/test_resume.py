"""Going on from a checkpoint that is damaged, or of another run."""

import json
import re

import numpy as np
import pytest

from tests.faults.jobs import STEPS, Job, go_on_to_the_end, steps_saved
from tests.train.runs import checkpoint
from train.checkpoints import Checkpoints


@pytest.fixture
def stopped(tmp_path):
    """A run that was killed at its fifth step, with checkpoints of the steps 3 and 4."""
    run_dir = tmp_path / "run"
    job = Job(run_dir, "--checkpoint-every", "1", at="fifth data wait")
    job.come_there()
    while steps_saved(run_dir) != [3, 4]:
        assert job.running(), job.said()
    job.kill()
    return run_dir


def test_bit_flipped_checkpoint_of_a_run_is_named_and_passed_over_only_when_asked(stopped, whole):
    data = max((stopped / "checkpoints" / "4").rglob("*"), key=lambda path: path.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    line = Job(stopped, "--checkpoint-every", "1", "--resume").refused()
    assert str(data) in line and "checksum" in line and "--fall-back" in line
    said = go_on_to_the_end(stopped, whole, "--checkpoint-every", "1", "--fall-back")
    assert "falling back" in said and "resumed from step 3" in said


def test_checkpoint_of_another_config_is_refused_with_tables_of_the_differences(stopped):
    other = ("--checkpoint-every", "1", "--trainable", "llm", "aligner", "--seed", "7")
    line = Job(stopped, *other, "--resume").refused()
    assert "seed: 0 there, 7 here; trainable: ['llm'] there, ['llm', 'aligner'] here" in line
    # Even where the record was changed by hand, the arrays tell.
    record = stopped / "config.json"
    settings = json.loads(record.read_text()) | {"trainable": ["llm", "aligner"], "seed": 7}
    record.write_text(json.dumps(settings))
    job = Job(stopped, *other, "--resume")
    line = job.refused()
    assert str(stopped / "checkpoints" / "4") in line and "arrays differ, as listed above" in line
    lines = [line for line in job.said().splitlines() if line.startswith(".")]
    rows = {name: (there, here) for name, there, here in (re.split(" {2,}", x) for x in lines)}
    (name,) = (n for n in rows if n.startswith(".frozen['aligner']") and "fc1" in n and "bias" in n)
    assert rows[name] == ("float32 [48]", "missing")
    assert rows[name.replace("frozen", "trainable")] == ("missing", "float32 [48]")


def test_a_run_goes_on_over_another_mesh(stopped, whole):
    """The same samples and, but for the order of sums, the same numbers."""
    job = Job(stopped, "--checkpoint-every", "6", "--mesh", "fsdp=2", "--resume")
    assert job.ended() == 0, job.said()
    assert "resumed from step 4" in job.said() and "on one device, 1 process" in job.said()
    found, want = checkpoint(stopped, STEPS), checkpoint(whole, STEPS)
    assert found.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-5, err_msg=name)
    assert Checkpoints(stopped / "checkpoints").record().mesh["fsdp"] == 2
