"""Both directions bit for bit, and errors that name every offender at once."""

import dataclasses
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.engine import MappingError, plan_export, plan_import, shapes_of
from convert.keys import DEEPSEEK, HF, HF_OLDER, Row, Table
from convert.keys.table import regex
from convert.transforms import CONV, LEADING_AXIS, LINEAR, SAME
from janus_jax import functional
from janus_jax.config import DEBUG
from janus_jax.errors import InputError

TABLE = Table(
    "toy",
    (
        Row("layers/{i}/kernel", "h.{i}.weight", LINEAR),
        Row("layers/{i}/bias", "h.{i}.bias", SAME),
        Row("conv/kernel", "conv.weight", CONV),
    ),
    drops=("old.{i}.mask",),
)
OURS = {"layers/0/kernel": (2, 3), "layers/0/bias": (3,), "conv/kernel": (1, 1, 2, 4)}
THEIRS = {"h.0.weight": (3, 2), "h.0.bias": (3,), "conv.weight": (4, 2, 1, 1)}


def test_the_toy_model_fits():
    plan = plan_import(TABLE, OURS, THEIRS)
    assert [(e.ours, e.theirs, e.transform.name) for e in plan.entries] == [
        ("layers/0/kernel", "h.0.weight", "linear"),
        ("layers/0/bias", "h.0.bias", "same"),
        ("conv/kernel", "conv.weight", "conv"),
    ]
    assert plan.dropped == ()


def test_allowed_drops_are_named():
    plan = plan_import(TABLE, OURS, THEIRS | {"old.0.mask": (9, 9), "old.12.mask": (1,)})
    assert plan.dropped == ("old.0.mask", "old.12.mask")


def test_a_part_of_the_model_is_as_good():
    plan = plan_import(TABLE, {"conv/kernel": (1, 1, 2, 4)}, {"conv.weight": (4, 2, 1, 1)})
    assert [entry.ours for entry in plan.entries] == ["conv/kernel"]


def problems(table: Table, ours: dict, theirs: dict) -> MappingError:
    with pytest.raises(MappingError) as info:
        plan_import(table, ours, theirs)
    error = info.value
    listed = [name for names in vars(error.problems).values() for name in names]
    assert all(name in str(error) for name in listed)
    assert "\n" not in str(error) and isinstance(error, InputError)
    return error


def test_every_missing_key_is_listed():
    error = problems(TABLE, OURS, {"h.0.bias": (3,)})
    assert error.problems.missing == ("h.0.weight", "conv.weight")
    assert not error.problems.unexpected


def test_every_unexpected_key_is_listed():
    # A drop names an index, and only a plain one: h.0.x and old.01.mask are not on the list.
    more = {"h.0.x": (1,), "h.1.bias": (3,), "old.01.mask": (1,), "old.0.maskx": (1,)}
    error = problems(TABLE, OURS, THEIRS | more)
    assert error.problems.unexpected == tuple(more)


def test_every_parameter_without_a_row_is_listed():
    error = problems(TABLE, OURS | {"extra/scale": (1,), "layers/x/bias": (3,)}, THEIRS)
    assert error.problems.unmapped == ("extra/scale", "layers/x/bias")


def test_every_wrong_shape_is_listed_even_where_the_size_is_right():
    wrong = {"h.0.weight": (2, 3), "h.0.bias": (3, 1), "conv.weight": (1, 1, 2, 4)}
    error = problems(TABLE, OURS, wrong)
    assert error.problems.wrong_shape == (
        "h.0.weight is (2, 3), expected (3, 2)",
        "h.0.bias is (3, 1), expected (3,)",
        "conv.weight is (1, 1, 2, 4), expected (4, 2, 1, 1)",
    )


def test_a_parameter_claimed_by_two_rows_is_an_error():
    row = Row("layers/0/bias", "other.bias", SAME)
    table = dataclasses.replace(TABLE, rows=(*TABLE.rows, row))
    error = problems(table, OURS, THEIRS)
    assert error.problems.twice_set == ("layers/0/bias by 2 rows",)


def test_a_key_claimed_by_two_parameters_is_an_error():
    table = dataclasses.replace(TABLE, rows=(*TABLE.rows, Row("tail/bias", "h.0.bias", SAME)))
    error = problems(table, OURS | {"tail/bias": (3,)}, THEIRS)
    assert error.problems.twice_set == ("h.0.bias by 2 parameters",)


