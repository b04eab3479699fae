"""Both directions bit for bit, and errors that name every offender at once."""

import dataclasses
import pickle

import ml_dtypes
import numpy as np
import pytest

from convert.engine import MappingError, plan_export, plan_import, shapes_of
from convert.keys import HF, Row, Table
from convert.transforms import CONV, LINEAR, SAME
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


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_both_directions_are_bit_equal(dtype):
    shapes = shapes_of(functional.flat_params(functional.abstract(DEBUG)[1]))
    rng = np.random.default_rng(0)
    ours = {path: rng.standard_normal(shape).astype(dtype) for path, shape in shapes.items()}

    exported = dict(plan_export(HF, shapes, shapes_of(ours)).write(ours))
    assert len(exported) == len(ours)
    assert all(x.flags.c_contiguous and x.dtype == dtype for x in exported.values())
    plan = plan_import(HF, shapes, shapes_of(exported))
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
