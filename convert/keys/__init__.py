"""The key tables: which parameter of ours is which tensor of a published layout."""

from convert.keys.deepseek import DEEPSEEK
from convert.keys.hf import HF, HF_OLDER
from convert.keys.parts import LLAMA, LLAMA_TIED, SIGLIP, SIGLIP_ALONE, VQ16
from convert.keys.table import Row, Table

__all__ = [
    "DEEPSEEK",
    "HF",
    "HF_OLDER",
    "LLAMA",
    "LLAMA_TIED",
    "SIGLIP",
    "SIGLIP_ALONE",
    "VQ16",
    "Row",
    "Table",
]
