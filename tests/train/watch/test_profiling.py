"""Profiles: which steps, and that a trace is there."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import pytest

from janus_jax.errors import InputError
from train.watch.config import ProfileConfig
from train.watch.profiling import Profiler


def steps(profiler: Profiler, first: int, last: int) -> list[bool]:
    """Makes steps; whether each was traced."""
    traced = []
    for step in range(first, last + 1):
        profiler.before(step)
        traced.append(profiler._running)
        profiler.after(step, jnp.ones(8) * step)
    profiler.close()
    return traced


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The calls to JAX's profiler, which then does nothing."""
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(f"start {path}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def test_the_window_is_traced_once(calls, tmp_path):
    profiler = Profiler(ProfileConfig("3:4"), tmp_path)
    assert steps(profiler, 1, 6) == [False, False, True, True, False, False]
    assert calls == [f"start {tmp_path}", "stop"]


def test_beginning_and_writing_a_trace_is_lost_time(calls, tmp_path):
    @contextmanager
    def lost():
        calls.append("lost")
        yield
        calls.append("not lost")

    steps(Profiler(ProfileConfig("2:2"), tmp_path, lost), 1, 3)
    assert calls == ["lost", f"start {tmp_path}", "not lost", "lost", "stop", "not lost"]


def test_a_resumed_or_short_run_traces_its_part_of_the_window(calls, tmp_path):
    assert steps(Profiler(ProfileConfig("3:5"), tmp_path), 5, 7) == [True, False, False]
    assert steps(Profiler(ProfileConfig("3:9"), tmp_path), 2, 4) == [False, True, True]
    assert [call.split()[0] for call in calls] == ["start", "stop"] * 2


def test_no_window_traces_nothing(calls, tmp_path):
    assert not any(steps(Profiler(ProfileConfig(), tmp_path), 1, 3)) and calls == []


def test_a_trace_is_written(tmp_path):
    steps(Profiler(ProfileConfig("1:1"), tmp_path / "profile"), 1, 2)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size


@pytest.mark.parametrize("steps", ["5", "5:3", "0:3", "a:b", "1:2:3", "-1:2"])
def test_any_other_form_is_refused(steps):
    with pytest.raises(InputError, match=f"--profile.steps {steps}"):
        ProfileConfig(steps)
