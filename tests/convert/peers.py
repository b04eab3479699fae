"""Checkpoints as the peers themselves write them: tiny, random, in every layout.

DeepSeek's layout is made from transformers' by the renames of its published conversion, written out
here once more, so that our key table is not checked against itself.
"""

import json
import re
from pathlib import Path

import torch

from convert.deepseek_config import to_deepseek_config
from janus_jax.config import DEBUG
from tests.parity.oracle import hf_model

_RENAMES = [
    (r"^model\.vision_model\.", "vision_model.vision_tower."),
    (r"embeddings\.patch_embedding", "patch_embed.proj"),
    (r"tower\.post_layernorm", "tower.norm"),
    (r"encoder\.layers\.(\d+)\.self_attn\.projection_layer", r"blocks.\1.attn.proj"),
    (r"encoder\.layers\.(\d+)\.layer_norm", r"blocks.\1.norm"),
    (r"tower\.encoder\.layers", "tower.blocks"),
    (r"^model\.aligner\.fc1", "aligner.layers.0"),
    (r"^model\.aligner\.hidden_layers\.0", "aligner.layers.2"),
    (r"^model\.generation_aligner\.fc1", "gen_aligner.layers.0"),
    (r"^model\.generation_aligner\.hidden_layers\.0", "gen_aligner.layers.2"),
    (r"^model\.generation_head\.proj_out", "gen_head.output_mlp_projector"),
    (r"^model\.generation_head", "gen_head"),
    (r"^model\.generation_embeddings", "gen_embed"),
    (r"^model\.language_model", "language_model.model"),
    (r"^lm_head", "language_model.lm_head"),
    (r"^model\.vqmodel", "gen_vision_model"),
    (r"coder\.(down|up)\.", "coder.conv_blocks."),
    (r"(conv_blocks\.\d+)\.block\.", r"\1.res."),
    (r"mid\.block_1", "mid.0"),
    (r"mid\.attn_1", "mid.1"),
    (r"mid\.block_2", "mid.2"),
]  # fmt: skip

DROPPED = {
    "vision_model.vision_tower.attn_pool.latent": (1, 1, 32),
    "vision_model.vision_tower.attn_pool.q.weight": (32, 32),
    "vision_model.vision_tower.attn_pool.mlp.fc1.bias": (64,),
    "gen_vision_model.quantize.codebook_used": (65536,),
}
"""Some of what DeepSeek's files hold and no one runs."""


def hf_state(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A tiny random model's state dict, every tensor random."""
    return {key: value.to(dtype) for key, value in hf_model(DEBUG).state_dict().items()}


def save_hf(path: Path, dtype: torch.dtype, *, shard: str = "1MB") -> None:
    """transformers' own `save_pretrained`, in several shards."""
    hf_model(DEBUG).to(dtype).save_pretrained(path, max_shard_size=shard)


def older(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The keys that earlier releases of transformers wrote."""
    return {key.removeprefix("model."): value for key, value in state.items()}


def deepseek_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as DeepSeek stores them, with what we drop."""
    result: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if re.search(r"vision_model\..*self_attn\.[kv]_proj", key):
            continue
        if match := re.fullmatch(
            r"model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", key
        ):
            parts = [state[key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
            name = f"vision_model.vision_tower.blocks.{match[1]}.attn.qkv.{match[2]}"
            result[name] = torch.cat(parts)
        elif key.endswith("position_embedding.weight"):
            result["vision_model.vision_tower.pos_embed"] = value[None]
        else:
            for pattern, replacement in _RENAMES:
                key = re.sub(pattern, replacement, key)
            result[key] = value
    return result | {key: torch.zeros(shape) for key, shape in DROPPED.items()}


def save_deepseek(path: Path, dtype: torch.dtype) -> None:
    """`torch.save` of the state dict and a config.json, as DeepSeek's repositories have them."""
    path.mkdir(parents=True, exist_ok=True)
    torch.save(deepseek_state(hf_state(dtype)), path / "pytorch_model.bin")
    config = to_deepseek_config(DEBUG, dtype=str(dtype).removeprefix("torch."))
    (path / "config.json").write_text(json.dumps(config))
