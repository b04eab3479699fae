"""The names that a pickle of torch.save may mention, and what they stand for here.

Nothing is imported by these names: each is only compared with the text in the pickle.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class PickledStorage:
    """The bytes that tensors are made of, as a pickle names them.

    Attributes:
        key: Name of the archive record `data/KEY`.
        dtype: Of its elements; None for untyped bytes.
        size: Number of elements, or of bytes where untyped.
    """

    key: str
    dtype: np.dtype | None
    size: int


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as a pickle describes it: nothing of it is checked but the types of these fields.

    Attributes:
        storage: Where its elements are.
        dtype: Of the elements.
        offset: First element, in elements from the start of the storage.
        shape: Sizes of the axes.
        strides: Steps along the axes, in elements.
    """

    storage: PickledStorage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class OrderedDict(dict):
    """Stands for collections.OrderedDict, whose `_metadata` torch sets and readers ignore."""


class Namespace:
    """Stands for argparse.Namespace, as training scripts save beside the weights; without content.

    Its attributes are read, so that they are known to be harmless, and forgotten.
    """


@dataclass(frozen=True)
class Name:
    """A name that a pickle may mention, and what it means here.

    Attributes:
        name: As the pickle has it, `module.name`.
        storage: Type of the elements, where it is one of torch's typed storages.
        dtype: The type, where it is one of torch's types.
    """

    name: str
    storage: np.dtype | None = None
    dtype: np.dtype | None = None


def _vocabulary() -> dict[str, Name]:
    known = {
        name: Name(name)
        for name in (
            "collections.OrderedDict",
            "argparse.Namespace",
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_tensor_v3",
            "torch._utils._rebuild_parameter",
            "torch.storage.UntypedStorage",
        )
    }
    storages = {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
        "ComplexDouble": np.complex128,
        "ComplexFloat": np.complex64,
    }
    # Types younger than the storage classes: torch saves untyped bytes and names the type.
    young = {
        "uint16": np.uint16,
        "uint32": np.uint32,
        "uint64": np.uint64,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
    }
    for kind, dtype in storages.items():
        name = f"torch.{kind}Storage"
        known[name] = Name(name, storage=np.dtype(dtype))
    for kind, dtype in young.items():
        name = f"torch.{kind}"
        known[name] = Name(name, dtype=np.dtype(dtype))
    return known


VOCABULARY = _vocabulary()
