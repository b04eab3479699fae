"""Our configs from and to the `config.json` of transformers' Janus.

transformers writes only what differs from its class defaults, so a missing key means the default
of its class (`LlamaConfig`, `JanusVisionConfig`, `JanusVQVAEConfig` of release 5.23). A setting
that asks for another computation than the published models' is refused; unknown keys are ignored,
as transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from janus_jax.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.errors import InputError

MOST = 2**22
"""Upper bound of widths, heads and vocabularies."""
MOST_LAYERS = 1024
MOST_POSITIONS = 2**31


class Section:
    """One section of a config.json: typed look-ups whose errors name section and key.

    Every number has an upper bound far above any real model, so that a hostile file can neither
    make arithmetic overflow nor a loop over its layers run for ever.
    """

    def __init__(self, name: str, fields: Any):
        """Takes the section.

        Raises:
          InputError: it is no JSON object.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"config.json: {name} is {_shown(fields)}", "a JSON object")
        self.name, self.fields = name, fields

    def refuse(self, key: str, value: Any, allowed: str) -> InputError:
        """The error about one key."""
        return InputError(f"config.json: {self.name}.{key} is {_shown(value)}", allowed)

    def integer(self, key: str, default: int, most: int = MOST) -> int:
        """A number from 1 to `most`."""
        value = self.fields.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.refuse(key, value, f"an integer from 1 to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number above 0."""
        value = self.fields.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1e12:
            raise self.refuse(key, value, "a number above 0, at most 1e12")
        return float(value)

    def optional(self, key: str, default: int) -> int:
        """Like `integer`, where null means the default too."""
        return default if self.fields.get(key) is None else self.integer(key, default)

    def fixed(self, key: str, only: Any, default: Any = None) -> None:
        """Refuses any value but the one this package computes.

        A missing key means `default`, or that value where none is given.
        """
        value = self.fields.get(key, only if default is None else default)
        if value != only or type(value) is not type(only):
            raise self.refuse(key, value, f"{only!r} (the only one this package computes)")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def from_hf_config(data: Mapping[str, Any], *, name: str = "custom") -> JanusConfig:
    """The architecture that a transformers `config.json` describes.

    `tie_word_embeddings` of the top level is not read: transformers' default is True, so files
    leave it out whether the weights are tied or not. Tied weights show themselves in conversion,
    where `lm_head.weight` is then missing.

    Args:
      data: the parsed file, `model_type` "janus".
      name: name of the result.

    Raises:
      InputError: another model type, a mistyped value, a setting this package does not compute, or
        sizes that do not fit together; the message names section and key.
    """
    if not isinstance(data, Mapping) or data.get("model_type") != "janus":
        kind = data.get("model_type") if isinstance(data, Mapping) else data
        raise InputError(f"config.json: model_type is {kind!r}", "'janus'")
    llm = llama_from_hf(data.get("text_config") or {}, section="text_config")
    vision = Section("vision_config", data.get("vision_config") or {})
    vq = Section("vq_config", data.get("vq_config") or {})
    # Both aligners end, and the image head starts, at the language model's width.
    for part, keys in (
        (vision, ["projection_dim"]),
        (vq, ["projection_dim", "image_token_embed_dim"]),
    ):
        for key in keys:
            if part.integer(key, 2048) != llm.width:
                raise InputError(
                    f"config.json: {part.name}.{key} is {part.integer(key, 2048)}",
                    f"{llm.width} (text_config.hidden_size)",
                )
    return JanusConfig(name, _siglip(vision), _vq(vq), llm)


def llama_from_hf(fields: Mapping[str, Any], *, section: str = "language_config") -> LlamaConfig:
    """The language model of a config.json section, missing keys at `LlamaConfig`'s defaults.

    Janus-Pro-7B names four keys only and relies on those defaults for its sizes.

    Args:
      fields: the section (`text_config`, or `language_config` in DeepSeek's files).
      section: its name, for messages.

    Raises:
      InputError: as `from_hf_config`.
    """
    text = Section(section, fields)
    text.fixed("hidden_act", "silu")
    text.fixed("attention_bias", False)
    text.fixed("mlp_bias", False)
    text.fixed("tie_word_embeddings", False)
    # Release 5 keeps the rotary settings together; earlier ones had two keys.
    rope = Section(
        f"{section}.rope_parameters", text.fields.get("rope_parameters") or {"rope_type": "default"}
    )
    rope.fixed("rope_type", "default")
    if text.fields.get("rope_scaling") is not None:
        raise InputError(f"config.json: {section}.rope_scaling is set", "null")
    width, heads = text.integer("hidden_size", 4096), text.integer("num_attention_heads", 32)
    if text.fields.get("head_dim") is None and width % heads:
        raise text.refuse("num_attention_heads", heads, f"a divisor of hidden_size ({width})")
    return LlamaConfig(
        vocab_size=text.integer("vocab_size", 32000),
        width=width,
        depth=text.integer("num_hidden_layers", 32, MOST_LAYERS),
        mlp_dim=text.integer("intermediate_size", 11008),
        num_heads=heads,
        num_kv_heads=text.optional("num_key_value_heads", heads),
        head_dim=text.optional("head_dim", width // heads),
        rope_theta=rope.number("rope_theta", text.number("rope_theta", 1e4)),
        rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        max_positions=text.integer("max_position_embeddings", 2048, MOST_POSITIONS),
    )


def _siglip(vision: Section) -> SiglipConfig:
    vision.fixed("hidden_act", "gelu")
    vision.fixed("attention_bias", True)
    vision.fixed("use_qk_norm", False)
    vision.fixed("num_channels", 3)
    vision.fixed("depth", 2)  # layers of the aligner, not of the tower
    width = vision.integer("hidden_size", 1024)
    return SiglipConfig(
        image_size=vision.integer("image_size", 384),
        patch_size=vision.integer("patch_size", 16),
        width=width,
        depth=vision.integer("num_hidden_layers", 24, MOST_LAYERS),
        num_heads=vision.integer("num_attention_heads", 16),
        mlp_dim=mlp_size(vision, width, 4.0),
        layer_norm_eps=vision.number("layer_norm_eps", 1e-6),
    )


def mlp_size(vision: Section, width: int, default: float) -> int:
    """The MLP width that the key `mlp_ratio` gives, truncated as both references do."""
    size = int(width * vision.number("mlp_ratio", default))
    if not 1 <= size <= MOST:
        raise vision.refuse("mlp_ratio", vision.fields.get("mlp_ratio"), f"1 to {MOST} / width")
    return size


def multipliers(vq: Section, key: str) -> tuple[int, ...]:
    """Channel multipliers of the VQ tokenizer's levels, at most 12 of them."""
    values = vq.fields.get(key, (1, 1, 2, 2, 4))
    if (
        not isinstance(values, list | tuple)
        or not 1 <= len(values) <= 12
        or not all(isinstance(m, int) and not isinstance(m, bool) and 1 <= m <= 64 for m in values)
    ):
        raise vq.refuse(key, values, "a list of positive integers, at most 12, none above 64")
    return tuple(values)


def _vq(vq: Section) -> VQConfig:
    vq.fixed("hidden_act", "gelu")
    vq.fixed("double_latent", False)
    vq.fixed("in_channels", 3)
    vq.fixed("out_channels", 3)
    vq.fixed("num_hidden_layers", 2)  # layers of the generation aligner
    return VQConfig(
        base_channels=vq.integer("base_channels", 128),
        channel_multipliers=multipliers(vq, "channel_multiplier"),
        num_res_blocks=vq.integer("num_res_blocks", 2, MOST_LAYERS),
        latent_channels=vq.integer("latent_channels", 256),
        codebook_size=vq.integer("num_embeddings", 16384),
        codebook_dim=vq.integer("embed_dim", 8),
    )


def to_hf_config(
    config: JanusConfig,
    *,
    image_token_id: int,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """The content of a `config.json` from which transformers builds exactly this architecture.

    Args:
      config: the architecture.
      image_token_id: id of the image placeholder (it differs between the published tokenizers, so
        look it up by its string).
      bos_token_id: id of the token that begins a text.
      eos_token_id: id of the token that ends one.
      pad_token_id: id of the padding token.

    Returns:
      Plain JSON types.

    Raises:
      InputError: transformers cannot express the architecture: it takes one grid for both encoders.
    """
    vision, vq, llm = config.vision, config.vq, config.llm
    if vision.grid != config.grid:
        raise InputError(
            f"config {config.name!r}: a {vision.grid}x{vision.grid} grid of patches and a "
            f"{config.grid}x{config.grid} grid of codes",
            "equal grids, for transformers takes both from the vision patch size",
        )
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": "janus",
        "image_token_id": image_token_id,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        # The default is True and really ties them; Janus has two tables.
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "vocab_size": llm.vocab_size,
            "hidden_size": llm.width,
            "intermediate_size": llm.mlp_dim,
            "num_hidden_layers": llm.depth,
            "num_attention_heads": llm.num_heads,
            "num_key_value_heads": llm.num_kv_heads,
            "head_dim": llm.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": llm.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": llm.rope_theta},
            "max_position_embeddings": llm.max_positions,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        },
        "vision_config": {
            "model_type": "janus_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "mlp_ratio": size_ratio(vision.mlp_dim, vision.width),
            "layer_norm_eps": vision.layer_norm_eps,
            "hidden_act": "gelu",
            "attention_bias": True,
            "use_qk_norm": False,
            "num_channels": 3,
            "num_image_tokens": config.num_image_tokens,
            "projection_dim": llm.width,
            "depth": 2,
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "base_channels": vq.base_channels,
            "channel_multiplier": list(vq.channel_multipliers),
            "num_res_blocks": vq.num_res_blocks,
            "latent_channels": vq.latent_channels,
            "double_latent": False,
            "num_embeddings": vq.codebook_size,
            "embed_dim": vq.codebook_dim,
            # Codes along a side: transformers reshapes to this while decoding.
            "num_patches": config.grid,
            "in_channels": 3,
            "out_channels": 3,
            "hidden_act": "gelu",
            "num_hidden_layers": 2,
            "projection_dim": llm.width,
            "image_token_embed_dim": llm.width,
        },
    }


def size_ratio(size: int, width: int) -> float:
    """The number r for which `int(width * r) == size`, whatever the division rounds to."""
    ratio = size / width
    return ratio if int(width * ratio) == size else math.nextafter(ratio, math.inf)
