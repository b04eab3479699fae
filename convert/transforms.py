"""How one tensor changes between our layout and PyTorch's: named, invertible, never lossy.

Every transform is a permutation of elements, so both directions are exact in any dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """One invertible change of a tensor's axes.

    Attributes:
      name: how a conversion report calls it.
      rank: dimensions a tensor must have, or None for any.
      to_ours: PyTorch's array -> ours; a view where numpy can make one.
      to_theirs: the inverse.
      their_shape: our shape -> the shape PyTorch stores, so that a stored shape can be checked
        before anything is moved.
    """

    name: str
    rank: int | None
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]
    their_shape: Callable[[Shape], Shape]


def _permutation(name: str, axes: tuple[int, ...]) -> Transform:
    """The transform whose array of ours has `axes` of PyTorch's, in this order."""
    inverse = tuple(axes.index(i) for i in range(len(axes)))
    return Transform(
        name,
        len(axes),
        to_ours=lambda x: x.transpose(axes),
        to_theirs=lambda x: x.transpose(inverse),
        their_shape=lambda shape: tuple(shape[i] for i in inverse),
    )


SAME = Transform("same", None, lambda x: x, lambda x: x, lambda shape: shape)
"""Vectors and tables: biases, norms, embeddings, the codebook."""

LINEAR = _permutation("linear", (1, 0))
"""`Linear` weights: [out, in] there, [in, out] here."""

CONV = _permutation("conv", (2, 3, 1, 0))
"""`Conv2d` weights: OIHW there, HWIO here."""

LEADING_AXIS = Transform(
    "leading axis",
    2,
    to_ours=lambda x: x[0],
    to_theirs=lambda x: x[None],
    their_shape=lambda shape: (1, *shape),
)
"""A table that PyTorch's side keeps as a batch of one: [1, P, W] there, [P, W] here."""
