"""Our configs from and to the `config.json` of DeepSeek's checkpoints (`multi_modality`).

The reference builds the vision tower and the VQ tokenizer from tables in its code: the file only
names them (`siglip_large_patch16_384`, `VQ-16`). It has no names for other sizes. Those are written
here with every size spelt out, under names the reference refuses, so that it cannot build another
model from them by mistake.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from janus_jax.config import JANUS_PRO_1B, JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.errors import InputError
from janus_jax.hf_config import (
    MOST_LAYERS,
    Section,
    llama_from_hf,
    mlp_size,
    multipliers,
    size_ratio,
)

TOWERS = {"siglip_large_patch16_384": JANUS_PRO_1B.vision}
"""Vision towers by the reference's name; `image_size` is given beside it."""
TOKENIZERS = {"VQ-16": JANUS_PRO_1B.vq}
"""VQ tokenizers by the reference's name."""

CUSTOM_TOWER = "siglip_custom"
CUSTOM_TOKENIZER = "VQ-custom"


def from_deepseek_config(data: Mapping[str, Any], *, name: str = "custom") -> JanusConfig:
    """The architecture that DeepSeek's `config.json` describes.

    Missing keys mean what they mean to the reference: `LlamaConfig`'s defaults for the language
    model; for the tower pictures of 336 pixels and `select_layer` -2, which is one block less than
    the tower has. The published files say 384 and -1.

    Args:
      data: the parsed file, `model_type` "multi_modality".
      name: name of the result.

    Raises:
      InputError: another model type, a mistyped value, a module this package does not have, or
        sizes that do not fit together; the message names section and key.
    """
    if not isinstance(data, Mapping) or data.get("model_type") != "multi_modality":
        kind = data.get("model_type") if isinstance(data, Mapping) else data
        raise InputError(f"config.json: model_type is {str(kind)[:80]!r}", "'multi_modality'")
    llm = llama_from_hf(_section(data, "language_config").fields)
    vision = _tower(_params(data, "vision_config", ("CLIPVisionTower",)))
    vq = _tokenizer(_params(data, "gen_vision_config", (*TOKENIZERS, CUSTOM_TOKENIZER)), data)
    _aligner(_params(data, "aligner_config", ("MlpProjector",)), vision.width, llm)
    _aligner(_params(data, "gen_aligner_config", ("MlpProjector",)), vq.codebook_dim, llm)
    head = _params(data, "gen_head_config", ("vision_head",))
    head.fixed("n_embed", llm.width)
    head.fixed("image_token_embed", llm.width)
    head.fixed("image_token_size", vq.codebook_size)
    return JanusConfig(name, vision, vq, llm)


def to_deepseek_config(config: JanusConfig, *, dtype: str) -> dict[str, Any]:
    """The content of a `config.json` in the form of DeepSeek's.

    Args:
      config: the architecture.
      dtype: name of the weights' dtype.

    Returns:
      Plain JSON types. `reference_builds` says whether the reference can build it.
    """
    vision, vq, llm = config.vision, config.vq, config.llm
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "aligner_config": _aligner_out("aligner", vision.width, llm.width),
        "gen_aligner_config": _aligner_out("gen_aligner", vq.codebook_dim, llm.width),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {
                "image_token_embed": llm.width,
                "image_token_size": vq.codebook_size,
                "n_embed": llm.width,
            },
        },
        "gen_vision_config": {
            "cls": _tokenizer_name(vq),
            "model_type": "gen_vision",
            "params": {
                "image_token_size": vq.codebook_size,
                "n_embed": vq.codebook_dim,
                **({} if _tokenizer_name(vq) in TOKENIZERS else _tokenizer_sizes(vq)),
            },
        },
        "language_config": {
            "model_type": "llama",
            "torch_dtype": dtype,
            "vocab_size": llm.vocab_size,
            "hidden_size": llm.width,
            "intermediate_size": llm.mlp_dim,
            "num_hidden_layers": llm.depth,
            "num_attention_heads": llm.num_heads,
            "num_key_value_heads": llm.num_kv_heads,
            "max_position_embeddings": llm.max_positions,
            "rms_norm_eps": llm.rms_norm_eps,
            "rope_theta": llm.rope_theta,
            **({} if llm.head_dim * llm.num_heads == llm.width else {"head_dim": llm.head_dim}),
        },
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": vision.image_size,
                "model_name": _tower_name(vision),
                "select_feature": "same",
                "select_layer": -1,
                **({} if _tower_name(vision) in TOWERS else _tower_sizes(vision)),
            },
        },
    }


def reference_builds(config: JanusConfig) -> bool:
    """Whether DeepSeek's own code has names for this architecture's tower and tokenizer."""
    return _tower_name(config.vision) in TOWERS and _tokenizer_name(config.vq) in TOKENIZERS


