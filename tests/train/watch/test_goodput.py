"""The account of a run's time, with clocks that are set by hand."""

import json

import pytest

from train.watch.goodput import Goodput


class Time:
    """Two clocks that show the same seconds."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def time() -> Time:
    return Time()


def start(path, time) -> Goodput:
    return Goodput(path, clock=time, now=time)


def test_every_second_belongs_to_one_cause(tmp_path, time):
    goodput = start(tmp_path / "goodput.json", time)
    time.passes(3)
    with goodput.lost("compile"):
        time.passes(5)
    goodput.stepping()
    time.passes(10)
    with goodput.lost("data_wait"):
        time.passes(1)
    with goodput.lost("data_wait", unless=lambda: True):
        time.passes(4)
    with goodput.lost("evaluation"):
        time.passes(2)
    time.passes(6)
    goodput.write(7)
    found = json.loads((tmp_path / "goodput.json").read_text())
    assert found["productive_seconds"] == 20
    assert found["lost_seconds"] == {"compile": 5, "data_wait": 1, "evaluation": 2, "init": 3}
    assert found["goodput"] == round(20 / 31, 4)
    assert (found["starts"], found["step"], found["down_seconds"]) == (1, 7, 0)


def run(path, time, *, first: int, last: int, save_at: tuple[int, ...], down: float = 0) -> None:
    """Steps of two seconds each, saves of one; then the process is gone."""
    time.passes(down)
    goodput = start(path, time)
    if first:
        goodput.resumed(first)
    time.passes(3)
    goodput.stepping()
    for step in range(first + 1, last + 1):
        time.passes(2)
        if step in save_at:
            with goodput.lost("checkpoint"):
                time.passes(1)
            goodput.saved(step)
        else:
            goodput.write(step)


def test_steps_that_are_made_again_are_lost(tmp_path, time):
    path = tmp_path / "goodput.json"
    run(path, time, first=0, last=7, save_at=(2, 4))
    run(path, time, first=4, last=9, save_at=(6, 8), down=100)
    # The newest checkpoint was damaged, so the run fell back to the one before.
    run(path, time, first=6, last=10, save_at=(8, 10), down=50)
    found = json.loads(path.read_text())
    assert found["productive_seconds"] == 20
    assert found["lost_seconds"] == {"checkpoint": 6, "init": 9, "repeated_steps": 12}
    assert (found["down_seconds"], found["starts"], found["step"]) == (150, 3, 10)
    assert found["goodput"] == round(20 / 47, 4)


def test_a_run_that_saved_nothing_begins_again(tmp_path, time):
    path = tmp_path / "goodput.json"
    run(path, time, first=0, last=3, save_at=())
    goodput = start(path, time)
    goodput.resumed(0)
    assert goodput.summary()["lost_seconds"] == {"init": 3, "repeated_steps": 6}
    assert goodput.summary()["productive_seconds"] == 0


def test_a_cause_ends_with_an_error_too(tmp_path, time):
    goodput = start(tmp_path / "goodput.json", time)
    with pytest.raises(KeyError), goodput.lost("checkpoint"):
        time.passes(2)
        raise KeyError
    time.passes(1)
    goodput.stepping()
    assert goodput.summary()["lost_seconds"] == {"checkpoint": 2, "init": 1}


@pytest.mark.parametrize("content", ["", "[]", '{"starts": '])
def test_a_damaged_file_is_begun_again(tmp_path, time, content):
    path = tmp_path / "goodput.json"
    path.write_text(content)
    goodput = start(path, time)
    goodput.write(0)
    assert json.loads(path.read_text())["starts"] == 1
