"""Architecture of every Janus model this package knows, as frozen dataclasses.

The published numbers are from the Janus-Pro report (arXiv 2501.17811, table 1) and from the
configuration files of the published checkpoints. A config says what the weights are; how they
are trained or sampled lives with the trainer and the samplers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from janus_jax.errors import InputError

CONFIG_VERSION = 1


@dataclass(frozen=True)
class SiglipConfig:
    """The understanding encoder (SigLIP), a pre-LN vision transformer without a class token.

    Attributes:
      image_size: side of the square input, pixels.
      patch_size: side of a patch, pixels.
      width: hidden size W.
      depth: number of blocks, all of which run (the reference's `select_layer=-1`).
      num_heads: attention heads; `width` is a multiple of it.
      mlp_dim: hidden size of the MLP.
      layer_norm_eps: epsilon of every LayerNorm.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    layer_norm_eps: float

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image, P."""
        return self.grid**2


@dataclass(frozen=True)
class VQConfig:
    """The generation tokenizer (LlamaGen's VQ-16 in the published models).

    Attributes:
      base_channels: channels of the finest level, a multiple of 32 (GroupNorm has 32 groups).
      channel_multipliers: one for each level, finest first; each further level halves the side.
      num_res_blocks: residual blocks a level in the encoder; the decoder has one more.
      latent_channels: channels between the conv stacks and the quant convs.
      codebook_size: number of codes K.
      codebook_dim: width of a code C.
    """

    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    latent_channels: int
    codebook_size: int
    codebook_dim: int

    @property
    def downsample(self) -> int:
        """Pixels along one side for each code (16 in the published models)."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class LlamaConfig:
    """The autoregressive transformer (Llama architecture, untied head, no biases).

    Attributes:
      vocab_size: text vocabulary V.
      width: hidden size D.
      depth: number of layers.
      mlp_dim: hidden size of the SwiGLU MLP.
      num_heads: query heads N.
      num_kv_heads: key and value heads; `num_heads` is a multiple of it.
      head_dim: width of a head H.
      rope_theta: base of the rotary frequencies.
      rms_norm_eps: epsilon of every RMSNorm.
      max_positions: positions the checkpoint declares.
    """

    vocab_size: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_positions: int


@dataclass(frozen=True)
class JanusConfig:
    """A whole Janus: both encoders, the adaptors between them and the language model."""

    name: str
    vision: SiglipConfig
    vq: VQConfig
    llm: LlamaConfig

    def __post_init__(self) -> None:
        """Refuses sizes that cannot make one model.

        Raises:
          InputError: naming the field, its value and what is allowed.
        """
        v, q, t = self.vision, self.vq, self.llm
        checks = [
            ("vision.image_size", v.image_size, v.patch_size, "vision.patch_size"),
            ("vision.image_size", v.image_size, q.downsample, "the VQ downsampling"),
            ("vision.width", v.width, v.num_heads, "vision.num_heads"),
            ("vq.base_channels", q.base_channels, 32, "the 32 groups of GroupNorm"),
            ("llm.num_heads", t.num_heads, t.num_kv_heads, "llm.num_kv_heads"),
            ("llm.head_dim", t.head_dim, 2, "2 (RoPE rotates halves)"),
        ]
        for field, value, divisor, why in checks:
            if divisor < 1 or value < 1 or value % divisor:
                raise InputError(
                    f"config {self.name!r}: {field} is {value}; "
                    f"it must be a positive multiple of {divisor} ({why})"
                )

    @property
    def image_size(self) -> int:
        """Side of the square pictures read and drawn, pixels."""
        return self.vision.image_size

    @property
    def grid(self) -> int:
        """Codes along one side of a drawn picture (24 in the published models)."""
        return self.image_size // self.vq.downsample

    @property
    def num_image_tokens(self) -> int:
        """Codes of a drawn picture (576 in the published models)."""
        return self.grid**2

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`: plain JSON types and a format version."""
        return {"janus_jax_config": CONFIG_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> JanusConfig:
        """Inverse of `to_json`.

        Raises:
          InputError: another version, or missing, unknown or mistyped fields.
        """
        data = dict(data)
        version = data.pop("janus_jax_config", None)
        if version != CONFIG_VERSION:
            raise InputError(
                f"config.json has format version {version!r}; this release reads {CONFIG_VERSION}"
            )
        try:
            vq = dict(data.pop("vq"))
            vq["channel_multipliers"] = tuple(vq["channel_multipliers"])
            return cls(
                name=str(data.pop("name")),
                vision=_typed(SiglipConfig, data.pop("vision")),
                vq=_typed(VQConfig, vq),
                llm=_typed(LlamaConfig, data.pop("llm")),
                **data,
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"config.json is not a Janus-JAX config: {error!r}") from error


def _typed(cls: Any, fields: dict[str, Any]) -> Any:
    """Builds `cls(**fields)` after checking that every field has its declared type."""
    allowed = {"int": int, "float": (int, float), "tuple[int, ...]": tuple}
    for field in dataclasses.fields(cls):
        value = fields[field.name]
        if not isinstance(value, allowed[str(field.type)]) or isinstance(value, bool):
            raise InputError(
                f"config.json: {cls.__name__}.{field.name} is {value!r}; expected {field.type}"
            )
    return cls(**fields)


_SIGLIP_L_16_384 = SiglipConfig(
    image_size=384,
    patch_size=16,
    width=1024,
    depth=24,
    num_heads=16,
    mlp_dim=4096,
    layer_norm_eps=1e-6,
)
_VQ_16 = VQConfig(
    base_channels=128,
    channel_multipliers=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    latent_channels=256,
    codebook_size=16384,
    codebook_dim=8,
)
_LLM_1B = LlamaConfig(
    vocab_size=102400,
    width=2048,
    depth=24,
    mlp_dim=5632,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_positions=16384,
)
_LLM_7B = dataclasses.replace(
    _LLM_1B, width=4096, depth=30, mlp_dim=11008, num_heads=32, num_kv_heads=32
)

JANUS_1_3B = JanusConfig("janus-1.3b", _SIGLIP_L_16_384, _VQ_16, _LLM_1B)
JANUS_PRO_1B = JanusConfig("janus-pro-1b", _SIGLIP_L_16_384, _VQ_16, _LLM_1B)
JANUS_PRO_7B = JanusConfig("janus-pro-7b", _SIGLIP_L_16_384, _VQ_16, _LLM_7B)

# The shipped model. Both encoders use a 6x6 grid at 48 pixels, so a picture is 36 tokens in
# either direction; docs/LOG.md has the experiments behind the sizes.
EMOJI = JanusConfig(
    "emoji",
    SiglipConfig(
        image_size=48,
        patch_size=8,
        width=160,
        depth=4,
        num_heads=4,
        mlp_dim=480,
        layer_norm_eps=1e-6,
    ),
    VQConfig(
        base_channels=32,
        channel_multipliers=(1, 1, 2, 2),
        num_res_blocks=1,
        latent_channels=64,
        codebook_size=1024,
        codebook_dim=8,
    ),
    LlamaConfig(
        vocab_size=2048,
        width=256,
        depth=4,
        mlp_dim=640,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        max_positions=512,
    ),
)

# Random weights for tests: every code path (two levels that change channels, grouped-query
# attention left out because no published model has it), the smallest useful shapes.
DEBUG = JanusConfig(
    "debug",
    SiglipConfig(
        image_size=16,
        patch_size=4,
        width=32,
        depth=2,
        num_heads=2,
        mlp_dim=64,
        layer_norm_eps=1e-6,
    ),
    VQConfig(
        base_channels=32,
        channel_multipliers=(1, 1, 2),
        num_res_blocks=1,
        latent_channels=32,
        codebook_size=64,
        codebook_dim=8,
    ),
    LlamaConfig(
        vocab_size=2048,
        width=48,
        depth=2,
        mlp_dim=80,
        num_heads=3,
        num_kv_heads=3,
        head_dim=16,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        max_positions=512,
    ),
)

NAMED: dict[str, JanusConfig] = {
    config.name: config for config in (JANUS_1_3B, JANUS_PRO_1B, JANUS_PRO_7B, EMOJI, DEBUG)
}


def get_config(name: str) -> JanusConfig:
    """The named architecture.

    Raises:
      InputError: no such name; lists the names there are.
    """
    if name not in NAMED:
        raise InputError(f"unknown architecture {name!r}; allowed: {', '.join(NAMED)}")
    return NAMED[name]
