import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_jax.errors import InputError
from train.data.records.record import KINDS, Record

records = st.builds(
    Record,
    id=st.text(min_size=1),
    kind=st.sampled_from(KINDS),
    images=st.lists(st.binary(), max_size=3).map(tuple),
    caption=st.text(),
    turns=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text())).map(tuple),
    codes=st.none() | st.lists(st.integers(0, 16383)).map(lambda x: np.array(x, np.int32)),
)


@given(records)
def test_bytes_and_back(record: Record):
    again = Record.from_bytes(record.to_bytes())
    for field in ("id", "kind", "images", "caption", "turns"):
        assert getattr(again, field) == getattr(record, field)
    if record.codes is None:
        assert again.codes is None
    else:
        np.testing.assert_array_equal(again.codes, record.codes)
        assert again.codes.dtype == np.int32


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "a record cannot be read"),
        (b"\xc1", "a record cannot be read"),
        (msgpack.packb([1]), "a record cannot be read"),
        (msgpack.packb({"v": 2, "id": "a", "kind": "text"}), "version 2"),
        (msgpack.packb({"v": 1, "id": "a", "kind": "video"}), "kind 'video'"),
        (msgpack.packb({"v": 1, "id": "a", "kind": "text", "codes": b"123"}), "ValueError"),
    ],
)
def test_other_bytes_are_refused(data: bytes, reason: str):
    with pytest.raises(InputError, match=reason):
        Record.from_bytes(data)
