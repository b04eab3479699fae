"""What a key table is made of: rows, drops, and the blocks that several layouts share.

One row for each parameter pattern: our path, their key, and the transform between the two. A name
in braces (`{i}`) stands for an index and means the same on both sides; `*` in a drop stands for
anything. Which indices exist follows from the parameters themselves, so one table serves every
size of a model, and both directions come from the same row.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass

from convert.transforms import CONV, LINEAR, SAME, Transform


@dataclass(frozen=True)
class Row:
    """One parameter pattern.

    Attributes:
      ours: path of the parameter, as `janus_jax.functional.flat_params` writes it.
      theirs: key of the tensor in the other layout.
      transform: how the tensor changes between the two.
      slice: for a fused tensor, the place of this parameter among those stacked along its first
        axis: 0, 1, ...; None where the tensor is the parameter.
      tied: the tensor belongs to another row too, which is the one that writes it. Tied weights
        become two equal parameters here.
    """

    ours: str
    theirs: str
    transform: Transform
    slice: int | None = None
    tied: bool = False


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

    def drops_key(self, key: str) -> bool:
        """Whether a tensor of theirs is on the list of drops."""
        return any(regex(pattern).fullmatch(key) for pattern in self.drops)

    def without_prefix(self, name: str, prefix: str) -> Table:
        """The table whose keys lack a leading `prefix`; keys without it stay."""
        rows = (
            dataclasses.replace(row, theirs=row.theirs.removeprefix(prefix)) for row in self.rows
        )
        return Table(name, tuple(rows), tuple(drop.removeprefix(prefix) for drop in self.drops))


@functools.cache
def regex(pattern: str) -> re.Pattern[str]:
    """The pattern with `{i}` as a decimal index without leading zeros and `*` as any text."""
    escaped = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]*)", re.escape(pattern))
    return re.compile(escaped.replace(r"\*", ".+"), re.DOTALL)


def linear(ours: str, theirs: str) -> list[Row]:
    """`Linear` with a bias."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR),
        Row(f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


def matrix(ours: str, theirs: str) -> list[Row]:
    """`Linear` without a bias."""
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR)]


def fused(ours: str, theirs: str, index: int) -> list[Row]:
    """`Linear` with a bias, stacked with others into one."""
    return [dataclasses.replace(row, slice=index) for row in linear(ours, theirs)]


