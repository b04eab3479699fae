"""Valid weight files, and random damage to them, for fuzzing."""

import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors

from convert.readers.safetensors import open_safetensors
from convert.readers.torch_bin import open_torch_bin
from janus_jax.errors import InputError
from tests.convert.readers.forge import archive, dict_, pickled, safetensors_of, tensor, zip_of


@dataclass(frozen=True)
class Seed:
    """A valid file.

    Attributes:
        core: The part of it that is damaged.
        wrap: Makes the file of that part. Sizes and checksums around it stay right, or else no
            damage would ever get past them to what they protect.
    """

    core: bytes
    wrap: Callable[[bytes], bytes] = bytes

    @property
    def file(self) -> bytes:
        """The file without damage."""
        return self.wrap(self.core)


def seeds() -> dict[str, Seed]:
    """Small valid files by name, whole ones and the insides of whole ones."""
    state = {
        "a.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "strided": torch.arange(12, dtype=torch.float16).reshape(3, 4).t(),
        "young": torch.arange(4).to(torch.uint16),
    }
    whole = _saved(state)
    training = {
        "model": torch.nn.Linear(2, 3).state_dict() | state,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "steps": [1, 2**40, -1.5, None, (True, False)],
    }
    pickle, storages = _inside(_saved(training))
    tensors = save_safetensors({k: v.contiguous() for k, v in state.items()})
    start = 8 + int.from_bytes(tensors[:8], "little")
    return {
        "today.bin": Seed(whole),
        "torch2.bin": Seed(zip_of(archive(pickled(dict_(w=tensor(), v=tensor()))))),
        "pickle.bin": Seed(pickle, lambda damaged: zip_of(archive(damaged, storages))),
        "m.safetensors": Seed(tensors),
        "header.safetensors": Seed(
            tensors[8:start], lambda damaged: safetensors_of(damaged, tensors[start:])
        ),
    }


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _inside(file: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The pickle of a file of torch.save, and its storages by key."""
    with zipfile.ZipFile(io.BytesIO(file)) as opened:
        inner = {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}
    storages = {k.removeprefix("data/"): v for k, v in inner.items() if k.startswith("data/")}
    return inner["data.pkl"], storages


# Words of the two languages that damage is made of beside random bytes.
_PICKLE = rb"""( ) t \x85 \x86 \x81 ] } a e s u N R Q b . K\1 M\377\377 J\377\377\377\377 \x8a\377
    q\0 h\0 h\5 X\1\0\0\0w ctorch\nFloatStorage\n ccollections\nOrderedDict\n cos\nsystem\n"""
_JSON = b'[ ] { } " , : -1 null 1e999 "F32" [0,0]'
_WORDS = [
    word.decode("unicode_escape").encode("latin-1") for word in (*_PICKLE.split(), *_JSON.split())
]


def damaged(seed: Seed, dice: random.Random) -> bytes:
    """The file with one to four cuts, flips, insertions or exchanges in its core."""
    content = bytearray(seed.core)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(content) + 1)
        match dice.randrange(7):
            case 0 if content:
                content[at % len(content)] ^= 1 << dice.randrange(8)
            case 1 if content:
                content[at % len(content)] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                content[at:at] = dice.randbytes(dice.randint(1, 16))
            case 3:
                del content[at : at + dice.randint(1, 64)]
            case 4:
                other = dice.randrange(len(content) + 1)
                content[at:at] = content[other : other + dice.randint(1, 64)]
            case 5:
                width = dice.choice((2, 4, 8))
                number = dice.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, len(content)))
                content[at : at + width] = (number % 256**width).to_bytes(width, "little")
            case 6:
                word = dice.choice(_WORDS)
                content[at : at + dice.choice((0, len(word)))] = word
    return seed.wrap(bytes(content))


def survives(path: Path) -> bool:
    """Reads a file: True where it is refused in one line, False where all its tensors are read.

    Any other exception, or a tensor that is not what its description says, is the caller's failure.
    """
    try:
        if path.suffix == ".safetensors":
            found = open_safetensors(path)
        else:
            found = open_torch_bin(path, under=("model",))
    except InputError as error:
        assert "\n" not in str(error), error
        return True
    for stored in found.values():
        array = stored.read()
        assert (array.shape, array.dtype) == (stored.shape, stored.dtype)
        assert array.nbytes == stored.nbytes <= path.stat().st_size
        array.tobytes()
    return False
