"""Steps of a schedule: the exact ratio, every sample in turn, and full rows."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.packing import LENGTH, tables
from janus_jax.errors import InputError
from train.config import Mixture, TrainConfig
from train.data.schedule import LengthTable, Schedule, shuffled


def table(n, seed=0) -> LengthTable:
    lengths = np.random.default_rng(seed).integers(5, 60, n)
    return LengthTable(lengths, lengths // 2)


def test_the_ratio_is_that_of_the_mixture_in_every_step():
    config = TrainConfig(
        "stage3", "debug", "janus", ("llm",), batch_size=20, mixture=Mixture(5, 1, 4)
    )
    schedule = Schedule(tables(0), config.samples(), length=LENGTH, seed=config.seed)  # pyright: ignore[reportArgumentType]
    for step in (0, 1, 77777):
        kinds = Counter(kind for kind, _ in schedule.step(step))
        assert kinds == {"understanding": 10, "text": 2, "generation": 8}


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_every_sample_comes_once_before_its_stratum_repeats(n, a_step, seed):
    if n < a_step:
        n = a_step
    schedule = Schedule({"text": table(n)}, {"text": a_step}, length=64, seed=seed)
    whole = n // a_step
    first = [i for step in range(whole) for _, i in schedule.step(step)]
    assert len(set(first)) == len(first) == whole * a_step
    # After an uneven last stratum too, nobody is left out.
    both = Counter(i for step in range(2 * (whole + 1)) for _, i in schedule.step(step))
    assert set(both) == set(range(n)) and min(both.values()) >= 2


@given(st.integers(1, 200), st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_shuffled_indices_are_a_permutation(size, key):
    index = np.arange(size, dtype=np.uint64)
    both = np.full(size, size, np.uint64), np.full(size, key, np.uint64)
    assert sorted(shuffled(index, *both).tolist()) == list(range(size))


def test_every_index_goes_to_every_place_equally_often():
    n, size = 20000, 6
    keys, sizes = np.arange(n, dtype=np.uint64), np.full(n, size, np.uint64)
    where = [shuffled(np.full(n, i, np.uint64), sizes, keys) for i in (0, 1)]
    pairs = np.bincount((where[0] * 6 + where[1]).astype(int), minlength=36).reshape(6, 6)
    assert (np.diag(pairs) == 0).all()
    # 30 ordered pairs, each with a share of 1/30 and a standard deviation of 25.
    pairs = pairs[~np.eye(6, dtype=bool)]
    assert abs(pairs - n / 30).max() < 125


def test_a_step_is_a_function_of_seed_and_step_alone():
    made = [Schedule({"text": table(50)}, {"text": 4}, length=64, seed=s) for s in (3, 3, 4)]
    onward = [made[0].step(s) for s in range(30)]
    assert [made[1].step(s) for s in reversed(range(30))] == onward[::-1]
    assert [made[2].step(s) for s in range(30)] != onward
    # Another epoch, another order.
    assert [sorted(s) for s in onward[:12]] != [sorted(s) for s in onward[12:24]]


def test_rows_are_those_of_the_step_s_lengths():
    lengths = table(50)
    schedule = Schedule({"text": lengths}, {"text": 6}, length=64, seed=0)
    for step in range(5):
        want = [lengths.tokens[i] for _, i in schedule.step(step)]
        assert schedule.lengths(step) == want
        rows = schedule.rows(step)
        assert sorted(i for row in rows for i in row) == list(range(6))
        assert all(sum(want[i] for i in row) <= 64 for row in rows)
    assert schedule.rows_needed(range(5)) == max(len(schedule.rows(s)) for s in range(5))


def test_no_sample_of_a_step_exceeds_the_longest_one_by_one():
    lengths = table(50).tokens
    # The two sources take turns at the odd sample: 3 of one and 4 of the other.
    for sources in ((), ((20, Fraction(1)), (30, Fraction(1)))):
        kinds = {"text": LengthTable(lengths, lengths // 2, sources), "generation": table(40, 1)}
        schedule = Schedule(kinds, {"text": 7, "generation": 5}, length=64, seed=0)
        longest = sorted(schedule.longest())
        assert len(longest) == 12 and longest[-1] == max(max(t.tokens) for t in kinds.values())
        steps = np.array([sorted(schedule.lengths(step)) for step in range(200)])
        assert (steps <= longest).all()
        # No more than is needed: the strata are walked whole, so most of them are met.
        assert (steps.max(0) == longest).mean() > 0.5


def test_too_few_or_too_long_samples_are_refused():
    with pytest.raises(InputError, match="3 text samples; allowed: at least 4"):
        Schedule({"text": table(3)}, {"text": 4}, length=64, seed=0)
    with pytest.raises(InputError, match="0 generation samples; allowed: at least 4"):
        Schedule({"text": table(9)}, {"generation": 4}, length=64, seed=0)
    long = LengthTable(np.array([5, 65, 6]), np.ones(3, int))
    with pytest.raises(InputError, match="text sample 1 has 65 tokens; allowed: 1 to 64"):
        Schedule({"text": long}, {"text": 1}, length=64, seed=0)
