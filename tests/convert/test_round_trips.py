"""From checkpoints that the peers wrote to ours and back: bit for bit, in both dtypes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from convert.configs import plan_whole, read_config
from convert.engine import plan_export, shapes_of
from convert.layouts import DEEPSEEK_LAYOUT, HF_LAYOUT, HF_OLDER_LAYOUT, Layout, detect
from convert.readers.checkpoint import open_checkpoint
from janus_jax import functional
from janus_jax.config import DEBUG
from tests.convert import peers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint read from disk: its layout, and the parameters it became."""

    layout: Layout
    dropped: tuple[str, ...]
    params: dict[str, np.ndarray]


def read(path: Path) -> Imported:
    stored = open_checkpoint(path).tensors
    layout = detect(stored)
    config = read_config(path, layout)
    assert config == DEBUG
    plan = plan_whole(config, layout.table, shapes_of(stored))
    return Imported(layout, plan.dropped, dict(plan.read(stored)))


def export(layout: Layout, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    wanted = shapes_of(functional.flat_params(functional.abstract(DEBUG)[1]))
    plan = plan_export(layout.table, wanted, shapes_of(params))
    exported = dict(plan.write(params))
    assert {key: value.shape for key, value in exported.items()} == plan.their_specs
    assert list(exported) == list(plan.their_specs)
    return exported


def assert_bits(found: dict[str, np.ndarray], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for key, tensor in wanted.items():
        bits = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert found[key].shape == tuple(tensor.shape), key
        assert found[key].flags.c_contiguous and found[key].tobytes() == bits, key


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(scope="module")
def from_hf(dtype, tmp_path_factory) -> Imported:
    path = tmp_path_factory.mktemp("hf")
    peers.save_hf(path, dtype)
    return read(path)


@pytest.fixture(scope="module")
def from_deepseek(dtype, tmp_path_factory) -> Imported:
    path = tmp_path_factory.mktemp("deepseek")
    peers.save_deepseek(path, dtype)
    return read(path)


def test_transformers_and_back(from_hf, dtype):
    assert from_hf.layout == HF_LAYOUT and from_hf.dropped == ()
    assert_bits(export(HF_LAYOUT, from_hf.params), peers.hf_state(dtype))


def test_deepseek_and_back(from_deepseek, dtype):
    assert from_deepseek.layout == DEEPSEEK_LAYOUT
    assert set(from_deepseek.dropped) == set(peers.DROPPED)
    wanted = peers.deepseek_state(peers.hf_state(dtype))
    kept = {key: value for key, value in wanted.items() if key not in peers.DROPPED}
    assert_bits(export(DEEPSEEK_LAYOUT, from_deepseek.params), kept)


def test_both_layouts_of_the_same_weights_are_the_same_parameters(from_hf, from_deepseek, dtype):
    assert list(from_hf.params) == list(from_deepseek.params)
    for path, array in from_hf.params.items():
        assert array.dtype.name == str(dtype).removeprefix("torch.")
        assert from_deepseek.params[path].tobytes() == array.tobytes(), path


def test_from_one_layout_to_the_other(from_hf, from_deepseek, dtype):
    wanted = peers.hf_state(dtype)
    assert_bits(export(HF_LAYOUT, from_deepseek.params), wanted)
    deepseek = peers.deepseek_state(wanted)
    kept = {key: value for key, value in deepseek.items() if key not in peers.DROPPED}
    assert_bits(export(DEEPSEEK_LAYOUT, from_hf.params), kept)


def test_the_older_layout(from_hf, dtype, tmp_path):
    state = peers.older(peers.hf_state(dtype))
    exported = export(HF_OLDER_LAYOUT, from_hf.params)
    assert_bits(exported, state)
    save_file(exported, tmp_path / "model.safetensors")
    peers.hf_model(DEBUG).config.save_pretrained(tmp_path)
    found = read(tmp_path)
    assert found.layout == HF_OLDER_LAYOUT
    for path, array in from_hf.params.items():
        assert found.params[path].tobytes() == array.tobytes(), path
    assert load_file(tmp_path / "model.safetensors").keys() == state.keys()


def test_parameters_are_views_of_the_files(from_deepseek):
    for path, array in from_deepseek.params.items():
        assert not array.flags.owndata and not array.flags.writeable, path
