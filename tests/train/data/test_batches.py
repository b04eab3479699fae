"""Groups of rows: who gets which, and what shapes they have."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import batches
from train.data.batches import PackedBatches, deal
from train.data.packing import KINDS, Conversation, Generation
from train.data.source import Entry

P, SIDE = 4, 2


class Fakes:
    """Two generation samples, three talks about pictures and three texts a step, of many lengths.

    Step 70 has one text that is much longer than all others.
    """

    def __init__(self, longest: int = 10):
        self._longest = longest
        self.read: list[tuple[int, int]] = []

    def plan(self, step):
        rng = np.random.default_rng(step)
        found = [Entry("generation", i, int(rng.integers(2, 9)) + P - 1) for i in range(2)]
        found += [Entry("understanding", i, int(rng.integers(8, 13)), 1, 3) for i in range(3)]
        found += [Entry("text", i, int(rng.integers(3, 8)), 0, 2) for i in range(3)]
        if step == 70:
            found[-1] = Entry("text", 2, 30, 0, self._longest)
        return found

    def load(self, step, entry):
        self.read.append((step, entry.number))
        if entry.kind == "generation":
            prompt = np.full(entry.tokens - P + 1, 100 + entry.number, np.int32)
            return Generation(f"{entry.number}", prompt, np.arange(P, dtype=np.int32))
        tokens = np.full(entry.tokens, 10 * entry.number + entry.pictures, np.int32)
        answer = np.arange(entry.tokens) >= entry.tokens - entry.text_targets
        if entry.kind == "text":
            return Conversation("t", tokens, answer)
        if step == 3 and entry.number == 1:
            return None
        return Conversation("u", tokens, answer, np.zeros((1, SIDE, SIDE, 3), np.uint8), (1,))


def make(source=None, **changes) -> PackedBatches:
    how: dict[str, Any] = dict(kinds=KINDS, length=32, image_size=SIDE, image_tokens=P) | changes
    return PackedBatches(source or Fakes(), **how)


def test_all_steps_have_the_shapes_of_the_first_ones():
    packed = make(groups=2)
    shapes = {packed.shape(step) for step in range(batches.LOOKAHEAD)}
    assert shapes == {packed.usual}
    assert packed.usual.text_targets % 8 == 0
    leaves = {k: v.shape for k, v in packed(0).items() if k != "text_weights"}
    assert leaves["tokens"] == (2 * packed.usual.rows, 32)
    assert leaves["pixels"] == (2 * packed.usual.pictures, SIDE, SIDE, 3)


def test_a_step_that_needs_more_gets_more_and_the_next_one_does_not():
    packed = make(Fakes(longest=29))
    usual = packed.usual
    assert packed.shape(70).text_targets > usual.text_targets
    assert packed(70)["text_weights"]["text"].sum() == 2 * 2 + 29
    assert packed.shape(71) == usual


def test_a_resumed_run_has_the_shapes_of_the_whole_one():
    whole, resumed = make(), make()
    whole(0)
    assert resumed(90)["tokens"].shape == whole(90)["tokens"].shape


def test_given_rows_are_kept_and_divided():
    packed = make(groups=2, accumulate=2, rows=12)
    assert packed.usual.rows == 3
    assert packed(0)["tokens"].shape == (2, 6, 32)


def test_what_cannot_be_read_becomes_padding():
    packed = make()
    entries, _ = packed.layout(3)
    (lost,) = [e for e in entries if e.kind == "understanding" and e.number == 1]
    filled = (packed(3)["segment_ids"] > 0).sum()
    assert filled == sum(e.tokens for e in entries) - lost.tokens


def test_a_process_reads_its_own_groups_alone():
    source = Fakes()
    packed = make(source, groups=4)
    whole = packed(5)
    source.read.clear()
    found = packed.groups_of(5, [2])
    _, layout = packed.layout(5)
    assert len(source.read) == sum(map(len, layout[2])) < 8
    rows = packed.usual.rows
    assert (whole["tokens"][2 * rows : 3 * rows] == found[2]["tokens"]).all()


@pytest.mark.parametrize(("groups", "accumulate"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_every_sample_is_somewhere_once_with_its_rank(groups, accumulate):
    packed = make(groups=groups, accumulate=accumulate)
    entries, layout = packed.layout(0)
    assert sorted(i for rows in layout for row in rows for i in row) == list(range(len(entries)))
    batch = packed(0)
    assert (batch["segment_ids"] > 0).sum() == sum(e.tokens for e in entries)
    assert batch["image_weights"].sum() == 2 * P
    ranks = batch["drawing_ranks"].reshape(-1)[
        batch["image_weights"].reshape(-1, P)[:, 0].astype(bool)
    ]
    assert sorted(ranks.tolist()) == [0, 1]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=40),
    st.integers(1, 8),
)
@settings(max_examples=100, deadline=None)
def test_rows_are_dealt_out_evenly(sizes, groups):
    entries = [Entry("understanding", i, 1, p, t) for i, (p, t) in enumerate(sizes)]
    rows = [[i] for i in range(len(entries))]
    dealt = deal(rows, entries, groups)
    assert len(dealt) == groups
    assert Counter(i for rows in dealt for (i,) in rows) == Counter(range(len(entries)))
    each = -(-len(rows) // groups)
    assert max(map(len, dealt)) <= each
    assert deal(rows, entries, groups) == dealt


def test_the_fullest_rows_are_apart():
    targets = [40, 40, 1, 1, 2, 2]
    entries = [Entry("text", i, 1, 0, t) for i, t in enumerate(targets)]
    dealt = deal([[i] for i in range(6)], entries, 2)
    assert [sum(targets[i] for (i,) in rows) for rows in dealt] == [43, 43]
