"""Parameters on disk: what is written in blocks is what Orbax would have written whole."""

import hashlib
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax import functional, params_io, streaming
from janus_jax.config import DEBUG
from janus_jax.params_io import LazyTensor, nested, restore_params, save_params, save_tensors
from janus_jax.sharding import make_mesh, param_shardings

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def small_blocks(monkeypatch):
    """Chunks of 1 kB, blocks of 4 kB, 8 kB in flight: every array below is cut many times."""
    monkeypatch.setattr(params_io, "CHUNK_BYTES", 2**10)
    monkeypatch.setattr(streaming, "_BLOCK_BYTES", 2**12)
    monkeypatch.setattr(streaming, "_BATCH_BYTES", 2**12)
    monkeypatch.setattr(streaming, "_BYTES_IN_FLIGHT", 2**13)


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "llm/layers/0/wide": rng.standard_normal((96, 60)).astype(np.float32),
        "llm/layers/10/transposed": rng.standard_normal((130, 77)).astype(BF16).T,
        "vq/conv": rng.standard_normal((3, 3, 8, 24)).astype(np.float32),
        "vq/one": np.array(3.5, np.float32),
        "norm": rng.standard_normal(5).astype(BF16),
    }


def lazy(arrays: dict[str, np.ndarray]) -> dict[str, LazyTensor]:
    return {k: LazyTensor(v.shape, v.dtype, lambda v=v: v) for k, v in arrays.items()}


def test_plain_orbax_reads_what_was_written_in_blocks(tmp_path, small_blocks):
    arrays = values()
    written: list[int] = []
    entries = save_tensors(tmp_path / "p", lazy(arrays), progress=written.append)
    assert sum(written) == sum(v.nbytes for v in arrays.values())
    assert len(written) > 12
    with ocp.PyTreeCheckpointer() as orbax:
        found = orbax.restore(tmp_path / "p")
    assert jax.tree.structure(found) == jax.tree.structure(nested(arrays))
    for (path, value), want in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(nested(arrays)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(value), want, err_msg=str(path))
        assert value.dtype == want.dtype
    for name, value in arrays.items():
        assert entries[name] == {
            "shape": list(value.shape),
            "dtype": value.dtype.name,
            "sha256": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest(),
        }


def test_every_tensor_is_read_once_and_one_at_a_time(tmp_path, small_blocks):
    reads: list[str] = []

    def reader(name: str, value: np.ndarray) -> LazyTensor:
        def read() -> np.ndarray:
            reads.append(name)
            return value

        return LazyTensor(value.shape, value.dtype, read)

    save_tensors(tmp_path / "p", {k: reader(k, v) for k, v in values().items()})
    assert sorted(reads) == sorted(values())


def test_storing_in_another_dtype(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    entries = save_tensors(tmp_path / "p", {"a": LazyTensor((3, 4), BF16, lambda: array)})
    assert entries["a"]["dtype"] == "bfloat16"
    with ocp.PyTreeCheckpointer() as orbax:
        np.testing.assert_array_equal(orbax.restore(tmp_path / "p")["a"], array.astype(BF16))


def test_a_reader_that_lies_about_its_shape_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"\(2,\), not \(3,\)"):
        save_tensors(tmp_path / "p", {"a": LazyTensor((3,), BF16, lambda: np.zeros(2))})
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]
)
def test_a_mesh_reads_what_one_device_reads(tmp_path, small_blocks, sizes):
    wanted = functional.abstract(DEBUG)[1]
    arrays = {
        name: np.random.default_rng(i).standard_normal(leaf.shape, np.float32)
        for i, (name, leaf) in enumerate(functional.flat_params(wanted).items())
    }
    save_tensors(tmp_path / "p", lazy(arrays))
    mesh = make_mesh(sizes)
    placed = functional.flat_params(
        restore_params(tmp_path / "p", wanted, param_shardings(wanted, mesh))
    )
    for name, value in arrays.items():
        np.testing.assert_array_equal(np.asarray(placed[name]), value, err_msg=name)
    gate = placed["llm/layers/0/mlp/gate/kernel"]
    ways = (sizes["fsdp"], sizes.get("tensor", 1))
    assert gate.addressable_shards[0].data.shape == tuple(
        n // w for n, w in zip(gate.shape, ways, strict=True)
    )


def test_saving_a_state_of_device_arrays(tmp_path):
    params = functional.build(DEBUG, 0)[1]
    entries = save_params(tmp_path / "p", params, dtype="bfloat16")
    back = restore_params(tmp_path / "p", params, manifest=entries)
    for name, value in functional.flat_params(params).items():
        np.testing.assert_array_equal(
            np.asarray(functional.flat_params(back)[name]),
            np.asarray(value).astype(BF16).astype(np.float32),
            err_msg=name,
        )


def bytes_read() -> int:
    """Bytes that this process has read from checkpoints so far, as the storage counts them."""
    (metric,) = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return metric["values"][0]["value"]


def share_read(path: Path, array: np.ndarray, columns: slice) -> float:
    """Bytes read for these columns alone, as one device of a mesh asks for them, over all bytes."""
    kvstore = {"driver": "ocdbt", "base": f"file://{path}", "path": "a/"}
    store = ts.open({"driver": "zarr3", "kvstore": kvstore}).result()
    before = bytes_read()
    part = store[:, columns].read().result()
    np.testing.assert_array_equal(part, array[:, columns])
    return (bytes_read() - before) / array.nbytes


def test_a_device_reads_its_own_part(tmp_path, monkeypatch):
    array = np.random.default_rng(0).integers(0, 2**14, (2048, 2048), np.uint16).view(BF16)
    save_tensors(tmp_path / "p", lazy({"a": array}))
    assert share_read(tmp_path / "p", array, slice(256, 512)) < 1.05 / 8
    # The control: where pieces are whole chunks, what belongs to other devices is read too.
    monkeypatch.setattr(streaming, "PIECE_BYTES", streaming.CHUNK_BYTES)
    save_tensors(tmp_path / "q", lazy({"a": array}))
    assert share_read(tmp_path / "q", array, slice(256, 512)) > 3 / 8

    sharding = NamedSharding(make_mesh({"fsdp": 8}), PartitionSpec(None, "fsdp"))
    wanted = nnx.State({"a": jax.ShapeDtypeStruct(array.shape, np.float32)})
    before = bytes_read()
    placed = restore_params(tmp_path / "p", wanted, nnx.State({"a": sharding}))["a"]
    assert bytes_read() - before < 1.05 * array.nbytes  # eight devices, an eighth each
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2048, 256)}
    assert placed.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(placed), array.astype(np.float32))
