"""The peer: transformers' Janus in torch, and our model with the very same random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.initialization import no_init_weights

from convert.engine import plan_import, shapes_of
from convert.keys import HF
from janus_jax import functional
from janus_jax.config import NAMED, JanusConfig
from janus_jax.hf_config import to_hf_config

IMAGE_TOKEN, BOS, BOI, PAD = 7, 0, 3, 2


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both implementations, float32 on the CPU.

    Attributes:
      config: architecture.
      hf: the peer, in evaluation mode.
      graphdef: static part of ours.
      params: our parameters; those that need no transform share the peer's memory.
    """

    config: JanusConfig
    hf: Any
    graphdef: Any
    params: Any


def architecture(model: str, layers: int | None) -> JanusConfig:
    """A named architecture, with fewer layers in both towers when asked."""
    config = NAMED[model]
    if layers is None:
        return config
    return dataclasses.replace(
        config,
        name=f"{model}, {layers} layers",
        vision=dataclasses.replace(config.vision, depth=min(layers, config.vision.depth)),
        llm=dataclasses.replace(config.llm, depth=min(layers, config.llm.depth)),
    )


def build(config: JanusConfig) -> Pair:
    """Makes the peer with random weights and converts them as `janus-jax convert` does."""
    hf_config = transformers.JanusConfig(
        **to_hf_config(
            config,
            image_token_id=IMAGE_TOKEN,
            bos_token_id=BOS,
            eos_token_id=None,
            pad_token_id=PAD,
        )
    )
    with no_init_weights():
        hf = transformers.JanusForConditionalGeneration._from_config(
            hf_config, attn_implementation="sdpa", dtype=torch.float32
        )
    _randomise(hf)
    hf.requires_grad_(False).eval()
    graphdef, shapes = functional.abstract(config)
    state = {key: value.numpy() for key, value in hf.state_dict().items()}
    plan = plan_import(HF, shapes_of(functional.flat_params(shapes)), shapes_of(state))
    flat = {path: _shared(array) for path, array in plan.read(state)}
    return Pair(config, hf, graphdef, functional.unflatten_params(shapes, flat))


def _shared(array: np.ndarray) -> jax.Array:
    return jnp.from_dlpack(np.ascontiguousarray(array))


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    """Activations of order one, so that neither side meets denormal or infinite numbers."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            p.normal_(0.0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)
        else:
            p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.01)
