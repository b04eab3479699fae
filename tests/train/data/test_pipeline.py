"""Batches are a function of seed and step; an epoch shows each record once."""

from collections import Counter

import numpy as np
import pytest

from train.data.pipeline import batched
from train.data.prefetch import prefetch
from train.data.shift import random_shift


def numbers(seed: int = 0, batch_size: int = 4):
    return batched(
        range(12),
        lambda i, rng: (i, int(rng.integers(10**9))),
        list,
        batch_size=batch_size,
        seed=seed,
    )


def test_a_batch_is_a_function_of_seed_and_step():
    batches, again = numbers(), numbers()
    forwards = [batches(step) for step in range(7)]
    backwards = [again(step) for step in reversed(range(7))][::-1]
    assert forwards == backwards
    assert forwards != [numbers(seed=1)(step) for step in range(7)]


def test_an_epoch_shows_each_record_once_in_an_order_of_its_own():
    batches = numbers()
    epochs = [[pair for step in range(k, k + 3) for pair in batches(step)] for k in (0, 3, 6)]
    for epoch in epochs:
        assert Counter(i for i, _ in epoch) == Counter(range(12))
    orders = [tuple(i for i, _ in epoch) for epoch in epochs]
    assert len({tuple(range(12)), *orders}) == 4
    assert len({draw for epoch in epochs for _, draw in epoch}) == 36


def test_batches_that_do_not_divide_an_epoch_run_on_into_the_next():
    batches = numbers(batch_size=5)
    seen = [i for step in range(12) for i, _ in batches(step)]
    assert Counter(seen) == Counter(dict.fromkeys(range(12), 5))
    assert Counter(seen[:12]) == Counter(range(12))


def test_a_stream_from_an_offset_is_the_rest_of_the_whole():
    batch = numbers()
    whole = list(prefetch(batch, 0, 8))
    assert whole == [batch(step) for step in range(8)]
    assert list(prefetch(batch, 5, 8)) == whole[5:]


def test_nothing_is_left_after_the_last_step():
    """A run killed between its last checkpoint and its result resumes here."""
    assert list(prefetch(numbers(), 8, 8)) == []


def test_a_shift_moves_the_picture_over_white():
    picture = np.zeros((8, 8, 3), np.uint8)
    rng = np.random.default_rng(0)
    places = set()
    for _ in range(200):
        moved = random_shift(picture, 2, rng)
        assert moved.shape == picture.shape and moved.dtype == np.uint8
        assert set(np.unique(moved)) <= {0, 255}
        ys, xs = np.nonzero(moved[..., 0] == 0)
        assert len(ys) == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
        # Rows lost at one side: the picture left through it.
        places.add((8 - ys.max() - 1 - ys.min(), 8 - xs.max() - 1 - xs.min()))
    assert places == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


@pytest.mark.parametrize("most", [0])
def test_no_shift_draws_nothing(most):
    picture, rng = np.zeros((4, 4, 3), np.uint8), np.random.default_rng(0)
    state = rng.bit_generator.state
    assert random_shift(picture, most, rng) is picture
    assert rng.bit_generator.state == state
