"""Answers: prompt and pictures in, text tokens out, in small pieces.

Dims: B conversations, T padded prompt length, S cache slots, N pictures, P tokens of a picture,
C tokens of a piece, V vocabulary.

Three programs: `begin` reads the pictures and prompts of a batch, or `extend` the new part of one
conversation, and gives the first token; `advance` gives up to C more. Prompts are padded to a few
lengths, so the next question finds them compiled.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.generate.sampling import Sampling, row_keys, sample
from janus_jax.nn.cache import KVCache
from janus_jax.processing.prompt import Prompt
from janus_jax.sharding import constrain

# Tokens between two visits to the host: few enough that a stream feels live, and enough that the
# visits cost nothing.
PIECE = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ChatState:
    """Answers in the making.

    Attributes:
      cache: keys and values of B rows.
      token: int32 [B], the last token of each answer, not yet in the cache.
      position: int32 [B], where that token stands.
      step: int32 scalar, tokens sampled so far.
      done: bool [B], answers that have ended.
      keys: typed keys [B].
    """

    cache: KVCache
    token: jax.Array
    position: jax.Array
    step: jax.Array
    done: jax.Array
    keys: jax.Array


@functools.partial(jax.jit, static_argnames=("graphdef", "slots"))
def begin(
    graphdef: Any,
    params: Any,
    ids: jax.Array,
    mask: jax.Array,
    positions: jax.Array,
    pixels: jax.Array | None,
    index: jax.Array | None,
    keys_from: tuple[jax.Array, jax.Array, jax.Array],
    eos: jax.Array | int,
    how: Sampling,
    *,
    slots: int,
) -> ChatState:
    """Reads the prompt and samples the first token.

    Args:
      graphdef: static part of the model.
      params: parameters.
      ids: int32 [B, T], padded on the left.
      mask: bool [B, T].
      positions: int32 [B, T].
      pixels: float32 [N, S, S, 3] normalised pictures, or None.
      index: int32 [B, T] as `janus_jax.processing.image_index` makes it, or None.
      keys_from: seeds uint32 [] or [B], digests uint32 [B, 2], numbers int32 [B].
      eos: id of the end-of-sentence token.
      how: sampling.
      slots: S.

    Returns:
      The state after one token.
    """
    model = nnx.merge(graphdef, params)
    features = None if pixels is None else model.encode_image(pixels)
    h, cache = model.prefill(model.embed(ids, features, index), positions, mask, slots)
    keys = row_keys(*keys_from)
    # Whole on every device: each host of several can read all of them. So are those of `advance`.
    token = constrain(sample(keys, jnp.int32(0), model.text_logits(h[:, -1]), how), None)
    length = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    return ChatState(cache, token, length, jnp.int32(1), token == eos, keys)


@functools.partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("cache",))
def extend(
    graphdef: Any,
    params: Any,
    cache: KVCache,
    start: jax.Array | int,
    count: jax.Array | int,
    ids: jax.Array,
    pixels: jax.Array | None,
    index: jax.Array | None,
    keys_from: tuple[jax.Array, jax.Array, jax.Array],
    eos: jax.Array | int,
    how: Sampling,
) -> ChatState:
    """Reads the new part of one conversation and samples the first token of the answer.

    Args:
      graphdef: static part of the model.
      params: parameters.
      cache: given up by the caller; one row without padding, so that slot and position agree.
      start: tokens of the cache that stay.
      count: new tokens.
      ids: int32 [1, T], padded on the right; slots `start` to `start + T - 1` must exist.
      pixels: float32 [N, S, S, 3], the pictures among the new tokens, or None.
      index: int32 [1, T] as `janus_jax.processing.image_index` makes it, or None.
      keys_from: seed uint32 [], digest uint32 [1, 2], number int32 [1].
      eos: id of the end-of-sentence token.
      how: sampling.

    Returns:
      The state after one token.
    """
    model = nnx.merge(graphdef, params)
    first, new = jnp.asarray(start, jnp.int32), jnp.asarray(count, jnp.int32)
    features = None if pixels is None else model.encode_image(pixels)
    offsets = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    x = model.embed(ids, features, index)
    h, cache = model.extend(x, first + offsets, offsets < new, cache.rewind(first))
    last = jax.lax.dynamic_index_in_dim(h, new - 1, axis=1, keepdims=False)
    keys = row_keys(*keys_from)
    token = sample(keys, jnp.int32(0), model.text_logits(last), how)
    end = first + new
    cache = _spread(KVCache(cache.k, cache.v, cache.valid, end))
    # Whole on every device: each host of several can read it.
    token = constrain(token, None)
    return ChatState(cache, token, end[None], jnp.int32(1), token == eos, keys)


@functools.partial(jax.jit, static_argnums=range(6))
def empty_cache(
    layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: Any
) -> KVCache:
    """`KVCache.empty`, laid over the mesh as `extend` leaves it, so that no turn compiles again."""
    return _spread(KVCache.empty(layers, batch, slots, kv_heads, head_dim, dtype))


def _spread(cache: KVCache) -> KVCache:
    """Rows and heads over the mesh."""

    def pin(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(constrain(x, "batch", "heads", None, None) for x in arrays)

    return KVCache(pin(cache.k), pin(cache.v), constrain(cache.valid, "batch", None), cache.length)


@functools.partial(jax.jit, static_argnames=("graphdef", "piece"), donate_argnames=("state",))
def advance(
    graphdef: Any,
    params: Any,
    state: ChatState,
    stop: jax.Array | int,
    eos: jax.Array | int,
    how: Sampling,
    *,
    piece: int = PIECE,
) -> tuple[ChatState, jax.Array, jax.Array]:
    """Samples up to C more tokens; stops early when every answer has ended.

    Args:
      graphdef: static part of the model.
      params: parameters.
      state: given up by the caller (its buffers are reused).
      stop: no token beyond this number of them; int32, a scalar or [B] for each row its own.
      eos: id of the end-of-sentence token, which also fills ended answers.
      how: sampling.
      piece: C.

    Returns:
      The state; tokens int32 [B, C]; how many columns of them are filled, int32 scalar.
    """
    model = nnx.merge(graphdef, params)
    tokens = jnp.full((state.token.shape[0], piece), eos, jnp.int32)

    def more(carry: tuple[ChatState, jax.Array, jax.Array]) -> jax.Array:
        state, _, filled = carry
        return (filled < piece) & jnp.any(~state.done & (state.step < stop))

    def body(
        carry: tuple[ChatState, jax.Array, jax.Array],
    ) -> tuple[ChatState, jax.Array, jax.Array]:
        state, tokens, filled = carry
        x = model.embed(state.token[:, None])
        h, cache = model.decode_step(x, state.position[:, None], state.cache)
        drawn = sample(state.keys, state.step, model.text_logits(h[:, 0]), how)
        ended = state.done | (state.step >= stop)
        token = jnp.where(ended, eos, drawn).astype(jnp.int32)
        tokens = lax.dynamic_update_slice_in_dim(tokens, token[:, None], filled, axis=1)
        done = ended | (token == eos)
        new = ChatState(cache, token, state.position + 1, state.step + 1, done, state.keys)
        return new, tokens, filled + 1

    state, tokens, filled = lax.while_loop(more, body, (state, tokens, jnp.int32(0)))
    state = replace(state, token=constrain(state.token, None))
    return state, constrain(tokens, None, None), filled


def answer_room(config: JanusConfig, prompt: Prompt) -> int:
    """Tokens an answer may have before the model runs out of positions.

    Raises:
      InputError: the prompt leaves no room.
    """
    room = config.llm.max_positions - len(prompt.ids)
    if room < 1:
        pictures = len(prompt.image_spans)
        raise InputError(
            f"the prompt is too long: {len(prompt.ids)} tokens with its template"
            + (f" and {pictures} pictures" if pictures else ""),
            f"at most {config.llm.max_positions - 1} tokens",
            "shorten the question" + (" or send fewer pictures" if pictures else ""),
        )
    return room
