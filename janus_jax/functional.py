"""The model as pure functions over `(graphdef, params)`, to be used under your own `jax.jit`.

    graphdef, params = functional.build(config, seed=0)
    features = jax.jit(functional.encode_image, static_argnums=0)(graphdef, params, pixels)

`graphdef` is hashable and static; `params` is a pytree of arrays. The arguments are those of the
methods of `janus_jax.models.janus.JanusModel`, where they are documented.

Dims: B batch, T tokens, N images, S picture side, P image tokens of a picture, D width,
V text vocabulary, K image codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from janus_jax.config import JanusConfig
from janus_jax.models.janus import JanusModel
from janus_jax.nn.cache import KVCache
from janus_jax.nn.layers import ShapesOnly

GraphDef = Any
Params = nnx.State


def build(
    config: JanusConfig, seed: int = 0, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> tuple[GraphDef, Params]:
    """A freshly initialised model.

    Args:
      config: the architecture.
      seed: seed of the initialisation.
      dtype: compute dtype.
      param_dtype: storage dtype.

    Returns:
      graphdef and parameters, on the default device.
    """
    graphdef = abstract(config, dtype=dtype, param_dtype=param_dtype)[0]
    return graphdef, _initialiser(config, dtype, param_dtype)(jax.random.key(seed))


@functools.cache
def _initialiser(
    config: JanusConfig, dtype: Any, param_dtype: Any
) -> Callable[[jax.Array], Params]:
    """The whole initialisation as one compiled program, traced once for all seeds."""

    def init(key: jax.Array) -> Params:
        rngs = nnx.Rngs(params=key)
        return nnx.split(JanusModel(config, rngs, dtype=dtype, param_dtype=param_dtype))[1]

    return jax.jit(init)


def abstract(
    config: JanusConfig, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> tuple[GraphDef, Params]:
    """Like `build`, with `jax.ShapeDtypeStruct` leaves: any size, no memory."""
    return nnx.split(JanusModel(config, ShapesOnly(), dtype=dtype, param_dtype=param_dtype))


def count_params(params: Any) -> int:
    """Number of scalars in a (possibly abstract) parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def flat_params(params: Any) -> dict[str, Any]:
    """`{"llm/embed/embedding": array, ...}`, the path form used by checkpoints and conversion."""
    return {
        "/".join(map(str, path)): variable.get_value()
        if hasattr(variable, "get_value")
        else variable
        for path, variable in nnx.to_flat_state(params)
    }


def unflatten_params(like: Params, flat: Mapping[str, Any]) -> Params:
    """Inverse of `flat_params`: a tree like `like` (abstract or not) with the values of `flat`.

    Raises:
      KeyError: `flat` lacks a path of `like`.
    """
    return nnx.map_state(
        lambda path, variable: variable.replace(flat["/".join(map(str, path))]), like
    )


def encode_image(
    graphdef: GraphDef, params: Params, pixels: Float[Array, "N S S 3"]
) -> Float[Array, "N P D"]:
    """Normalised pictures [N, S, S, 3] -> features [N, P, D]."""
    return nnx.merge(graphdef, params).encode_image(pixels)


def embed(
    graphdef: GraphDef,
    params: Params,
    tokens: Int[Array, "B T"],
    image_features: Float[Array, "N P D"] | None = None,
    image_index: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Text ids [B, T], with image features at the places `image_index` names -> [B, T, D]."""
    return nnx.merge(graphdef, params).embed(tokens, image_features, image_index)


def embed_image_tokens(
    graphdef: GraphDef, params: Params, ids: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Image codes [B, T] -> input embeddings [B, T, D]."""
    return nnx.merge(graphdef, params).embed_image_tokens(ids)


def hidden(
    graphdef: GraphDef,
    params: Params,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T D"]:
    """Embeddings [B, T, D] -> causal hidden states [B, T, D]."""
    return nnx.merge(graphdef, params).hidden(x, positions, mask)


def text_logits(
    graphdef: GraphDef, params: Params, states: Float[Array, "*rows D"]
) -> Float32[Array, "*rows V"]:
    """Hidden states [..., D] -> text logits [..., V] float32."""
    return nnx.merge(graphdef, params).text_logits(states)


def image_logits(
    graphdef: GraphDef, params: Params, states: Float[Array, "*rows D"]
) -> Float32[Array, "*rows K"]:
    """Hidden states [..., D] -> image-code logits [..., K] float32."""
    return nnx.merge(graphdef, params).image_logits(states)


def prefill(
    graphdef: GraphDef,
    params: Params,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    cache_length: int,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Embeddings of left-padded prompts [B, T, D] -> (hidden [B, T, D], cache)."""
    return nnx.merge(graphdef, params).prefill(x, positions, mask, cache_length)


def decode_step(
    graphdef: GraphDef,
    params: Params,
    x: Float[Array, "B 1 D"],
    positions: Int[Array, "B 1"],
    cache: KVCache,
) -> tuple[Float[Array, "B 1 D"], KVCache]:
    """One more token: embeddings [B, 1, D] -> (hidden [B, 1, D], cache)."""
    return nnx.merge(graphdef, params).decode_step(x, positions, cache)


def vq_encode(
    graphdef: GraphDef, params: Params, pixels: Float[Array, "B S S 3"]
) -> Int32[Array, "B P"]:
    """Pictures [B, S, S, 3] in [-1, 1] -> codes [B, P] int32."""
    return nnx.merge(graphdef, params).vq_encode(pixels)


def vq_decode(
    graphdef: GraphDef, params: Params, ids: Int[Array, "B P"]
) -> Float32[Array, "B S S 3"]:
    """Codes [B, P] -> pictures [B, S, S, 3] float32, about [-1, 1]."""
    return nnx.merge(graphdef, params).vq_decode(ids)
