"""The HF table covers every parameter of every named model, and every tensor transformers has."""

import functools
import re

import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from convert.engine import Plan, plan_export, plan_import, shapes_of
from convert.keys import HF
from janus_jax import functional
from janus_jax.config import NAMED, get_config
from janus_jax.hf_config import to_hf_config


@functools.cache
def our_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return shapes_of(functional.flat_params(functional.abstract(get_config(name))[1]))


@pytest.fixture(scope="module", params=sorted(NAMED))
def plan(request: pytest.FixtureRequest) -> Plan:
    """The whole import of a state dict with the shapes transformers itself declares."""
    config = transformers.JanusConfig(**to_hf_config(get_config(request.param), image_token_id=7))
    with torch.device("meta"):
        model = transformers.JanusForConditionalGeneration(config)
    return plan_import(HF, our_shapes(request.param), shapes_of(model.state_dict()))


def test_every_parameter_and_every_tensor_is_used_once(plan: Plan):
    assert len({entry.ours for entry in plan.entries}) == len(plan.entries)
    assert len({entry.theirs for entry in plan.entries}) == len(plan.entries)
    assert plan.dropped == ()


def test_every_row_is_used_by_the_published_model():
    plan = plan_export(HF, our_shapes("janus-pro-1b"), our_shapes("janus-pro-1b"))
    patterns = {re.sub(r"/[0-9]+(?=/)", "/#", entry.ours) for entry in plan.entries}
    rows = {re.sub(r"\{\w+\}", "#", row.ours) for row in HF.rows}
    assert patterns == rows


def test_no_two_rows_share_a_side():
    for side in ("ours", "theirs"):
        names = [getattr(row, side) for row in HF.rows]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("ours", "theirs", "transform"),
    [
        ("llm/embed/embedding", "model.language_model.embed_tokens.weight", "same"),
        ("llm/lm_head/kernel", "lm_head.weight", "linear"),
        ("llm/layers/23/attn/out/kernel", "model.language_model.layers.23.self_attn.o_proj.weight",
         "linear"),
        ("vision/patch_embed/kernel", "model.vision_model.embeddings.patch_embedding.weight",
         "conv"),
        ("vision/pos_embed", "model.vision_model.embeddings.position_embedding.weight", "same"),
        ("vision/blocks/23/norm2/scale",
         "model.vision_model.encoder.layers.23.layer_norm2.weight", "same"),
        ("aligner/fc2/bias", "model.aligner.hidden_layers.0.bias", "same"),
        ("image_head/out/kernel", "model.generation_head.vision_head.weight", "linear"),
        ("vq/decoder/up/0/attn/2/out/kernel", "model.vqmodel.decoder.up.0.attn.2.proj_out.weight",
         "conv"),
        ("vq/encoder/down/2/res/0/shortcut/kernel",
         "model.vqmodel.encoder.down.2.block.0.nin_shortcut.weight", "conv"),
        ("vq/encoder/mid/res2/norm1/bias", "model.vqmodel.encoder.mid.block_2.norm1.bias", "same"),
        ("vq/codebook", "model.vqmodel.quantize.embedding.weight", "same"),
    ],
)  # fmt: skip
def test_names_written_out(ours: str, theirs: str, transform: str):
    shapes = our_shapes("janus-pro-1b")
    (entry,) = (e for e in plan_export(HF, shapes, shapes).entries if e.ours == ours)
    assert (entry.theirs, entry.transform.name) == (theirs, transform)


def test_a_checkpoint_as_transformers_writes_and_reads_it(tmp_path):
    """Names on disk, not only in memory: its save and load may rename tensors."""
    config = transformers.JanusConfig(**to_hf_config(get_config("debug"), image_token_id=7))
    model = transformers.JanusForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    shapes = our_shapes("debug")
    plan = plan_import(HF, shapes, shapes_of(tensors))
    ours = dict(plan.read(tensors))

    (tmp_path / "ours").mkdir()
    exported = dict(plan_export(HF, shapes, shapes_of(ours)).write(ours))
    save_file(exported, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(tmp_path / "ours")
    again, info = transformers.JanusForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