def conv(ours: str, theirs: str) -> list[Row]:
    """`Conv2d` with a bias."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", CONV),
        Row(f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


def norm(ours: str, theirs: str) -> list[Row]:
    """`LayerNorm` or `GroupNorm`."""
    return [
        Row(f"{ours}/scale", f"{theirs}.weight", SAME),
        Row(f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


def llama(theirs: str) -> list[Row]:
    """The language model but for its head, as transformers' `LlamaModel` names it everywhere.

    RoPE is the rotate-half kind on both sides: q and k stay as they are.
    """
    ours_layer, theirs_layer = "llm/layers/{i}", f"{theirs}.layers.{{i}}"
    mlp_norm = f"{theirs_layer}.post_attention_layernorm"
    return [
        Row("llm/embed/embedding", f"{theirs}.embed_tokens.weight", SAME),
        Row(f"{ours_layer}/attn_norm/scale", f"{theirs_layer}.input_layernorm.weight", SAME),
        *matrix(f"{ours_layer}/attn/q", f"{theirs_layer}.self_attn.q_proj"),
        *matrix(f"{ours_layer}/attn/k", f"{theirs_layer}.self_attn.k_proj"),
        *matrix(f"{ours_layer}/attn/v", f"{theirs_layer}.self_attn.v_proj"),
        *matrix(f"{ours_layer}/attn/out", f"{theirs_layer}.self_attn.o_proj"),
        Row(f"{ours_layer}/mlp_norm/scale", f"{mlp_norm}.weight", SAME),
        *matrix(f"{ours_layer}/mlp/gate", f"{theirs_layer}.mlp.gate_proj"),
        *matrix(f"{ours_layer}/mlp/up", f"{theirs_layer}.mlp.up_proj"),
        *matrix(f"{ours_layer}/mlp/down", f"{theirs_layer}.mlp.down_proj"),
        Row("llm/norm/scale", f"{theirs}.norm.weight", SAME),
    ]


def siglip(theirs: str, out: str) -> list[Row]:
    """The vision tower as transformers names it; `out` is its name of the output projection."""
    ours_block, theirs_block = "vision/blocks/{i}", f"{theirs}.encoder.layers.{{i}}"
    return [
        *conv("vision/patch_embed", f"{theirs}.embeddings.patch_embedding"),
        Row("vision/pos_embed", f"{theirs}.embeddings.position_embedding.weight", SAME),
        *norm(f"{ours_block}/norm1", f"{theirs_block}.layer_norm1"),
        *linear(f"{ours_block}/attn/q", f"{theirs_block}.self_attn.q_proj"),
        *linear(f"{ours_block}/attn/k", f"{theirs_block}.self_attn.k_proj"),
        *linear(f"{ours_block}/attn/v", f"{theirs_block}.self_attn.v_proj"),
        *linear(f"{ours_block}/attn/out", f"{theirs_block}.self_attn.{out}"),
        *norm(f"{ours_block}/norm2", f"{theirs_block}.layer_norm2"),
        *linear(f"{ours_block}/mlp/fc1", f"{theirs_block}.mlp.fc1"),
        *linear(f"{ours_block}/mlp/fc2", f"{theirs_block}.mlp.fc2"),
        *norm("vision/norm", f"{theirs}.post_layernorm"),
    ]


@dataclass(frozen=True)
class VQNames:
    """What a layout calls the parts of the VQ tokenizer's two conv stacks.

    Attributes:
      down: levels of the encoder.
      up: levels of the decoder, in the order they run, as everywhere.
      res: residual blocks of a level.
      mid: the two residual blocks and the attention between them, in the order they run.
    """

    down: str
    up: str
    res: str
    mid: tuple[str, str, str]


def vq(theirs: str, names: VQNames) -> list[Row]:
    """The generation tokenizer; `theirs` ends with a dot, or is empty."""
    return [
        *_vq_stack("vq/encoder", f"{theirs}encoder", "down", names.down, "downsample", names),
        *_vq_stack("vq/decoder", f"{theirs}decoder", "up", names.up, "upsample", names),
        *conv("vq/quant_conv", f"{theirs}quant_conv"),
        *conv("vq/post_quant_conv", f"{theirs}post_quant_conv"),
        Row("vq/codebook", f"{theirs}quantize.embedding.weight", SAME),
    ]


def _vq_stack(
    ours: str, theirs: str, our_level: str, their_level: str, resample: str, names: VQNames
) -> list[Row]:
    """The encoder or the decoder; levels stand in the same order on both sides."""
    level, key = f"{ours}/{our_level}/{{l}}", f"{theirs}.{their_level}.{{l}}"
    first, attention, second = names.mid
    return [
        *conv(f"{ours}/conv_in", f"{theirs}.conv_in"),
        *_res_block(f"{level}/res/{{r}}", f"{key}.{names.res}.{{r}}"),
        *conv(f"{level}/res/{{r}}/shortcut", f"{key}.{names.res}.{{r}}.nin_shortcut"),
        *_attn_block(f"{level}/attn/{{r}}", f"{key}.attn.{{r}}"),
        *conv(f"{level}/{resample}", f"{key}.{resample}.conv"),
        *_res_block(f"{ours}/mid/res1", f"{theirs}.mid.{first}"),
        *_attn_block(f"{ours}/mid/attn", f"{theirs}.mid.{attention}"),
        *_res_block(f"{ours}/mid/res2", f"{theirs}.mid.{second}"),
        *norm(f"{ours}/norm_out", f"{theirs}.norm_out"),
        *conv(f"{ours}/conv_out", f"{theirs}.conv_out"),
    ]


def _res_block(ours: str, theirs: str) -> list[Row]:
    return [
        *norm(f"{ours}/norm1", f"{theirs}.norm1"),
        *conv(f"{ours}/conv1", f"{theirs}.conv1"),
        *norm(f"{ours}/norm2", f"{theirs}.norm2"),
        *conv(f"{ours}/conv2", f"{theirs}.conv2"),
    ]


def _attn_block(ours: str, theirs: str) -> list[Row]:
    return [
        *norm(f"{ours}/norm", f"{theirs}.norm"),
        *conv(f"{ours}/q", f"{theirs}.q"),
        *conv(f"{ours}/k", f"{theirs}.k"),
        *conv(f"{ours}/v", f"{theirs}.v"),
        *conv(f"{ours}/out", f"{theirs}.proj_out"),
    ]
