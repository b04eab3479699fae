"""The one augmentation: pictures moved by a few pixels over their white background."""

from __future__ import annotations

import numpy as np


def random_shift(picture: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Moves a picture by up to `most` pixels each way; what it uncovers is white.

    Args:
      picture: uint8 [S, S, 3].
      most: largest shift in pixels; 0 returns the picture itself.
      rng: source of the shift.

    Returns:
      uint8 [S, S, 3].
    """
    if most == 0:
        return picture
    size = picture.shape[0]
    y, x = rng.integers(0, 2 * most + 1, 2)
    padded = np.pad(picture, ((most, most), (most, most), (0, 0)), constant_values=255)
    return padded[y : y + size, x : x + size]
