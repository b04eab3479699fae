"""Every transform as a literal example, and its inverse."""

import ml_dtypes
import numpy as np
import pytest

from convert.transforms import CONV, LINEAR, SAME


def test_linear_weights_are_transposed():
    theirs = np.array([[1, 2, 3], [4, 5, 6]])  # [out 2, in 3]
    ours = LINEAR.to_ours(theirs)
    assert ours.tolist() == [[1, 4], [2, 5], [3, 6]]  # [in 3, out 2]
    assert LINEAR.their_shape((3, 2)) == (2, 3)


def test_conv_weights_go_from_oihw_to_hwio():
    # Each value spells its place: o i h w.
    o, i, h, w = np.ogrid[:2, :3, :4, :5]
    theirs = 1000 * o + 100 * i + 10 * h + w
    ours = CONV.to_ours(theirs)
    assert ours.shape == (4, 5, 3, 2)
    assert ours[3, 4, 2, 1] == 1234
    assert ours[1, 0, 2, 0] == 210
    assert CONV.their_shape((4, 5, 3, 2)) == (2, 3, 4, 5)


def test_the_rest_stays():
    x = np.arange(3)
    assert SAME.to_ours(x) is x and SAME.to_theirs(x) is x and SAME.their_shape((3,)) == (3,)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
@pytest.mark.parametrize(
    ("transform", "shape"),
    [(SAME, (5,)), (SAME, (2, 7)), (LINEAR, (3, 5)), (CONV, (3, 4, 5, 2))],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_inverses_are_exact_in_any_dtype(transform, shape, dtype):
    theirs = np.random.default_rng(0).integers(0, 1000, transform.their_shape(shape)).astype(dtype)
    ours = transform.to_ours(theirs)
    assert ours.shape == shape and ours.dtype == dtype
    back = transform.to_theirs(ours)
    assert back.dtype == dtype and back.tobytes() == theirs.tobytes()
