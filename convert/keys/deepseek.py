"""The layout of DeepSeek's own checkpoints: the state dict of `MultiModalityCausalLM`.

A rename of ours, with q, k and v of the vision tower in one matrix and a leading axis on its
position embedding. The tower's attention pool is never run, `codebook_used` counts codes during
the tokenizer's training, and older Llama code stored its rotary frequencies.
"""

from __future__ import annotations

from convert.keys.table import Row, Table, VQNames, conv, fused, linear, llama, matrix, norm, vq
from convert.transforms import LEADING_AXIS, SAME

VQ_NAMES = VQNames("conv_blocks", "conv_blocks", "res", mid=("0", "1", "2"))
"""LlamaGen's names, which the VQ tokenizer has on its own too."""

_TOWER = "vision_model.vision_tower"
_BLOCK = f"{_TOWER}.blocks.{{i}}"

DEEPSEEK = Table(
    "deepseek",
    (
        *conv("vision/patch_embed", f"{_TOWER}.patch_embed.proj"),
        Row("vision/pos_embed", f"{_TOWER}.pos_embed", LEADING_AXIS),
        *norm("vision/blocks/{i}/norm1", f"{_BLOCK}.norm1"),
        *fused("vision/blocks/{i}/attn/q", f"{_BLOCK}.attn.qkv", 0),
        *fused("vision/blocks/{i}/attn/k", f"{_BLOCK}.attn.qkv", 1),
        *fused("vision/blocks/{i}/attn/v", f"{_BLOCK}.attn.qkv", 2),
        *linear("vision/blocks/{i}/attn/out", f"{_BLOCK}.attn.proj"),
        *norm("vision/blocks/{i}/norm2", f"{_BLOCK}.norm2"),
        *linear("vision/blocks/{i}/mlp/fc1", f"{_BLOCK}.mlp.fc1"),
        *linear("vision/blocks/{i}/mlp/fc2", f"{_BLOCK}.mlp.fc2"),
        *norm("vision/norm", f"{_TOWER}.norm"),
        *linear("aligner/fc1", "aligner.layers.0"),
        *linear("aligner/fc2", "aligner.layers.2"),
        Row("gen_embed/embedding", "gen_embed.weight", SAME),
        *linear("gen_aligner/fc1", "gen_aligner.layers.0"),
        *linear("gen_aligner/fc2", "gen_aligner.layers.2"),
        *linear("image_head/proj", "gen_head.output_mlp_projector"),
        *linear("image_head/out", "gen_head.vision_head"),
        *llama("language_model.model"),
        *matrix("llm/lm_head", "language_model.lm_head"),
        *vq("gen_vision_model.", VQ_NAMES),
    ),
    drops=(
        f"{_TOWER}.attn_pool.*",
        "gen_vision_model.quantize.codebook_used",
        "language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq",
    ),
)