def _section(data: Mapping[str, Any], name: str) -> Section:
    return Section(name, data.get(name, {}))


def _params(data: Mapping[str, Any], name: str, classes: tuple[str, ...]) -> Section:
    """`params` of a module's section, whose class must be one that this package has."""
    section = _section(data, name)
    cls = section.fields.get("cls")
    if not isinstance(cls, str) or cls not in classes:
        raise section.refuse("cls", cls, " or ".join(map(repr, classes)))
    return Section(f"{name}.params", section.fields.get("params", {}))


def _tower(params: Section) -> SiglipConfig:
    name = params.fields.get("model_name", "siglip_large_patch16_384")
    known = (*TOWERS, CUSTOM_TOWER)
    if not isinstance(name, str) or name not in known:
        raise params.refuse("model_name", name, " or ".join(map(repr, known)))
    # Normalisation inside the tower: the published files leave it to the preprocessor.
    if params.fields.get("pixel_mean") is not None and params.fields.get("pixel_std") is not None:
        raise params.refuse("pixel_mean", params.fields["pixel_mean"], "null")
    image_size = params.integer("image_size", 336)
    if name in TOWERS:
        tower = dataclasses.replace(TOWERS[name], image_size=image_size)
    else:
        width = params.integer("width", 1152)
        tower = SiglipConfig(
            image_size=image_size,
            patch_size=params.integer("patch_size", 14),
            width=width,
            depth=params.integer("layers", 27, MOST_LAYERS),
            num_heads=params.integer("heads", 16),
            mlp_dim=mlp_size(params, width, 3.7362),
            layer_norm_eps=1e-6,
        )
    return dataclasses.replace(tower, depth=_selected(params, tower.depth))


def _selected(params: Section, layers: int) -> int:
    """Blocks that run: up to `select_layer`, counted from the end where it is not positive."""
    select = params.fields.get("select_layer", -2)
    if not isinstance(select, int) or isinstance(select, bool) or abs(select) > MOST_LAYERS:
        raise params.refuse("select_layer", select, "an integer, -1 for all blocks")
    depth = min(layers, select if select > 0 else layers + select + 1)
    if depth < 1:
        raise params.refuse("select_layer", select, f"{-layers} to {layers}")
    return depth


def _tower_name(vision: SiglipConfig) -> str:
    for name, tower in TOWERS.items():
        if dataclasses.replace(vision, image_size=tower.image_size) == tower:
            return name
    return CUSTOM_TOWER


def _tower_sizes(vision: SiglipConfig) -> dict[str, Any]:
    if not math.isclose(vision.layer_norm_eps, 1e-6):
        raise InputError(
            f"the tower's layer_norm_eps is {vision.layer_norm_eps}",
            "1e-6, the only one DeepSeek's layout has",
        )
    return {
        "width": vision.width,
        "layers": vision.depth,
        "heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "mlp_ratio": size_ratio(vision.mlp_dim, vision.width),
    }


def _tokenizer(params: Section, data: Mapping[str, Any]) -> VQConfig:
    cls = data["gen_vision_config"]["cls"]
    if cls in TOKENIZERS:
        vq = TOKENIZERS[cls]
        params.fixed("image_token_size", vq.codebook_size)
        params.fixed("n_embed", vq.codebook_dim)
        return vq
    return VQConfig(
        base_channels=params.integer("ch", 128),
        channel_multipliers=multipliers(params, "ch_mult"),
        num_res_blocks=params.integer("num_res_blocks", 2, MOST_LAYERS),
        latent_channels=params.integer("z_channels", 256),
        codebook_size=params.integer("image_token_size", 16384),
        codebook_dim=params.integer("n_embed", 8),
    )


def _tokenizer_name(vq: VQConfig) -> str:
    return next((name for name, known in TOKENIZERS.items() if known == vq), CUSTOM_TOKENIZER)


def _tokenizer_sizes(vq: VQConfig) -> dict[str, Any]:
    return {
        "ch": vq.base_channels,
        "ch_mult": list(vq.channel_multipliers),
        "num_res_blocks": vq.num_res_blocks,
        "z_channels": vq.latent_channels,
    }


def _aligner(params: Section, inputs: int, llm: LlamaConfig) -> None:
    params.fixed("projector_type", "mlp_gelu")
    params.fixed("depth", 2, default=1)
    params.fixed("input_dim", inputs)
    params.fixed("n_embed", llm.width)


def _aligner_out(model_type: str, inputs: int, width: int) -> dict[str, Any]:
    params = {"depth": 2, "input_dim": inputs, "n_embed": width, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": model_type, "params": params}