def test_all_kinds_come_in_one_message():
    theirs = {"h.0.weight": (9, 9), "conv.weight": (4, 2, 1, 1), "surprise": (1,)}
    error = problems(TABLE, OURS | {"extra/scale": (1,)}, theirs)
    assert str(error) == (
        "tensors do not fit the model in the toy layout: unmapped (1): extra/scale; "
        "missing (1): h.0.bias; unexpected (1): surprise; "
        "wrong shape (1): h.0.weight is (9, 9), expected (3, 2)"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


FUSED = Table(
    "fused",
    (
        Row("b/{i}/q/kernel", "h.{i}.qkv.weight", LINEAR, slice=0),
        Row("b/{i}/k/kernel", "h.{i}.qkv.weight", LINEAR, slice=1),
        Row("b/{i}/v/kernel", "h.{i}.qkv.weight", LINEAR, slice=2),
        Row("pos", "pos", LEADING_AXIS),
    ),
)
# In another order than the slices': the rows of the tensor follow the table, not the parameters.
FUSED_OURS = {"b/0/v/kernel": (5, 2), "b/0/q/kernel": (5, 4), "b/0/k/kernel": (5, 3), "pos": (2, 2)}


def test_a_fused_tensor_is_cut_and_put_together():
    theirs = {
        "h.0.qkv.weight": np.arange(45).reshape(9, 5),
        "pos": np.arange(4).reshape(1, 2, 2),
    }
    plan = plan_import(FUSED, FUSED_OURS, shapes_of(theirs))
    assert plan.their_specs == {"h.0.qkv.weight": (9, 5), "pos": (1, 2, 2)}
    ours = dict(plan.read(theirs))
    assert ours["b/0/q/kernel"].tolist() == np.arange(20).reshape(4, 5).T.tolist()
    assert ours["b/0/k/kernel"].tolist() == np.arange(20, 35).reshape(3, 5).T.tolist()
    assert ours["b/0/v/kernel"].tolist() == np.arange(35, 45).reshape(2, 5).T.tolist()
    assert all(np.shares_memory(ours[e.ours], theirs[e.theirs]) for e in plan.entries)
    back = dict(plan_export(FUSED, FUSED_OURS, shapes_of(ours)).write(ours))
    assert list(back) == ["h.0.qkv.weight", "pos"]
    assert all(np.array_equal(back[key], array) for key, array in theirs.items())


def test_a_fused_tensor_needs_each_slice_once():
    without = {path: shape for path, shape in FUSED_OURS.items() if path != "b/0/k/kernel"}
    error = problems(FUSED, without, {"h.0.qkv.weight": (6, 5), "pos": (1, 2, 2)})
    assert error.problems.unmapped == ("h.0.qkv.weight in part (slice 1 is no parameter)",)
    again = Row("b/{i}/again/kernel", "h.{i}.qkv.weight", LINEAR, slice=1)
    table = dataclasses.replace(FUSED, rows=(*FUSED.rows, again))
    error = problems(table, FUSED_OURS | {"b/0/again/kernel": (5, 3)}, {})
    assert error.problems.twice_set == ("h.0.qkv.weight by 4 parameters",)
    alone = dataclasses.replace(again, slice=None)
    table = dataclasses.replace(FUSED, rows=(*FUSED.rows, alone))
    error = problems(table, FUSED_OURS | {"b/0/again/kernel": (5, 9)}, {})
    assert error.problems.twice_set == ("h.0.qkv.weight by 4 parameters",)


def test_a_fused_tensor_of_another_shape_is_one_offender():
    error = problems(FUSED, FUSED_OURS, {"h.0.qkv.weight": (5, 9), "pos": (2, 2)})
    assert error.problems.wrong_shape == (
        "h.0.qkv.weight is (5, 9), expected (9, 5)",
        "pos is (2, 2), expected (1, 2, 2)",
    )


def test_a_tied_tensor_is_read_twice_and_written_once():
    tied = Row("head/kernel", "embed.weight", LINEAR, tied=True)
    table = Table("tied", (Row("embed/embedding", "embed.weight", SAME), tied))
    shapes = {"head/kernel": (2, 3), "embed/embedding": (3, 2)}
    theirs = {"embed.weight": np.arange(6).reshape(3, 2)}
    plan = plan_import(table, shapes, shapes_of(theirs))
    ours = dict(plan.read(theirs))
    assert np.array_equal(ours["head/kernel"].T, ours["embed/embedding"])
    assert plan.their_specs == {"embed.weight": (3, 2)}
    assert [key for key, _ in plan.write(ours)] == ["embed.weight"]
    # The tied end alone is a part too.
    plan = plan_import(table, {"head/kernel": (2, 3)}, shapes_of(theirs))
    assert [path for path, _ in plan.read(theirs)] == ["head/kernel"]


def test_tensors_are_read_one_at_a_time():
    class Stored:
        def __init__(self, key: str, shape: tuple[int, ...]):
            self.key, self.shape = key, shape

        def read(self) -> np.ndarray:
            reads.append(self.key)
            return np.zeros(self.shape, np.float32)

    reads: list[str] = []
    theirs = {key: Stored(key, shape) for key, shape in THEIRS.items()}
    for seen, (_, array) in enumerate(plan_import(TABLE, OURS, THEIRS).read(theirs), 1):
        assert len(reads) == seen and array.size


@given(st.from_regex(r"[a-z0-9.{}*/]{0,12}", fullmatch=True), st.text(max_size=12))
def test_a_pattern_without_names_matches_itself_only(pattern, text):
    literal = pattern.replace("{", "").replace("}", "").replace("*", "")
    assert regex(literal).fullmatch(literal)
    assert (regex(literal).fullmatch(text) is not None) == (text == literal)
    assert regex("*").fullmatch(text) if text else regex("*").fullmatch(text) is None


@given(st.integers(0, 10**20), st.text("0123456789x-+ ٣²", min_size=1, max_size=4))
def test_an_index_is_a_plain_decimal_number(number, text):
    match = regex("a.{i}.b").fullmatch(f"a.{number}.b")
    assert match and match["i"] == str(number)
    plain = text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")
    assert (regex("a.{i}.b").fullmatch(f"a.{text}.b") is not None) == plain


def test_export_lists_what_does_not_fit_by_our_paths():
    with pytest.raises(MappingError) as info:
        plan_export(TABLE, OURS, {"layers/0/kernel": (3, 2), "conv/kernel": (1, 1, 2, 4), "x": ()})
    assert info.value.problems.missing == ("layers/0/bias",)
    assert info.value.problems.unexpected == ("x",)
    assert info.value.problems.wrong_shape == ("layers/0/kernel is (3, 2), expected (2, 3)",)


def test_no_tensor_is_touched_before_everything_is_checked():
    class Untouchable:
        shape = (3, 2)

        def __getattr__(self, name):
            raise AssertionError(f"{name} of a tensor was used")

    with pytest.raises(MappingError):
        plan_import(TABLE, OURS, shapes_of({"h.0.weight": Untouchable()}))


@pytest.mark.parametrize("table", [HF, HF_OLDER, DEEPSEEK], ids=lambda table: table.name)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_both_directions_are_bit_equal(dtype, table):
    shapes = shapes_of(functional.flat_params(functional.abstract(DEBUG)[1]))
    rng = np.random.default_rng(0)
    ours = {path: rng.standard_normal(shape).astype(dtype) for path, shape in shapes.items()}

    exported = dict(plan_export(table, shapes, shapes_of(ours)).write(ours))
    fused = 4 * DEBUG.vision.depth if table is DEEPSEEK else 0
    assert len(exported) == len(ours) - fused
    assert all(x.flags.c_contiguous and x.dtype == dtype for x in exported.values())
    plan = plan_import(table, shapes, shapes_of(exported))
    back = dict(plan.read(exported))

    assert list(back) == list(ours)
    for path, array in ours.items():
        assert back[path].dtype == dtype and back[path].shape == array.shape
        assert np.ascontiguousarray(back[path]).tobytes() == array.tobytes(), path
    again = dict(plan.write(back))
    assert all(again[key].tobytes() == array.tobytes() for key, array in exported.items())


def test_flat_parameters_become_a_tree_again():
    abstract = functional.abstract(DEBUG)[1]
    flat = functional.flat_params(abstract)
    values = {path: np.full(leaf.shape, i) for i, (path, leaf) in enumerate(flat.items())}
    tree = functional.unflatten_params(abstract, values)
    found = functional.flat_params(tree)
    assert all(found[path] is value for path, value in values.items())
    with pytest.raises(KeyError, match="vq/codebook"):
        functional.unflatten_params(abstract, {k: v for k, v in values.items() if "book" not in k})
