"""`janus-jax train` in several processes: the same run as in one, however its devices are spread.

Matrix products on a CPU add up in another order for other shapes, and each process compiles its own
programs, so the numbers agree to rounding; samples and steps agree exactly.
"""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax.hosts import HostsConfig
from tests.faults.processes import forkserver
from tests.multiprocess.children import free_port
from tests.multiprocess.members import WITHIN, Members, arguments
from tests.multiprocess.programs import child, fall_back, restore, scatter
from tests.train.runs import checkpoint, metrics, params
from train.checkpoints import Checkpoints
from train.metrics import is_evaluation

pytestmark = pytest.mark.slow

# Processes, and fake devices of each.
SPREADS = {"1 x 8": (1, 8), "2 x 4": (2, 4), "4 x 2": (4, 2)}
BOTH = "fsdp=4,tensor=2"


def spread_run(
    name: str, root: Path, parts: Path | None, *flags: str, preset: str = "emoji-stage3"
) -> tuple[Path, Members]:
    """A run from its beginning to its end."""
    processes, devices = SPREADS[name]
    run_dir = root / name.replace(" ", "")
    argv = arguments(run_dir, parts, *flags, name=preset)
    members = Members(argv, root / f"{run_dir.name}-logs", processes, devices)
    assert members.ended() == [0] * processes, members.said()
    return run_dir, members


def assert_same_run(found: tuple[Path, Members], want: tuple[Path, Members]) -> None:
    for a, b in zip(metrics(found[0]), metrics(want[0]), strict=True):
        assert a.keys() == b.keys()
        for key, value in b.items():
            np.testing.assert_allclose(a[key], value, rtol=1e-6 if "loss" in key else 1e-5)
    [samples] = want[1].samples()
    assert found[1].samples() == [samples] * len(found[1].processes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, debug_dir) -> dict[str, tuple[Path, Members]]:
    root = tmp_path_factory.mktemp("spreads")
    return {name: spread_run(name, root, debug_dir, "--mesh", BOTH) for name in SPREADS}


@pytest.mark.parametrize("name", ["2 x 4", "4 x 2"])
def test_processes_times_devices_make_the_same_run(runs, name):
    assert_same_run(runs[name], runs["1 x 8"])
    (run_dir, members), (whole, _) = runs[name], runs["1 x 8"]
    # Files and lines of one process only.
    listed = {p.relative_to(run_dir).parts[0] for p in run_dir.iterdir()}
    assert listed == {p.name for p in whole.iterdir()}
    first, *others = members.said()
    assert first.count("emoji-stage3 4/4") == 1 and others == [""] * len(others)
    done = [json.loads((r / "done").read_text()) for r in (run_dir, whole)]
    assert done[0] == done[1]
    # What is handed on: parts, and a model directory.
    found, want = params(run_dir), params(whole)
    assert found.keys() == want.keys()
    for key in want:
        np.testing.assert_allclose(found[key], want[key], rtol=1e-4, atol=1e-6, err_msg=key)
    manifests = [json.loads((r / "model/manifest.json").read_text()) for r in (run_dir, whole)]
    described = [
        {k: (v["shape"], v["dtype"]) for k, v in manifest["tensors"].items()}
        for manifest in manifests
    ]
    assert described[0] == described[1]


# With text alone: the cheapest step.
LAYOUT = ("--batch-size", "16", "--checkpoint-every", "4", "--mesh")


def test_rows_over_data_and_columns_over_tensor_make_the_same_run_too(tmp_path, debug_dir):
    one, two, four = (
        spread_run(name, tmp_path, debug_dir, *LAYOUT, "data=4,tensor=2", preset="emoji-llm")
        for name in SPREADS
    )
    assert_same_run(two, one)
    assert_same_run(four, one)


def test_everything_over_fsdp_makes_the_same_run_too_from_random_weights(tmp_path):
    one, two, four = (
        spread_run(name, tmp_path, None, *LAYOUT, "fsdp=8", preset="emoji-llm") for name in SPREADS
    )
    assert_same_run(two, one)
    assert_same_run(four, one)


