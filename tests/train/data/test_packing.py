"""The packer: rows by hand, and what holds of any samples."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.errors import InputError
from train.data import packing
from train.data.packing import (
    KINDS,
    Conversation,
    Generation,
    PackedShape,
    Sample,
    efficiency,
    fit,
)

SIDE, P = 2, 4
SHAPE = PackedShape(
    rows=2, length=12, pictures=2, image_size=SIDE, image_tokens=P, drawings=2, text_targets=5
)


def pack(samples: Sequence[Sample], shape: PackedShape):
    """Samples in the rows that `fit` finds, each with its own place as its rank."""
    rows = fit([s.length for s in samples], shape.length)
    return packing.pack([[(i, samples[i]) for i in row] for row in rows], shape, KINDS)


def conversation(name, tokens, answer, starts=None, colour=0) -> Conversation:
    pictures = None
    if starts is not None:
        pictures = np.full((len(starts), SIDE, SIDE, 3), colour, np.uint8)
    return Conversation(
        name, np.array(tokens, np.int32), np.array(answer, bool), pictures, tuple(starts or ())
    )


SEEN = conversation("seen", [5, 0, 0, 0, 0, 6, 7], [0, 0, 0, 0, 0, 1, 1], [1], colour=9)
TEXT = conversation("text", [11, 12, 13], [0, 0, 1])
DRAWN = Generation("drawn", np.array([21, 22], np.int32), np.array([1, 2, 3, 0], np.int32))


def test_two_rows_by_hand():
    assert [s.length for s in (TEXT, SEEN, DRAWN)] == [3, 7, 5]
    batch = pack([TEXT, SEEN, DRAWN], SHAPE)
    # 7 and 5 fill the first row to the last slot.
    assert batch["segment_ids"].tolist() == [[1] * 7 + [2] * 5, [1] * 3 + [0] * 9]
    assert batch["positions"].tolist() == [[*range(7), *range(5)], [0, 1, 2] + [0] * 9]
    assert batch["tokens"].tolist() == [
        [5, 0, 0, 0, 0, 6, 7, 21, 22, 0, 0, 0],
        [11, 12, 13] + [0] * 9,
    ]
    assert batch["image_index"].tolist() == [[-1, 0, 1, 2, 3] + [-1] * 7, [-1] * 12]
    assert batch["code_index"].tolist() == [[-1] * 9 + [0, 1, 2], [-1] * 12]
    assert batch["pixels"][:, 0, 0, 0].tolist() == [9, 0]
    assert batch["codes"].tolist() == [[1, 2, 3, 0], [0] * 4]
    assert batch["drawing_ranks"].tolist() == [2, 0]
    # A target is predicted by the slot before it; 14 = one row and two slots.
    assert batch["text_positions"].tolist() == [4, 5, 13, 0, 0]
    assert batch["text_targets"].tolist() == [6, 7, 13, 0, 0]
    assert batch["text_weights"]["understanding"].tolist() == [1, 1, 0, 0, 0]
    assert batch["text_weights"]["text"].tolist() == [0, 0, 1, 0, 0]
    assert batch["image_positions"].tolist() == [8, 9, 10, 11] + [0] * 4
    assert batch["image_targets"].tolist() == [1, 2, 3, 0] + [0] * 4
    assert batch["image_weights"].tolist() == [1] * 4 + [0] * 4


def test_fit_finds_the_fillings_that_the_nearest_fit_misses():
    # Decreasing best fit would put 6 with 5 and need three rows: 6 + 5, 4 + 3 + 3, 3.
    assert [sorted(r) for r in fit([6, 5, 4, 3, 3, 3], 12)] == [[0, 3, 4], [1, 2, 5]]
    assert fit([], 4) == []


def test_no_fewer_rows_are_looked_for_than_there_are():
    # As they come, the rows are 5 + 3 + 2, 5 + 4, 4 + 4 and 3; another order fills three.
    lengths = [3, 3, 4, 2, 4, 4, 5, 5]
    assert len(fit(lengths, 10)) == len(fit(lengths, 10, enough=3)) == 3
    assert len(fit(lengths, 10, enough=4)) == 4


lengths_ = st.lists(st.integers(1, 40), max_size=30)


@given(lengths_, st.integers(40, 90))
@settings(max_examples=100, deadline=None)
def test_every_sample_is_in_one_row_that_holds_it(lengths, length):
    rows = fit(lengths, length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < n <= length for n in used)
    assert rows == fit(lengths, length)
    # No sample of a later row would have fitted into an earlier one.
    for r, room in enumerate(length - n for n in used):
        assert all(lengths[i] > room for row in rows[r + 1 :] for i in row)
    if rows:
        assert 0 < efficiency(lengths, len(rows), length) <= 1


@st.composite
def samples_(draw):
    """Samples whose every token, code and colour tells which sample it is."""
    found = []
    for i in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(("understanding", "text", "generation")))
        n = draw(st.integers(2, 12))
        if kind == "generation":
            codes = 100 * i + np.arange(P, dtype=np.int32)
            found.append(Generation(f"{i}", 1000 + 100 * i + np.arange(n, dtype=np.int32), codes))
            continue
        pictures = draw(st.integers(1, 2)) if kind == "understanding" else 0
        n += pictures * P
        answer = [False, *draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2)), True]
        starts = [1 + k * P for k in range(pictures)] if pictures else None
        if starts:
            answer[1 : 1 + pictures * P] = [False] * (pictures * P)
        tokens = [1000 + 100 * i + k for k in range(n)]
        found.append(conversation(f"{i}", tokens, answer, starts, colour=i))
    return found


@given(samples_())
@settings(max_examples=60, deadline=None)
def test_packed_samples_can_be_read_back(samples):
    talks = [s for s in samples if isinstance(s, Conversation)]
    shape = PackedShape(
        rows=len(samples),
        length=24,
        pictures=24,
        image_size=SIDE,
        image_tokens=P,
        drawings=12,
        text_targets=300,
    )
    batch = pack(samples, shape)
    seen = 0
    for r in range(shape.rows):
        for segment in range(1, batch["segment_ids"][r].max() + 1):
            (where,) = np.nonzero(batch["segment_ids"][r] == segment)
            assert (np.diff(where) == 1).all()
            assert batch["positions"][r, where].tolist() == list(range(len(where)))
            i = (batch["tokens"][r, where[0]] - 1000) // 100
            sample, slots = samples[i], r * shape.length + where
            assert len(where) == sample.length
            seen += 1
            index, code = batch["image_index"][r, where], batch["code_index"][r, where]
            if isinstance(sample, Generation):
                n = len(sample.prompt)
                assert batch["tokens"][r, where[:n]].tolist() == sample.prompt.tolist()
                assert (code[:n] == -1).all() and (index == -1).all()
                assert batch["codes"].reshape(-1)[code[n:]].tolist() == sample.codes[:-1].tolist()
                positions, targets, weights = "image_positions", "image_targets", "image_weights"
                want = dict(zip(slots[n - 1 :], sample.codes, strict=True))
                weight = batch[weights]
            else:
                assert (code == -1).all()
                word = index == -1
                assert (batch["tokens"][r, where] == sample.tokens)[word].all()
                for k, start in enumerate(sample.starts):
                    rows = index[start : start + P]
                    assert (rows % P).tolist() == list(range(P))
                    assert (batch["pixels"][rows // P] == sample.pictures[k]).all()
                assert word.sum() == sample.length - P * len(sample.starts)
                positions, targets = "text_positions", "text_targets"
                (asked,) = np.nonzero(sample.answer)
                want = dict(zip(slots[asked - 1], sample.tokens[asked], strict=True))
                weight = batch["text_weights"][sample.kind]
            mine = np.isin(batch[positions], slots) & (weight > 0)
            got = dict(zip(batch[positions][mine], batch[targets][mine], strict=True))
            assert got == want and mine.sum() == len(want)
    assert seen == len(samples)
    assert sum(w.sum() for w in batch["text_weights"].values()) == sum(
        s.answer.sum() for s in talks
    )
    assert batch["image_weights"].sum() == P * (len(samples) - len(talks))
    again = pack(samples, shape)
    assert all((batch[k] == again[k]).all() for k in batch if k != "text_weights")


REFUSED = {
    "need pictures=2; allowed: at most 1": ([SEEN, SEEN], {"pictures": 1}),
    "need rows=2; allowed: at most 1": ([SEEN, SEEN], {"rows": 1}),
    "need text_targets=4; allowed: at most 3": ([SEEN, SEEN], {"text_targets": 3}),
    "need drawings=1; allowed: at most 0": ([DRAWN], {"drawings": 0}),
    "sample drawn has 4 codes; allowed: 9": ([DRAWN], {"image_tokens": 9}),
    "sample text has no answer": (
        [dataclasses.replace(TEXT, answer=np.zeros(3, bool))],
        {},
    ),
    "sample text asks for its first token": (
        [dataclasses.replace(TEXT, answer=np.ones(3, bool))],
        {},
    ),
    "sample text has 3 tokens and an answer mask of 2": (
        [dataclasses.replace(TEXT, answer=np.ones(2, bool))],
        {},
    ),
    "sample seen has 1 pictures and slots for 0": ([dataclasses.replace(SEEN, starts=())], {}),
    "sample seen has 7 tokens and a picture's slots at 4": (
        [dataclasses.replace(SEEN, starts=(4,))],
        {},
    ),
    "sample seen has pictures of shape (2, 2, 3); allowed: (3, 3, 3)": (
        [SEEN],
        {"image_size": 3},
    ),
    "sample drawn has an empty prompt": (
        [dataclasses.replace(DRAWN, prompt=np.zeros(0, np.int32))],
        {},
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_packed_is_refused_by_its_id(message):
    samples, changes = REFUSED[message]
    with pytest.raises(InputError) as error:
        pack(samples, dataclasses.replace(SHAPE, **changes))
    assert message in str(error.value)


def test_rows_that_hold_too_much_are_refused():
    with pytest.raises(InputError, match="sample text ends at slot 13 of its row"):
        packing.pack([[(0, SEEN), (0, TEXT), (0, TEXT)]], SHAPE, KINDS)
    long = dataclasses.replace(SHAPE, length=6)
    with pytest.raises(InputError, match="sample seen has 7 tokens; allowed: 1 to 6"):
        packing.pack([[(0, SEEN)]], long, KINDS)


def test_only_the_run_s_kinds_have_weights():
    batch = packing.pack([[(0, TEXT)]], SHAPE, ("text", "generation"))
    assert set(batch["text_weights"]) == {"text"}


def test_fit_refuses_lengths_that_no_row_holds():
    for wrong in (0, 13):
        with pytest.raises(InputError, match=f"sample 1 has {wrong} tokens; allowed: 1 to 12"):
            fit([4, wrong], 12)
