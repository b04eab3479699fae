"""The policy: no limit above the promise, each with room, and a measure that cannot be fooled."""

import numpy as np
import pytest

from .tolerances import CEILING, TABLE, check, relative_error


def test_no_limit_is_above_the_promise_and_each_leaves_room():
    assert CEILING == 1e-4
    wrong = {
        name: row
        for name, row in TABLE.items()
        if not (row.limit <= CEILING and row.measured <= row.limit / 2)
    }
    assert not wrong


def test_the_relative_error_is_over_the_largest_value():
    assert relative_error(np.array([1.0, 4.5]), np.array([1.0, 4.0])) == 0.125


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([1.0, np.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, np.inf]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([1.0], [1.0, 1.0]),
        ([], []),
    ],
    ids=["nan", "infinite", "all zeros", "broadcast", "empty"],
)
def test_what_could_hide_a_difference_is_refused(ours, theirs):
    with pytest.raises(AssertionError):
        relative_error(np.array(ours), np.array(theirs))


def test_a_difference_above_the_limit_fails_by_name():
    with pytest.raises(AssertionError, match=r"tiny/llm/layers/1: relative error 1\.00e-03"):
        check("tiny/llm/layers/1", np.array([1.001]), np.array([1.0]))


def test_a_comparison_without_a_row_fails():
    with pytest.raises(KeyError):
        check("tiny/something new", np.ones(1), np.ones(1))
