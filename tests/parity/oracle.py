"""The oracle: transformers' Janus in torch on the CPU, and our model with the same weights.

The weights are random and reach us through the key table, as a published checkpoint would. All of
them are random, not only the matrices: transformers starts biases at zero and norms at one, and
a swapped or dropped one would not show.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx
from transformers.initialization import no_init_weights

from convert.engine import plan_import, shapes_of
from convert.keys import HF
from janus_jax import functional
from janus_jax.config import DEBUG, JANUS_PRO_1B, JanusConfig
from janus_jax.functional import GraphDef, Params
from janus_jax.hf_config import to_hf_config

IMAGE_TOKEN = 7

# Two layers of each tower at the published widths; nothing else is made smaller.
WIDE = dataclasses.replace(
    JANUS_PRO_1B,
    name="janus-pro-1b, two layers",
    vision=dataclasses.replace(JANUS_PRO_1B.vision, depth=2),
    llm=dataclasses.replace(JANUS_PRO_1B.llm, depth=2),
)
CONFIGS = {"tiny": DEBUG, "wide": WIDE}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both implementations of one architecture, with the same weights."""

    scale: str
    config: JanusConfig
    hf: transformers.JanusForConditionalGeneration
    graphdef: GraphDef
    params: Params

    @property
    def model(self) -> transformers.JanusModel:
        return self.hf.model


def build(scale: str) -> Pair:
    config = CONFIGS[scale]
    hf = hf_model(config)
    graphdef, abstract = functional.abstract(config)
    state = {key: value.numpy() for key, value in hf.state_dict().items()}
    plan = plan_import(HF, shapes_of(functional.flat_params(abstract)), shapes_of(state))
    # Tensors that need no transform are shared with torch: at 1B the token table alone is 0.8 GB.
    flat = {path: jnp.from_dlpack(np.ascontiguousarray(array)) for path, array in plan.read(state)}
    return Pair(scale, config, hf, graphdef, functional.unflatten_params(abstract, flat))


def hf_model(config: JanusConfig) -> transformers.JanusForConditionalGeneration:
    hf_config = transformers.JanusConfig(**to_hf_config(config, image_token_id=IMAGE_TOKEN))
    assert hf_config.tie_word_embeddings is False
    with no_init_weights():
        model = transformers.JanusForConditionalGeneration._from_config(
            hf_config, attn_implementation="eager", dtype=torch.float32
        )
    _randomise(model)
    model.requires_grad_(False)
    return model.eval()


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    """Every parameter non-trivial, activations of order one."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "embed" in name and name.endswith("weight") and "patch_embedding" not in name:
            p.normal_(0.0, 1.0, generator=generator)
        elif p.ndim > 1:
            p.normal_(0.0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            p.normal_(1.0, 0.25, generator=generator)
        else:
            p.normal_(0.0, 0.25, generator=generator)


@contextmanager
def recorded(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, np.ndarray]]:
    """Outputs of torch modules by our tap names, filled while the model runs."""
    outputs: dict[str, np.ndarray] = {}

    def hook(name: str):
        def record(_module, _args, output) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            outputs[name] = tensor.detach().numpy().copy()

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def to_torch(x) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(seed: int, *shape: int) -> np.ndarray:
    return rng(seed).standard_normal(shape, np.float32)


def pictures(seed: int, batch: int, side: int) -> np.ndarray:
    """Random pictures in [-1, 1], [B, S, S, 3]: coarse noise enlarged, and a little fine noise."""
    coarse = rng(seed).uniform(-1, 1, (batch, 8, 8, 3)).astype(np.float32)
    smooth = np.asarray(jax.image.resize(coarse, (batch, side, side, 3), "linear"))
    return np.clip(smooth + 0.1 * normal(seed + 1, batch, side, side, 3), -1, 1)


def nchw(pixels: np.ndarray) -> torch.Tensor:
    return to_torch(pixels.transpose(0, 3, 1, 2))


def with_taps(pair: Pair, call, *args):
    """`call(model, taps, *args)` of our model in one jit -> its result and all its taps."""

    @jax.jit
    def run(params: Params, *args):
        taps: dict[str, jax.Array] = {}
        return call(nnx.merge(pair.graphdef, params), taps, *args), taps

    return jax.tree.map(np.asarray, run(pair.params, *args))
