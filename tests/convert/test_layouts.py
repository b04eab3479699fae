"""Which layout a checkpoint is in follows from its keys."""

import pytest

from convert.keys import DEEPSEEK, HF, HF_OLDER, LLAMA, SIGLIP, SIGLIP_ALONE, VQ16
from convert.layouts import DEEPSEEK_LAYOUT, HF_LAYOUT, HF_OLDER_LAYOUT, detect
from janus_jax.errors import InputError


def keys(table) -> list[str]:
    return [row.theirs.format(i=0, l=0, r=0) for row in table.rows]


@pytest.mark.parametrize(
    ("table", "layout"),
    [(HF, HF_LAYOUT), (HF_OLDER, HF_OLDER_LAYOUT), (DEEPSEEK, DEEPSEEK_LAYOUT)],
    ids=lambda x: x.name,
)
def test_each_layout_is_found(table, layout):
    assert detect(keys(table)) == layout
    assert layout.table == table
    assert detect(reversed(keys(table))) == layout


@pytest.mark.parametrize(
    ("table", "part"),
    [(LLAMA, "llm"), (SIGLIP, "vision"), (SIGLIP_ALONE, "vision"), (VQ16, "vq")],
    ids=lambda x: getattr(x, "name", x),
)
def test_a_part_is_named_as_one(table, part):
    with pytest.raises(InputError, match=f"--part {part}"):
        detect(keys(table))


def test_mixed_and_foreign_keys_are_refused():
    with pytest.raises(InputError, match="layouts deepseek and hf;"):
        detect([*keys(HF), *keys(DEEPSEEK)])
    with pytest.raises(InputError, match=r"no known layout \('transformer.h.0.weight'"):
        detect(["transformer.h.0.weight"])
    with pytest.raises(InputError, match="no known layout"):
        detect([])
    with pytest.raises(InputError) as info:
        detect(["x" * 10**6])
    assert len(str(info.value)) < 300
