"""Array types with shapes and dtypes in them, for signatures.

The names are jaxtyping's, so that a signature can carry the shape::

    def encode_image(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B P D"]: ...

The axis letters are the ones in the legend at the top of each model file. Nothing is checked in
normal use, and the annotations cost nothing; the tests turn checking on (see tests/conftest.py).
"""

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PyTree, Shaped, UInt8

Pixels = Float32[Array, "B S S 3"]
"""A batch of square RGB images, float32; each user of the alias states its value range."""

TokenIds = Int32[Array, "B T"]
"""Text tokens or image codes, int32."""

Mask = Bool[Array, "B T"]
"""True where a position holds a real token, False on padding."""

Canvas = UInt8[np.ndarray, "S S 3"]
"""One square RGB image on the host, 0 to 255."""

__all__ = [
    "Array",
    "Bool",
    "Canvas",
    "Float",
    "Float32",
    "Int",
    "Int32",
    "Key",
    "Mask",
    "Pixels",
    "PyTree",
    "Shaped",
    "TokenIds",
    "UInt8",
]
