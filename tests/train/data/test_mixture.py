"""Who is taken when: exact in every step by kind, exact in every round by source."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.errors import InputError
from train.data.mixture import Shares, WeightedSet, parse_data
from train.data.schedule import LengthTable, Schedule

weights = st.lists(st.fractions(Fraction(1, 100), 100, max_denominator=100), min_size=1, max_size=5)


@given(weights, st.integers(1, 12), st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_a_step_takes_the_due_number_rounded_down_or_up(weights, samples, step):
    shares, due = Shares(weights, samples), [w * samples / sum(weights) for w in weights]
    counts = shares.counts(step)
    assert sum(counts) == samples
    for count, share, most in zip(counts, due, shares.most, strict=True):
        assert share // 1 <= count <= most == -(-share // 1)
    # A round later the same again, with exactly its share for every source in between.
    assert shares.counts(step + shares.period) == counts
    before, after = shares.before(step), shares.before(step + shares.period)
    assert [b - a for a, b in zip(before, after, strict=True)] == [d * shares.period for d in due]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_what_came_before_is_the_sum_of_the_steps(weights, samples, steps):
    shares = Shares([Fraction(w) for w in weights], samples)
    counts = [shares.counts(step) for step in range(steps)]
    assert shares.before(steps) == np.sum(counts, axis=0).tolist()
    due = np.array(weights) * samples / sum(weights) * steps
    assert abs(np.array(shares.before(steps)) - due).max() < 5


def test_equal_shares_of_an_odd_number_alternate():
    shares = Shares([Fraction(1), Fraction(1)], 5)
    assert [shares.counts(step) for step in range(4)] == [[3, 2], [2, 3], [3, 2], [2, 3]]


def test_weights_without_a_short_round_come_near_at_once():
    due = [Fraction("0.123456789"), Fraction("3.3"), Fraction(2)]
    shares = Shares(due, 7)
    assert shares.period > 10**9
    for step in range(1, 10**6, 9973):
        exact = [float(w * 7 * step / sum(due)) for w in due]
        np.testing.assert_allclose(shares.before(step), exact, rtol=0, atol=5)


def table(sizes: list[int], weights: list[int], seed: int = 0) -> LengthTable:
    tokens = np.random.default_rng(seed).integers(5, 60, sum(sizes))
    sources = tuple((n, Fraction(w)) for n, w in zip(sizes, weights, strict=True))
    return LengthTable(tokens, tokens // 2, sources)


@given(
    st.lists(st.tuples(st.integers(12, 40), st.integers(1, 9)), min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_every_source_goes_through_all_its_samples_before_it_repeats_one(sources, samples, seed):
    sizes, weights = [n for n, _ in sources], [w for _, w in sources]
    schedule = Schedule({"text": table(sizes, weights)}, {"text": samples}, length=64, seed=seed)
    shares = Shares([Fraction(w) for w in weights], samples)
    seen: Counter[int] = Counter()
    for step in range(80):
        numbers = [number for _, number in schedule.step(step)]
        assert len(set(numbers)) == samples
        seen.update(numbers)
    start = 0
    for size, taken, most in zip(sizes, shares.before(80), shares.most, strict=True):
        times = [seen[i] for i in range(start, start + size)]
        assert sum(times) == taken
        # Strata differ by one in size, and the last round may have reached some of them only.
        whole = taken // (-(-size // most) * most)
        assert min(times) >= whole and max(times) <= taken // (size // most * most) + 1
        start += size


def test_unusable_samples_are_never_taken_and_others_stand_in_for_broken_ones():
    tokens = np.random.default_rng(0).integers(5, 60, 40)
    tokens[[3, 11, 12]] = 0
    schedule = Schedule({"text": LengthTable(tokens)}, {"text": 4}, length=64, seed=1)
    taken = {number for step in range(30) for _, number in schedule.step(step)}
    assert taken == set(range(40)) - {3, 11, 12}
    (_, number), *others = schedule.step(5)
    stand_ins = list(schedule.alternatives(5, "text", number))
    # All others of its stratum, and so about as long.
    assert len(stand_ins) == len(set(stand_ins)) in (8, 9) and number not in stand_ins
    assert not {n for _, n in others} & set(stand_ins)
    assert np.ptp(tokens[[number, *stand_ins]]) < 25
    assert list(schedule.alternatives(5, "text", number)) == stand_ins
    # They are the samples of the next steps: a broken sample costs nobody else a turn.
    assert stand_ins[0] in {n for _, n in schedule.step(6)}


def test_data_sets_are_parsed_with_their_weights(tmp_path: Path):
    odd = tmp_path / "a:3"
    odd.mkdir()
    assert parse_data(["x/real", "x/made:0.5", "y:2", str(odd)]) == (
        WeightedSet(Path("x/real")),
        WeightedSet(Path("x/made"), Fraction(1, 2)),
        WeightedSet(Path("y"), Fraction(2)),
        WeightedSet(odd),
    )


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([], "--data is missing"),
        (["a:0"], "--data 'a:0': the weight is '0'; allowed: DIR:WEIGHT with a number, 1e-6"),
        (["a:-1"], "the weight is '-1'"),
        (["a:nan"], "the weight is 'nan'"),
        (["a:1e9"], "the weight is '1e9'"),
        (["a:much"], "the weight is 'much'"),
        (["a:"], "the weight is ''"),
        (["a", "a:2"], "--data names 'a' twice"),
    ],
)
def test_bad_data_arguments(texts, reason):
    with pytest.raises(InputError, match=reason):
        parse_data(texts)
