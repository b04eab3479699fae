"""What torch.save writes, read without torch: equal to what torch.load reads."""

import argparse
import collections
import mmap
import os
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from convert.readers.torch_bin import open_torch_bin
from janus_jax.errors import InputError
from tests.convert.readers import forge

DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
    torch.uint16: np.uint16,
    torch.uint32: np.uint32,
    torch.uint64: np.uint64,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
}


def as_bytes(tensor: torch.Tensor) -> bytes:
    """Elements in C order; `view` because NumPy knows no bfloat16."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_reads(path, expected: dict[str, torch.Tensor], **kwargs) -> None:
    stored = open_torch_bin(path, **kwargs)
    assert list(stored) == list(expected)
    for name, tensor in expected.items():
        array = stored[name].read()
        assert stored[name].shape == array.shape == tuple(tensor.shape), name
        assert stored[name].dtype == array.dtype == DTYPES[tensor.dtype], name
        assert stored[name].nbytes == tensor.numel() * tensor.element_size(), name
        assert stored[name].file == path
        assert array.tobytes() == as_bytes(tensor), name
        assert (not array.flags.writeable and not array.flags.owndata) or array.size == 0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


def test_every_type_bit_for_bit(path):
    noise = torch.randint(0, 256, (3, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    state = {str(d): noise.view(d) for d in DTYPES if d not in (torch.bool, torch.uint8)}
    # Saved apart: torch refuses to save one storage under several types.
    state = {name: tensor.clone() for name, tensor in state.items()}
    state |= {"bool": noise > 127, "bytes": noise}
    torch.save(state, path)
    assert_reads(path, state)


def test_shapes_strides_and_shared_storages(path):
    base = torch.arange(120, dtype=torch.float32)
    matrix = base.view(10, 12)
    state = {
        "matrix": matrix,
        "transposed": matrix.t(),
        "steps": matrix[1::3, 2::5],
        "tail": base[100:],
        "column": matrix[:, 3:4],
        "permuted": base.view(2, 3, 4, 5).permute(3, 1, 0, 2),
        "scalar": torch.tensor(2.5),
        "scalar of a vector": base[7],
        "empty": torch.zeros(0),
        "empty matrix": torch.zeros(4, 0, 3, dtype=torch.bfloat16),
        "empty tail": base[120:],
    }
    torch.save(state, path)
    assert_reads(path, state)
    stored = open_torch_bin(path)
    assert stored["transposed"].offset == stored["matrix"].offset
    assert stored["matrix"].strides is None  # C order is not spelled out.
    assert stored["tail"].offset == stored["matrix"].offset + 400


def test_modules_with_parameters_buffers_tied_weights_and_versions(path):
    module = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.BatchNorm1d(4))
    module.append(torch.nn.Linear(4, 7, bias=False))
    module[2].weight = module[0].weight
    state = module.state_dict()
    assert state._metadata  # torch saves it as an attribute of the OrderedDict.
    torch.save(state, path)
    assert_reads(path, state)
    stored = open_torch_bin(path)
    assert stored["0.weight"].offset == stored["2.weight"].offset
    parameters = collections.OrderedDict(module.named_parameters())
    assert isinstance(parameters["0.weight"], torch.nn.Parameter)
    torch.save(parameters, path)
    assert_reads(path, parameters)


def test_views_are_of_the_file_and_read_only(path):
    torch.save({"w": torch.ones(4, 4)}, path)
    stored = open_torch_bin(path)["w"]
    array = stored.read()
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert (base.obj if isinstance(base, memoryview) else base) is stored.data
    assert isinstance(stored.data, mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 2
    with pytest.raises(AttributeError):
        stored.shape = (1,)


def test_a_training_checkpoint_is_searched_for_the_named_entry(path):
    weights = {"encoder.weight": torch.randn(3, 2, generator=torch.manual_seed(1))}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(weights["encoder.weight"].clone())])
    torch.save(
        {
            "model": weights,
            "optimizer": optimizer.state_dict(),
            "steps": 2**40,
            "args": argparse.Namespace(lr=1e-4, name="VQ-16", sizes=[1, 2], ema=None),
            "done": (True, False),
        },
        path,
    )
    assert_reads(path, weights, under=("ema", "model", "state_dict"))
    with pytest.raises(InputError, match=r"not tensors: \(5\).*'steps \(int\)'.*'args"):
        open_torch_bin(path)
    with pytest.raises(InputError, match="or one under ema, state_dict"):
        open_torch_bin(path, under=("ema", "state_dict"))
    torch.save({"model": {"w": torch.ones(1), "step": 3}}, path)
    with pytest.raises(InputError, match=r"under 'model' that are not tensors: \(1\) 'step \(int"):
        open_torch_bin(path, under=("model",))


def test_a_plain_state_dict_needs_no_entry(path):
    state = {"model": torch.ones(2)}  # A tensor of this name is not an entry of this name.
    torch.save(state, path)
    assert_reads(path, state, under=("model",))


def test_files_of_torch_2_0(path):
    # Its pickles are those of today; its archives have no byte order and other records.
    values = np.arange(6, dtype=np.float32)
    value = forge.ORDERED_DICT + b")R(" + forge.text("w") + forge.tensor() + b"u"
    value += forge.dict_(_metadata=forge.ORDERED_DICT + b")R") + b"b"
    forge.write_bin(path, value, storages={"0": values.tobytes()})
    stored = open_torch_bin(path)
    np.testing.assert_array_equal(stored["w"].read(), values.reshape(2, 3))
    assert torch.equal(torch.load(path)["w"], torch.arange(6.0).view(2, 3))


def test_storages_on_accelerators_are_read_like_any_other(path):
    value = forge.dict_(w=forge.tensor()).replace(forge.text("cpu"), forge.text("cuda:0"))
    assert open_torch_bin(forge.write_bin(path, value))["w"].read().sum() == 0


def test_archives_beyond_four_gibibytes(path):
    # torch leaves the bytes of the tensors out, so this takes 5 GiB of file and none of disk.
    with torch.serialization.skip_data():
        torch.save({"big": torch.empty(5 * 2**30, dtype=torch.int8), "w": torch.ones(8)}, path)
    assert path.stat().st_size > 5 * 2**30
    stored = open_torch_bin(path)
    assert stored["big"].shape == (5 * 2**30,)
    assert stored["w"].offset > 5 * 2**30
    with path.open("r+b") as file:
        file.seek(stored["w"].offset)
        file.write(struct.pack("<8f", *range(8)))
    np.testing.assert_array_equal(stored["w"].read(), np.arange(8))
    assert stored["big"].read()[-1] == 0
    path.unlink()


def test_archives_written_by_zip_tools_and_without_checksums(path, tmp_path):
    state = {"w": torch.arange(5.0)}
    torch.save(state, tmp_path / "original.bin")
    with zipfile.ZipFile(tmp_path / "original.bin") as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert_reads(path, state)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_reads(path, state)


def test_the_legacy_format_is_refused_with_advice(path):
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"legacy format.*fix: .*torch\.save\(torch\.load\("):
        open_torch_bin(path)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_other_things_that_people_pass(path, tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(InputError, match=r"compressed.*TorchScript program"):
        open_torch_bin(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(InputError, match="holds a list; allowed: a dict of tensors"):
        open_torch_bin(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match=r"'torch\.nn\.modules\.linear\.Linear'"):
        open_torch_bin(path)
    torch.save({"w": torch.ones(2).conj_physical().to(torch.complex64).conj()}, path)
    with pytest.raises(InputError, match="a conjugate or negative view"):
        open_torch_bin(path)
    torch.save({"w": torch.ones(1).expand(3, 4)}, path)
    with pytest.raises(InputError, match=r"'w' repeats elements.*fix: call \.contiguous\(\)"):
        open_torch_bin(path)
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=4)
    with pytest.raises(InputError, match="protocol 4"):
        open_torch_bin(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(InputError, match=r"Git LFS pointer.*git lfs pull"):
        open_torch_bin(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        open_torch_bin(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        open_torch_bin(tmp_path / "pipe")  # Does not wait for a writer.
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        open_torch_bin(tmp_path / "absent.bin")


def test_every_truncation_of_a_file_is_refused(path):
    torch.save({"w": torch.arange(6.0), "b": torch.zeros(2)}, path)
    whole = path.read_bytes()
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=path.name):
            open_torch_bin(path)
