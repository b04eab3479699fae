"""Published components as parts of a Janus: a language model, a vision tower, a VQ tokenizer.

    part = plan_part("llm", Path("deepseek-llm-1.3b"))    # configs, keys and shapes checked
    for path, array in part.read(): ...                   # "llm/layers/0/attn/q/kernel", ...

Each part gives one child of `JanusModel`, under the paths it has there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.configs import check_size
from convert.counts import llama_count, siglip_count, vq_count
from convert.engine import Plan, plan_import, shapes_of
from convert.jsonfile import read_object
from convert.keys import LLAMA, LLAMA_TIED, SIGLIP, SIGLIP_ALONE, VQ16, Table
from convert.readers.checkpoint import open_checkpoint
from convert.readers.safetensors import open_safetensors
from convert.readers.torch_bin import open_torch_bin
from convert.transforms import Shape
from janus_jax.config import LlamaConfig, SiglipConfig, VQConfig
from janus_jax.errors import InputError
from janus_jax.functional import flat_params
from janus_jax.hf_config import MOST_LAYERS, Section, llama_from_hf
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.models.vq import VQTokenizer
from janus_jax.nn.layers import ShapesOnly

Kind = Literal["llm", "vision", "vq"]
PartConfig = LlamaConfig | SiglipConfig | VQConfig
C = TypeVar("C", bound=PartConfig, covariant=True)


@dataclass(frozen=True, eq=False)
class Part(Generic[C]):
    """A component that has been checked and not yet read.

    Attributes:
      kind: which child of `JanusModel` it is: "llm", "vision" or "vq".
      config: its architecture.
      plan: how its tensors become parameters; `plan.dropped` names those that stay behind.
      tensors: what the source holds, by key: arrays, or stored tensors with `read()`.
    """

    kind: Kind
    config: C
    plan: Plan
    tensors: Mapping[str, Any]

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """`(path, array)` of every parameter, one at a time, as views of the source."""
        return self.plan.read(self.tensors)


def plan_part(kind: str, source: str | Path) -> Part[PartConfig]:
    """Checks a published component.

    Args:
      kind: "llm" (a directory of transformers' `LlamaForCausalLM`, head tied or not), "vision" (a
        directory of transformers' `SiglipVisionModel` or `SiglipModel`) or "vq" (a `.pt` file of
        LlamaGen, a state dict or a training checkpoint that holds one; or `.safetensors`).
      source: the directory or file.

    Raises:
      InputError: no such kind, or files that are missing, damaged or of another architecture.
      MappingError: keys or shapes that do not fit; all of them.
    """
    match kind:
        case "llm":
            return plan_llm(source)
        case "vision":
            return plan_vision(source)
        case "vq":
            return plan_vq(source)
    raise InputError(f"there is no part {kind!r}", ", ".join(get_args(Kind)))


def part_shapes(kind: Kind, config: PartConfig) -> dict[str, Shape]:
    """Shape of every parameter of a part, by its path in the whole model; no memory."""
    kwargs: dict[str, Any] = dict(dtype=jnp.float32, param_dtype=jnp.float32)
    build: dict[type, Callable[..., nnx.Module]] = {
        LlamaConfig: Llama,
        SiglipConfig: Siglip,
        VQConfig: VQTokenizer,
    }
    module = build[type(config)](ShapesOnly(), config, **kwargs)
    shapes = shapes_of(flat_params(nnx.split(module)[1]))
    return {f"{kind}/{path}": shape for path, shape in shapes.items()}


def _part(kind: Kind, config: C, count: int, table: Table, tensors: Any) -> Part[C]:
    shapes = shapes_of(tensors)
    check_size(count, table, shapes)
    return Part(kind, config, plan_import(table, part_shapes(kind, config), shapes), tensors)


def plan_llm(source: str | Path) -> Part[LlamaConfig]:
    """`plan_part("llm", source)`."""
    directory = Path(source)
    data = read_object(directory / "config.json")
    _check_type(directory, data, "llama")
    tied = data.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise InputError(f"config.json: tie_word_embeddings is {str(tied)[:80]}", "true or false")
    config = llama_from_hf({**data, "tie_word_embeddings": False}, section="llama")
    tensors = open_checkpoint(directory).tensors
    # One table for both ends of the model counts once.
    count = llama_count(config) - (config.vocab_size * config.width if tied else 0)
    return _part("llm", config, count, LLAMA_TIED if tied else LLAMA, tensors)


def plan_vision(source: str | Path) -> Part[SiglipConfig]:
    """`plan_part("vision", source)`."""
    directory = Path(source)
    data = read_object(directory / "config.json")
    _check_type(directory, data, "siglip_vision_model", "siglip")
    fields = data.get("vision_config", {}) if data["model_type"] == "siglip" else data
    vision = Section("vision_config", fields)
    # Published towers were trained with the tanh form of GELU. Janus runs them with the exact one,
    # which is at most 5e-4 away, and trains them on.
    if vision.fields.get("hidden_act", "gelu_pytorch_tanh") not in ("gelu", "gelu_pytorch_tanh"):
        vision.fixed("hidden_act", "gelu")
    vision.fixed("num_channels", 3)
    config = SiglipConfig(
        image_size=vision.integer("image_size", 224),
        patch_size=vision.integer("patch_size", 16),
        width=vision.integer("hidden_size", 768),
        depth=vision.integer("num_hidden_layers", 12, MOST_LAYERS),
        num_heads=vision.integer("num_attention_heads", 12),
        mlp_dim=vision.integer("intermediate_size", 3072),
        layer_norm_eps=vision.number("layer_norm_eps", 1e-6),
    )
    tensors = open_checkpoint(directory).tensors
    table = SIGLIP if any(key.startswith("vision_model.") for key in tensors) else SIGLIP_ALONE
    return _part("vision", config, siglip_count(config), table, tensors)


def plan_vq(source: str | Path) -> Part[VQConfig]:
    """`plan_part("vq", source)`."""
    file = Path(source)
    if file.suffix == ".safetensors":
        tensors = open_safetensors(file)
    else:
        # Where a training checkpoint has averaged weights, LlamaGen's own scripts take those.
        tensors = open_torch_bin(file, under=("ema", "model", "state_dict"))
    config = _vq_config(shapes_of(tensors))
    return _part("vq", config, vq_count(config), VQ16, tensors)


def _vq_config(shapes: Mapping[str, Shape]) -> VQConfig:
    """The architecture of a VQ tokenizer, from the shapes of its tensors: the file says no more.

    Whatever these few do not tell is checked by the plan.

    Raises:
      InputError: the tensors it is read from are missing or have other shapes.
    """

    def shape(key: str, rank: int) -> Shape:
        found = shapes.get(key)
        if found is None or len(found) != rank or not all(found):
            raise InputError(
                f"the file has no VQ tokenizer: {key} is {'missing' if found is None else found}",
                "the state dict of LlamaGen's VQ-16",
            )
        return found

    def length(pattern: str) -> int:
        n = 0
        while pattern.format(n) in shapes:
            n += 1
        return n

    base = shape("encoder.conv_in.weight", 4)[0]
    levels = length("encoder.conv_blocks.{}.res.0.conv1.weight")
    widths = [shape(f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in range(levels)]
    codes, dim = shape("quantize.embedding.weight", 2)
    if not widths or base % 32 or any(width % base for width in widths):
        raise InputError(
            f"the file has no VQ tokenizer: its levels have {widths} channels",
            f"multiples of encoder.conv_in's {base}, and that a multiple of 32",
        )
    return VQConfig(
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=length("encoder.conv_blocks.0.res.{}.conv1.weight"),
        latent_channels=shape("encoder.conv_out.weight", 4)[0],
        codebook_size=codes,
        codebook_dim=dim,
    )


def _check_type(directory: Path, data: Mapping[str, Any], *allowed: str) -> None:
    found = data.get("model_type")
    if found not in allowed:
        raise InputError(
            f"{str(directory / 'config.json')!r}: model_type is {str(found)[:80]!r}",
            " or ".join(map(repr, allowed)),
        )
