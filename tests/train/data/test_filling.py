"""As many samples as fill the rows of a step, at the exact ratio."""

import numpy as np
import pytest

from janus_jax.errors import InputError
from train.data.filling import samples_that_fill
from train.data.packing import efficiency
from train.data.schedule import LengthTable, Schedule

LENGTH = 4096


def tables(n: int = 4000, *, tail: bool = False):
    """With `tail`, most texts are short and a few as long as a row."""
    rng = np.random.default_rng(0)
    talk = rng.integers(616, 877, n)
    text = rng.integers(20, 1500, n)
    if tail:
        text = np.clip(rng.lognormal(5.5, 1.0, n), 8, LENGTH).astype(int)
    text[:10] = 0  # broken, never taken
    return {
        "understanding": LengthTable(talk, talk // 8),
        "text": LengthTable(text, text // 2),
        "generation": LengthTable(rng.integers(585, 656, n)),
    }


@pytest.mark.parametrize(
    ("mixture", "rows", "least"),
    # Stage 1 has pictures alone: six of them leave a rest of a row that no seventh fits.
    [((2, 3, 5), 64, 0.97), ((5, 1, 4), 128, 0.97), ((1, 0, 3), 32, 0.95)],
    ids=str,
)
def test_rows_are_filled_at_the_exact_ratio(mixture, rows, least):
    ratio = dict(zip(("understanding", "text", "generation"), mixture, strict=True))
    found = samples_that_fill(tables(), ratio, rows=rows, length=LENGTH, seed=0)
    times = {found[kind] / n for kind, n in ratio.items() if n}
    assert len(times) == 1 and set(found) == {kind for kind, n in ratio.items() if n}
    schedule = Schedule(tables(), found, length=LENGTH, seed=0)
    assert schedule.rows_needed(range(5)) <= rows
    tokens = [sum(schedule.lengths(step)) for step in range(5)]
    assert efficiency(tokens, rows * 5, LENGTH) > least


@pytest.mark.parametrize("tail", [False, True])
def test_no_later_step_takes_another_row(tail):
    ratio = {"understanding": 2, "text": 3, "generation": 5}
    lengths = tables(tail=tail)
    found = samples_that_fill(lengths, ratio, rows=16, length=LENGTH, seed=0)
    schedule = Schedule(lengths, found, length=LENGTH, seed=0)
    # Far beyond what the function has tried.
    assert schedule.rows_needed(range(8, 500)) <= 16


def test_a_small_data_set_is_not_asked_for_more_than_it_has():
    few = {"text": LengthTable(np.full(30, 100), np.full(30, 50))}
    found = samples_that_fill(few, {"text": 1}, rows=8, length=LENGTH, seed=0)
    assert found == {"text": 30}


def test_rows_that_hold_not_one_of_each_part_are_refused():
    with pytest.raises(InputError, match=r"--rows 1 of 4096 tokens do not hold .* at 7:3:10"):
        samples_that_fill(
            tables(),
            {"understanding": 7, "text": 3, "generation": 10},
            rows=1,
            length=LENGTH,
            seed=0,
        )


def test_a_kind_without_samples_is_named():
    few = {"text": LengthTable(np.full(30, 100), np.full(30, 50))}
    with pytest.raises(InputError, match="0 generation samples; allowed: at least 2"):
        samples_that_fill(few, {"text": 1, "generation": 2}, rows=8, length=LENGTH, seed=0)
