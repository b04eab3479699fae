"""Valid weight files, and random damage to them, for fuzzing."""

import io
import random
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors

from convert.readers.safetensors import open_safetensors
from convert.readers.torch_bin import open_torch_bin
from janus_jax.errors import InputError
from tests.convert.readers.forge import archive, dict_, pickled, tensor, zip_of


def seeds() -> dict[str, bytes]:
    """Small valid files by suffix and writer."""
    state = {
        "a.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "strided": torch.arange(12, dtype=torch.float16).reshape(3, 4).t(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    contiguous = {k: v.contiguous() for k, v in state.items()}
    return {
        "today.bin": buffer.getvalue(),
        "torch2.bin": zip_of(archive(pickled(dict_(w=tensor(), v=tensor())))),
        "m.safetensors": save_safetensors(contiguous),
    }


def damaged(data: bytes, random: random.Random) -> bytes:
    """The file with one to four cuts, flips, insertions or exchanges."""
    content = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(content) + 1)
        match random.randrange(6):
            case 0 if content:
                content[at % len(content)] ^= 1 << random.randrange(8)
            case 1 if content:
                content[at % len(content)] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                content[at:at] = random.randbytes(random.randint(1, 16))
            case 3:
                del content[at : at + random.randint(1, 64)]
            case 4:
                other = random.randrange(len(content) + 1)
                content[at:at] = content[other : other + random.randint(1, 64)]
            case 5:
                width = random.choice((2, 4, 8))
                number = random.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, len(content)))
                content[at : at + width] = (number % 256**width).to_bytes(width, "little")
    return bytes(content)


def survives(path: Path) -> bool:
    """Reads a file: True where it is refused in one line, False where all its tensors are read.

    Any other exception, or a tensor that is not what its description says, is the caller's failure.
    """
    read = open_safetensors if path.suffix == ".safetensors" else open_torch_bin
    try:
        found = read(path)
    except InputError as error:
        assert "\n" not in str(error), error
        return True
    for stored in found.values():
        array = stored.read()
        assert (array.shape, array.dtype) == (stored.shape, stored.dtype)
        array.tobytes()
    return False
