"""Bad numbers: what counts as bad, that a bad step changes nothing, and when the run ends."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from janus_jax.errors import InputError, RunFailed
from train.guard import BadSteps, choose, first_guard, judge, report
from train.watch.config import GuardConfig

NAN, INF = float("nan"), float("inf")
CONFIG = GuardConfig(spike_factor=4.0, memory=8, settle=3, max_skipped=3)


@jax.jit
def step(guard, loss, norm):
    return judge(guard, loss, norm, CONFIG)


def judged(norms, losses=None):
    """Whether each step is good, and the guard after the last one."""
    guard, verdicts = first_guard(), []
    for norm, loss in zip(norms, losses or [1.0] * len(norms), strict=True):
        good, guard = step(guard, jnp.float32(loss), jnp.float32(norm))
        verdicts.append(bool(good))
    return verdicts, guard


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, INF)])
def test_numbers_that_are_not_finite_are_bad_from_the_first_step(loss, norm):
    verdicts, guard = judged([norm, 1.0], [loss, 1.0])
    assert verdicts == [False, True]
    assert (int(guard.skipped), int(guard.in_a_row), int(guard.good)) == (1, 0, 1)


def test_a_norm_far_above_the_usual_is_a_spike_once_the_run_has_settled():
    assert judged([1, 100, 1])[0] == [True, True, True]
    assert judged([1, 1, 1, 3.9, 1, 6.0, 1])[0] == [True] * 5 + [False, True]
    # A bad step does not move what is usual, so the one after it is judged alike.
    assert judged([1, 1, 1, 9, 9])[0] == [True, True, True, False, False]


def test_the_usual_norm_is_a_geometric_mean_that_forgets():
    norms = np.exp(np.random.default_rng(0).normal(size=40))
    config = GuardConfig(spike_factor=0, memory=8)
    guard = first_guard()
    for norm in norms[:8]:
        _, guard = judge(guard, jnp.float32(1), jnp.float32(norm), config)
    np.testing.assert_allclose(guard.log_norm, np.log(norms[:8]).mean(), rtol=1e-5)
    want = float(guard.log_norm)
    for norm in norms[8:]:
        good, guard = judge(guard, jnp.float32(1), jnp.float32(norm), config)
        want += (np.log(norm) - want) / 8
        assert good
    np.testing.assert_allclose(guard.log_norm, want, rtol=1e-4)


def test_a_gradient_of_nothing_is_no_bad_number():
    verdicts, guard = judged([0.0, 1.0])
    assert verdicts == [True, True] and math.isfinite(guard.log_norm)


def test_no_factor_allows_any_norm():
    config = GuardConfig(spike_factor=0, settle=1)
    _, guard = judge(first_guard(), jnp.float32(1), jnp.float32(1), config)
    assert judge(guard, jnp.float32(1), jnp.float32(1e30), config)[0]


@pytest.mark.parametrize("bad", [NAN, INF, 1e6])
def test_a_bad_step_leaves_parameters_moments_and_counts_to_the_bit(bad):
    optimizer = optax.adamw(0.1)
    params = {"w": jnp.array([1.0, -0.0, 3.0]), "b": jnp.ones(2, jnp.bfloat16)}

    @jax.jit
    def train(params, moments, guard, gradient):
        norm = optax.tree.norm(gradient)
        good, guard = judge(guard, jnp.float32(1), norm, CONFIG)
        updates, new = optimizer.update(gradient, moments, params)
        after = (optax.apply_updates(params, updates), new)
        return *choose(good, after, (params, moments)), guard

    def gradient(value):
        return {"w": jnp.array([1.0, 2.0, value]), "b": jnp.ones(2, jnp.bfloat16)}

    def raw(tree):
        return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]

    state = (params, optimizer.init(params), first_guard())
    for _ in range(4):
        state = train(*state, gradient(1.0))
    before = raw(state[:2])
    *after, guard = train(*state, gradient(bad))
    assert raw(after) == before
    assert (int(guard.skipped), int(guard.good)) == (1, 4)
    *after, _ = train(*after, guard, gradient(1.0))
    assert all(a != b for a, b in zip(raw(after), before, strict=True))


def steps(path, losses, config=CONFIG, start=0):
    """What the loop does with the numbers of steps `start` + 1, ...; the metrics it would log."""
    bad_steps = BadSteps(path, config, lambda step: [f"a/{step}", f"b/{step}"], start)
    guard, logged = first_guard(), []
    for number, loss in enumerate(losses, start + 1):
        before = guard
        norm = jnp.float32(2.0)
        good, guard = judge(guard, jnp.float32(loss), norm, config)
        metrics = {"loss": jnp.float32(loss), "grad_norm": norm, **report(good, before, guard)}
        logged.append(bad_steps.add(number, metrics))
    bad_steps.flush()
    return logged


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bad_steps_are_written_down_with_their_samples(tmp_path):
    path = tmp_path / "bad_steps.jsonl"
    logged = steps(path, [1.0, NAN, 1.0, INF, INF, 1.0])
    assert [int(m["skipped"]) for m in logged] == [0, 1, 1, 2, 3, 3]
    assert all(m.keys() == {"loss", "grad_norm", "skipped"} for m in logged)
    assert [r["step"] for r in records(path)] == [2, 4, 5]
    assert records(path)[0] == {
        "step": 2,
        "reason": "the loss is nan",
        "loss": "nan",
        "grad_norm": "2.0",
        "usual_grad_norm": pytest.approx(2.0),
        "samples": ["a/1", "b/1"],
    }


def test_a_run_without_bad_steps_has_no_such_file(tmp_path):
    steps(tmp_path / "bad_steps.jsonl", [1.0, 2.0])
    assert not list(tmp_path.iterdir())


def test_too_many_in_a_row_end_the_run_with_one_line(tmp_path):
    path = tmp_path / "bad_steps.jsonl"
    with pytest.raises(RunFailed) as error:
        steps(path, [1.0, NAN, NAN, NAN, 1.0])
    assert str(error.value).startswith("step 4: the loss is nan; bad steps in a row: 3")
    assert str(path) in str(error.value)
    assert [r["step"] for r in records(path)] == [2, 3, 4]


def test_under_the_policy_stop_the_first_one_ends_it(tmp_path):
    path = tmp_path / "bad_steps.jsonl"
    with pytest.raises(RunFailed, match=r"step 2: the loss is inf.*policy stop"):
        steps(path, [1.0, INF, 1.0], GuardConfig(policy="stop"))


def test_a_resumed_run_writes_its_bad_steps_once(tmp_path):
    path = tmp_path / "bad_steps.jsonl"
    steps(path, [1.0, NAN, 1.0, NAN])
    steps(path, [NAN, 1.0], start=3)
    assert [r["step"] for r in records(path)] == [2, 4]


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"spike_factor": 1.0}, "--guard.spike-factor 1.0"),
        ({"spike_factor": NAN}, "--guard.spike-factor nan"),
        ({"max_skipped": 0}, "--guard.max-skipped 0"),
        ({"settle": 0}, "--guard.settle 0"),
    ],
)
def test_meaningless_settings_are_refused(values, flag):
    with pytest.raises(InputError, match=flag):
        GuardConfig(**values)
