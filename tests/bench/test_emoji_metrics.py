from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import emoji_metrics as metrics


def flat(*values: int) -> np.ndarray:
    """Pictures of one colour each, uint8 [N, 2, 2, 3]."""
    return np.array(values, np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8)


def test_exact_match_accepts_any_name_and_outer_space_only():
    names = [frozenset({"man", "adult"})] * 4
    assert metrics.exact_match(["man", " adult ", "Man", "man:"], names) == 0.5


def test_attribute_accuracy_counts_only_records_that_have_it():
    predicted = ["dark", "light", "dark", None]
    assert metrics.attribute_accuracy(predicted, ["dark", "dark", None, "dark"]) == 1 / 3
    assert np.isnan(metrics.attribute_accuracy(["dark"], [None]))


def test_commonest_chance_is_of_the_training_value():
    training = ["woman", "woman", "man", None, None, None]
    assert metrics.commonest_chance(training, ["woman", "man", "man", "man", None]) == 0.25
    # Of equals the first by name, whatever the order.
    assert metrics.commonest_chance(["b", "a"], ["a", "b", "b"]) == 1 / 3
    assert metrics.commonest_chance([None], ["a"]) == 0


def test_question_chance_answers_each_question_alike():
    training = [("food?", "yes"), ("food?", "no"), ("food?", "no"), ("tone?", "dark")]
    scored = [("food?", "no"), ("food?", "yes"), ("tone?", "dark"), ("new?", "no")]
    assert metrics.question_chance(training, scored) == 0.5


def test_look_alikes_take_the_number_of_the_first():
    assert metrics.look_alikes(flat(7, 9, 7, 9, 8)).tolist() == [0, 1, 0, 1, 4]


def test_squared_errors_are_exact():
    # 12 values differ by 250 and by 5; float32 would round the norms of larger pictures.
    errors = metrics.squared_errors(flat(255, 0), flat(5, 0, 255))
    assert errors.tolist() == [[750000, 780300, 0], [300, 0, 780300]]
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 300, 8, 8, 3)).astype(np.uint8)
    wanted = ((one[:, None].astype(int) - other[None, :7]) ** 2).sum((2, 3, 4))
    assert (metrics.squared_errors(one, other[:7]) == wanted).all()


def test_ranks_share_among_look_alikes_and_lose_other_ties():
    errors = np.array([[3.0, 1.0, 2.0, 2.0, 9.0]])
    all_differ, pair = np.arange(5), np.array([0, 1, 2, 2, 4])

    def rank(true: int, looks: np.ndarray) -> int:
        return int(metrics.ranks(errors, np.array([true]), looks)[0])

    assert [rank(i, all_differ) for i in range(5)] == [4, 1, 3, 3, 5]
    assert [rank(i, pair) for i in range(5)] == [4, 1, 2, 2, 5]


def test_ranks_of_drawn_pictures():
    candidates = flat(0, 50, 100, 150, 200, 250)
    errors = metrics.squared_errors(flat(10, 240), candidates)
    looks = metrics.look_alikes(candidates)
    assert metrics.ranks(errors, np.array([0, 0]), looks).tolist() == [1, 6]


def test_top_share_includes_the_fifth():
    found = np.array([1, 5, 6, 3941])
    assert metrics.top_share(found) == 0.5
    assert metrics.top_share(found, 1) == 0.25


def test_psnr():
    assert metrics.psnr_db(flat(100), flat(110)) == pytest.approx(28.1308, abs=1e-4)
    # A mean over pictures, not over pixels; no error counts as 100 dB.
    assert metrics.psnr_db(flat(100, 7), flat(110, 7)) == pytest.approx(64.0654, abs=1e-4)


def test_families_join_through_shared_pictures():
    concepts = ["France", "Réunion", "Mayotte", "Norway", "France", "Chad"]
    pictures = ["blue", "blue", "own", "red", "own", "chad"]
    found = metrics.families(concepts, pictures)
    assert found[0] == found[1] == found[2] == found[4]
    assert len(set(found)) == 3


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_derangement_leaves_every_group(groups: list[str], seed: int):
    if 2 * max(Counter(groups).values(), default=0) > len(groups):
        with pytest.raises(ValueError, match="nothing to swap with"):
            metrics.derangement(groups, seed)
        return
    mapped = metrics.derangement(groups, seed)
    assert sorted(mapped.tolist()) == list(range(len(groups)))
    assert all(groups[i] != groups[j] for i, j in enumerate(mapped))


def test_derangement_depends_on_its_seed_alone():
    groups = [f"{i // 3}" for i in range(60)]
    one, same, other = (metrics.derangement(groups, seed).tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_evenly_spaced():
    assert metrics.evenly_spaced(10, 3).tolist() == [0, 3, 6]
    assert metrics.evenly_spaced(3, None).tolist() == [0, 1, 2]
    assert metrics.evenly_spaced(3, 9).tolist() == [0, 1, 2]
