"""The key tables: which parameter of ours is which tensor of a published layout.

One row for each parameter pattern: our path, their key, and the transform between the two. A
name in braces (`{i}`) stands for an index and means the same on both sides. Which indices exist
follows from the parameters themselves, so one table serves every size of the model.

Layouts: `HF` is transformers' own (`JanusForConditionalGeneration`, as its current release writes
it). Nothing is dropped on the way from it: its state dict holds exactly the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from convert.transforms import CONV, LINEAR, SAME, Transform


@dataclass(frozen=True)
class Row:
    """One parameter pattern.

    Attributes:
      ours: path of the parameter, as `janus_jax.functional.flat_params` writes it.
      theirs: key of the tensor in the other layout.
      transform: how the tensor changes between the two.
    """

    ours: str
    theirs: str
    transform: Transform


@dataclass(frozen=True)
class Table:
    """A layout: every row, and the patterns of tensors that may be left behind.

    Attributes:
      name: the layout's name in messages and manifests.
      rows: one for each parameter pattern.
      drops: patterns of keys of theirs that have no counterpart here and are known to be unused.
    """

    name: str
    rows: tuple[Row, ...]
    drops: tuple[str, ...] = ()


def _affine(kernel: Transform, ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", kernel),
        Row(f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


def _linear(ours: str, theirs: str) -> list[Row]:
    return _affine(LINEAR, ours, theirs)


def _conv(ours: str, theirs: str) -> list[Row]:
    return _affine(CONV, ours, theirs)


def _matrix(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR)]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/scale", f"{theirs}.weight", SAME),
        Row(f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


def _res_block(ours: str, theirs: str) -> list[Row]:
    return [
        *_norm(f"{ours}/norm1", f"{theirs}.norm1"),
        *_conv(f"{ours}/conv1", f"{theirs}.conv1"),
        *_norm(f"{ours}/norm2", f"{theirs}.norm2"),
        *_conv(f"{ours}/conv2", f"{theirs}.conv2"),
    ]


def _attn_block(ours: str, theirs: str) -> list[Row]:
    return [
        *_norm(f"{ours}/norm", f"{theirs}.norm"),
        *_conv(f"{ours}/q", f"{theirs}.q"),
        *_conv(f"{ours}/k", f"{theirs}.k"),
        *_conv(f"{ours}/v", f"{theirs}.v"),
        *_conv(f"{ours}/out", f"{theirs}.proj_out"),
    ]


def _vq_stack(ours: str, theirs: str, level: str, resample: str) -> list[Row]:
    """The encoder or the decoder; levels stand in the same order on both sides."""
    ours_level, theirs_level = f"{ours}/{level}/{{l}}", f"{theirs}.{level}.{{l}}"
    return [
        *_conv(f"{ours}/conv_in", f"{theirs}.conv_in"),
        *_res_block(f"{ours_level}/res/{{r}}", f"{theirs_level}.block.{{r}}"),
        *_conv(f"{ours_level}/res/{{r}}/shortcut", f"{theirs_level}.block.{{r}}.nin_shortcut"),
        *_attn_block(f"{ours_level}/attn/{{r}}", f"{theirs_level}.attn.{{r}}"),
        *_conv(f"{ours_level}/{resample}", f"{theirs_level}.{resample}.conv"),
        *_res_block(f"{ours}/mid/res1", f"{theirs}.mid.block_1"),
        *_attn_block(f"{ours}/mid/attn", f"{theirs}.mid.attn_1"),
        *_res_block(f"{ours}/mid/res2", f"{theirs}.mid.block_2"),
        *_norm(f"{ours}/norm_out", f"{theirs}.norm_out"),
        *_conv(f"{ours}/conv_out", f"{theirs}.conv_out"),
    ]


_VISION, _VISION_LAYER = "model.vision_model", "model.vision_model.encoder.layers.{i}"
_LLM, _LLM_LAYER = "model.language_model", "model.language_model.layers.{i}"
_VQ = "model.vqmodel"

HF = Table(
    "hf",
    (
        # Understanding encoder.
        *_conv("vision/patch_embed", f"{_VISION}.embeddings.patch_embedding"),
        Row("vision/pos_embed", f"{_VISION}.embeddings.position_embedding.weight", SAME),
        *_norm("vision/blocks/{i}/norm1", f"{_VISION_LAYER}.layer_norm1"),
        *_linear("vision/blocks/{i}/attn/q", f"{_VISION_LAYER}.self_attn.q_proj"),
        *_linear("vision/blocks/{i}/attn/k", f"{_VISION_LAYER}.self_attn.k_proj"),
        *_linear("vision/blocks/{i}/attn/v", f"{_VISION_LAYER}.self_attn.v_proj"),
        *_linear("vision/blocks/{i}/attn/out", f"{_VISION_LAYER}.self_attn.projection_layer"),
        *_norm("vision/blocks/{i}/norm2", f"{_VISION_LAYER}.layer_norm2"),
        *_linear("vision/blocks/{i}/mlp/fc1", f"{_VISION_LAYER}.mlp.fc1"),
        *_linear("vision/blocks/{i}/mlp/fc2", f"{_VISION_LAYER}.mlp.fc2"),
        *_norm("vision/norm", f"{_VISION}.post_layernorm"),
        # Adaptors and image head.
        *_linear("aligner/fc1", "model.aligner.fc1"),
        *_linear("aligner/fc2", "model.aligner.hidden_layers.0"),
        Row("gen_embed/embedding", "model.generation_embeddings.weight", SAME),
        *_linear("gen_aligner/fc1", "model.generation_aligner.fc1"),
        *_linear("gen_aligner/fc2", "model.generation_aligner.hidden_layers.0"),
        *_linear("image_head/proj", "model.generation_head.proj_out"),
        *_linear("image_head/out", "model.generation_head.vision_head"),
        # Language model. RoPE is the rotate-half kind on both sides: q and k stay as they are.
        Row("llm/embed/embedding", f"{_LLM}.embed_tokens.weight", SAME),
        Row("llm/layers/{i}/attn_norm/scale", f"{_LLM_LAYER}.input_layernorm.weight", SAME),
        *_matrix("llm/layers/{i}/attn/q", f"{_LLM_LAYER}.self_attn.q_proj"),
        *_matrix("llm/layers/{i}/attn/k", f"{_LLM_LAYER}.self_attn.k_proj"),
        *_matrix("llm/layers/{i}/attn/v", f"{_LLM_LAYER}.self_attn.v_proj"),
        *_matrix("llm/layers/{i}/attn/out", f"{_LLM_LAYER}.self_attn.o_proj"),
        Row("llm/layers/{i}/mlp_norm/scale", f"{_LLM_LAYER}.post_attention_layernorm.weight", SAME),
        *_matrix("llm/layers/{i}/mlp/gate", f"{_LLM_LAYER}.mlp.gate_proj"),
        *_matrix("llm/layers/{i}/mlp/up", f"{_LLM_LAYER}.mlp.up_proj"),
        *_matrix("llm/layers/{i}/mlp/down", f"{_LLM_LAYER}.mlp.down_proj"),
        Row("llm/norm/scale", f"{_LLM}.norm.weight", SAME),
        *_matrix("llm/lm_head", "lm_head"),
        # Generation tokenizer.
        *_vq_stack("vq/encoder", f"{_VQ}.encoder", "down", "downsample"),
        *_vq_stack("vq/decoder", f"{_VQ}.decoder", "up", "upsample"),
        *_conv("vq/quant_conv", f"{_VQ}.quant_conv"),
        *_conv("vq/post_quant_conv", f"{_VQ}.post_quant_conv"),
        Row("vq/codebook", f"{_VQ}.quantize.embedding.weight", SAME),
    ),
)
