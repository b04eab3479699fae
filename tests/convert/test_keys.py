"""The tables cover every parameter of every named model, and every tensor the peers have."""

import functools
import re

import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from convert.engine import Plan, plan_export, plan_import, shapes_of
from convert.keys import DEEPSEEK, HF, HF_OLDER, Table
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


WHOLE = pytest.mark.parametrize("table", [HF, HF_OLDER, DEEPSEEK], ids=lambda table: table.name)


@WHOLE
def test_every_row_is_used_by_the_published_model(table: Table):
    plan = plan_export(table, our_shapes("janus-pro-1b"), our_shapes("janus-pro-1b"))
    patterns = {re.sub(r"/[0-9]+(?=/)", "/#", entry.ours) for entry in plan.entries}
    rows = {re.sub(r"\{\w+\}", "#", row.ours) for row in table.rows}
    assert patterns == rows


@WHOLE
def test_no_two_rows_share_a_side(table: Table):
    ours = [row.ours for row in table.rows]
    theirs = [(row.theirs, row.slice) for row in table.rows]
    assert len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)


def test_every_tensor_of_deepseeks_published_models_has_its_place():
    """Counts of the published state dicts' tensors that are kept, by part."""
    for name, llm_layers in (("janus-pro-1b", 24), ("janus-pro-7b", 30)):
        specs = plan_export(DEEPSEEK, our_shapes(name), our_shapes(name)).their_specs
        llm = [key for key in specs if key.startswith("language_model.")]
        tower = [key for key in specs if key.startswith("vision_model.vision_tower.")]
        assert len(llm) == 9 * llm_layers + 3
        assert len(tower) == 12 * 24 + 5
        assert specs["vision_model.vision_tower.blocks.23.attn.qkv.weight"] == (3072, 1024)
        assert specs["vision_model.vision_tower.blocks.0.attn.qkv.bias"] == (3072,)
        assert specs["vision_model.vision_tower.pos_embed"] == (1, 576, 1024)


@pytest.mark.parametrize(
    ("key", "dropped"),
    [
        ("vision_model.vision_tower.attn_pool.mlp.fc1.weight", True),
        ("vision_model.vision_tower.attn_pool.latent", True),
        ("gen_vision_model.quantize.codebook_used", True),
        ("language_model.model.layers.3.self_attn.rotary_emb.inv_freq", True),
        ("vision_model.vision_tower.attn_pool.", False),
        ("x.vision_model.vision_tower.attn_pool.latent", False),
        ("gen_vision_model.quantize.codebook_used.more", False),
        ("language_model.model.layers.x.self_attn.rotary_emb.inv_freq", False),
    ],
)
def test_what_deepseeks_table_drops(key: str, dropped: bool):
    assert DEEPSEEK.drops_key(key) is dropped


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