def test_processes_measure_draw_and_answer_together(tmp_path, debug_dir):
    flags = ("--mesh", "fsdp=2", "--batch-size", "20", "--steps", "1", "--preview-every", "1")
    sheets, answers, losses = [], [], []
    for processes in (1, 2):
        run_dir = tmp_path / f"run{processes}"
        argv = arguments(run_dir, debug_dir, *flags)
        members = Members(argv, tmp_path / f"logs{processes}", processes, 2 // processes)
        assert members.ended() == [0] * processes, members.said()
        with Image.open(run_dir / "previews/0000001.png") as sheet:
            sheets.append(np.asarray(sheet, np.int16))
        answers.append((run_dir / "previews/0000001.md").read_text())
        [held] = [r for r in metrics(run_dir) if "heldout_text_loss" in r]
        losses.append([value for key, value in held.items() if key.endswith("_loss")])
    assert answers[0].count("\n") == 2 + 2 * 8 and answers[0] == answers[1]
    # The codes are equal; sums in another order can carry a pixel over a step of 8 bits.
    assert np.abs(sheets[0] - sheets[1]).max() <= 1
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def together(work, logs: Path, processes: int, devices: int, *args: object) -> None:
    logs.mkdir()
    port = free_port()
    children = []
    for i in range(processes):
        hosts = HostsConfig(alone=True)
        if processes > 1:
            hosts = HostsConfig(f"localhost:{port}", processes, i, heartbeat_seconds=10)
        given = (work, logs / str(i), hosts, devices, *args)
        children.append(forkserver().Process(target=child, args=given))
        children[-1].start()
    for process in children:
        process.join(WITHIN)
    statuses = [process.exitcode for process in children]
    for process in children:
        process.kill()
        process.join()
    assert statuses == [0] * processes, [path.read_text() for path in sorted(logs.iterdir())]


@pytest.mark.parametrize("name", SPREADS)
def test_a_checkpoint_of_any_spread_is_restored_on_any_other(runs, name, tmp_path):
    others = [run_dir for other, (run_dir, _) in runs.items() if other != name]
    together(restore, tmp_path / "logs", *SPREADS[name], others)
    record = Checkpoints(runs[name][0] / "checkpoints").record()
    assert (record.processes, record.mesh["fsdp"], record.mesh["tensor"]) == (
        *(SPREADS[name][0], 4, 2),
    )


def test_damage_that_one_process_meets_has_all_fall_back(tmp_path):
    together(fall_back, tmp_path / "logs", 2, 1, tmp_path / "checkpoints")
    first, second = (path.read_text() for path in sorted((tmp_path / "logs").iterdir()))
    assert second == "" and first.count("falling back to the step before") == 1
    assert "checkpoints/2/state/ocdbt.process_1/" in first
    names = {path.name.split("-")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"1", "2", "damaged"}


def test_gloo_scatters_sums_right_at_the_sizes_of_these_tests(tmp_path):
    # The largest tensor of the debug model has 2,048 x 64 numbers.
    together(scatter, tmp_path / "logs", 2, 2, [1, 7, 1024, 2048 * 64])


# The cheapest step.
TEXT = ("--batch-size", "2", "--steps", "6", "--checkpoint-every", "4", "--mesh", "fsdp=all")


def text_run(
    root: Path, parts: Path, name: str, *flags: str, processes: int = 2, **how
) -> tuple[Path, Members]:
    run_dir = root / "run"
    argv = arguments(run_dir, parts, *TEXT, *flags, name="emoji-llm")
    return run_dir, Members(argv, root / name, processes, 2 // processes, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, debug_dir) -> Path:
    """A run that nothing interrupted, in two processes."""
    run_dir, members = text_run(tmp_path_factory.mktemp("whole"), debug_dir, "logs")
    assert members.ended() == [0, 0], members.said()
    return run_dir


def assert_goes_on(root: Path, parts: Path, whole: Path, processes: int, step: int) -> None:
    """The rest of a run from a step, then as one that nothing interrupted: in two, to the bit."""
    run_dir, members = text_run(root, parts, "rest", "--resume", processes=processes)
    assert members.ended() == [0] * processes, members.said()
    assert f"emoji-llm: resumed from step {step}, saved " in members.said()[0]
    found, want = checkpoint(run_dir, 6), checkpoint(whole, 6)
    assert found.keys() == want.keys()
    if processes == 2:
        assert metrics(run_dir) == metrics(whole)
        assert [key for key in want if found[key].tobytes() != want[key].tobytes()] == []
        return
    for key in want:
        np.testing.assert_allclose(found[key], want[key], rtol=1e-4, atol=1e-6, err_msg=key)
    for a, b in zip(metrics(run_dir), metrics(whole), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)


def saved(run_dir: Path) -> list[int]:
    return sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())


@pytest.mark.parametrize(
    ("at", "signalled", "flags"),
    [("step", 1, ()), ("data wait", 0, ()), ("evaluation of step 3", 0, ("--preview-every", "3"))],
    ids=["one in a step", "the other one waits for data", "in an evaluation"],
)
def test_sigterm_to_one_of_two_saves_one_step_and_ends_both(
    whole, debug_dir, tmp_path, at, signalled, flags
):
    run_dir, members = text_run(tmp_path, debug_dir, "logs", *flags, at={1: at})
    members.come_there().send(signalled, signal.SIGTERM)
    if flags:
        # None can leave an evaluation without the other, so both wait until it is made.
        time.sleep(0.5)
        assert members.running() and saved(run_dir) == []
        members.let_go()
    # Of an evaluation, the rest is still to be compiled.
    assert members.ended(120 if flags else 30) == [75, 75], members.said()
    [step] = saved(run_dir)
    assert step == 3 if flags else 2 <= step < 6
    evaluated = [record["step"] for record in metrics(run_dir) if is_evaluation(record)]
    assert evaluated == ([3] if flags else [])
    assert not Checkpoints(run_dir / "checkpoints").record().evaluation_due
    first, second = members.said()
    assert first.splitlines()[-1] == f"emoji-llm: stopped and saved at step {step}" and not second
    if not flags:
        # On the other number of processes.
        assert_goes_on(tmp_path, debug_dir, whole, 1, step)


def test_sigterm_to_one_of_two_before_the_first_step_ends_both(debug_dir, tmp_path):
    run_dir, members = text_run(tmp_path, debug_dir, "logs", at={0: "first compilation"})
    members.come_there().send(1, signal.SIGTERM)
    assert members.ended(30) == [75, 75], members.said()
    assert members.said() == ["", "stopped before the first step; nothing to save"]
    assert saved(run_dir) == []


@pytest.mark.parametrize("killed", [0, 1])
def test_kill_9_of_one_ends_the_other_and_a_restart_goes_on(whole, debug_dir, tmp_path, killed):
    run_dir, members = text_run(tmp_path, debug_dir, "logs", at={0: "fifth data wait"})
    members.come_there()
    while saved(run_dir) != [4]:
        assert members.running(), members.said()
        time.sleep(0.01)
    members.send(killed, signal.SIGKILL)
    statuses = members.ended(60)
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] not in (None, 0), members.said()
    assert_goes_on(tmp_path, debug_dir, whole, 2, 4)


def test_an_unusable_run_is_refused_once_and_by_all(debug_dir, tmp_path):
    _, members = text_run(tmp_path, debug_dir, "logs", flags={1: ["--seed", "1"]})
    assert members.ended(60) == [2, 2], members.said()
    [line] = [line for said in members.said() for line in said.splitlines()]
    assert "is not what process 0 has made of it; allowed: a directory that all hosts share" in line


def test_a_run_that_is_there_is_refused_once_and_by_all(whole, debug_dir):
    argv = arguments(whole, debug_dir, *TEXT, name="emoji-llm")
    members = Members(argv, whole.parent / "refused", 2, 1)
    assert members.ended(60) == [2, 2], members.said()
    [line] = [line for said in members.said() for line in said.splitlines()]
    assert line.startswith(f"janus-jax: error: --run-dir {whole} already holds a run")
