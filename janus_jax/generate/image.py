"""Pictures from text: guided sampling of image codes, then the VQ decoder.

Dims: Q prompts, T padded prompt length, N pictures, R = 2N rows (each picture's conditional row,
then its unconditional one), S cache slots, P codes of a picture, D width, K codes.

Three programs: `begin` runs each prompt once and copies its cache to its pictures, `advance` runs
the loop over codes, `pictures` decodes. The text head is in none of them.

A picture's codes must be the same alone and in a batch, to the last bit, because one different
bit can change a code and with it all that follow. Matrix products on a CPU take another order of
summation for another number of rows (measured: more than 32 rows of a narrow model), so:
prompts run one by one, in the length of their own bucket; a batch holds pictures of one bucket
only, and at most 16 of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from janus_jax.config import JanusConfig
from janus_jax.errors import BadPrompts, InputError
from janus_jax.generate.sampling import (
    Sampling,
    bucket_length,
    guide,
    prompt_digest,
    row_keys,
    sample,
)
from janus_jax.memory import cache_itemsize, param_bytes, pictures_at_once
from janus_jax.models.janus import JanusModel
from janus_jax.nn.cache import KVCache, whole_slots
from janus_jax.processing.prompt import Roles, generation_prompt, left_pad, unconditional
from janus_jax.processing.tokenizer import Tokenizer
from janus_jax.sharding import constrain, least_of_hosts, mesh_of, on_mesh

Progress = Callable[[int, int], None]
Drawn = Callable[[int, int, np.ndarray], None]

MAX_PICTURES = 16
# Reports a picture's progress at most this often; each report waits for the device once.
_REPORTS = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DrawState:
    """Pictures in the making.

    Attributes:
      cache: keys and values of R rows.
      codes: int32 [N, P], valid up to `step`.
      step: int32 scalar, codes drawn so far.
      prompt_length: int32 [R], tokens of each row's prompt.
      keys: typed keys [N].
    """

    cache: KVCache
    codes: jax.Array
    step: jax.Array
    prompt_length: jax.Array
    keys: jax.Array


def _next_codes(
    model: JanusModel,
    hidden: jax.Array,
    keys: jax.Array,
    step: jax.Array,
    weight: jax.Array | float,
    how: Sampling,
) -> jax.Array:
    """Hidden states [R, 1, D] -> codes int32 [N]."""
    logits = model.image_logits(hidden[:, 0])
    pairs = logits.reshape(-1, 2, logits.shape[-1])
    return sample(keys, step, guide(pairs[:, 0], pairs[:, 1], jnp.asarray(weight)), how)


@functools.partial(jax.jit, static_argnames=("graphdef", "num_codes"))
def begin(
    graphdef: Any,
    params: Any,
    ids: jax.Array,
    mask: jax.Array,
    positions: jax.Array,
    owner: jax.Array,
    keys_from: tuple[jax.Array, jax.Array, jax.Array],
    weight: jax.Array | float,
    how: Sampling,
    *,
    num_codes: int,
) -> DrawState:
    """Runs the prompts and draws every picture's first code.

    Args:
      graphdef: static part of the model.
      params: parameters.
      ids: int32 [Q, 2, T], conditional and unconditional ids, padded on the left.
      mask: bool [Q, T], True at real tokens; the same for both rows, whose lengths are equal.
      positions: int32 [Q, T].
      owner: int32 [N], the prompt of each picture.
      keys_from: seed uint32 [], prompt digests uint32 [N, 2], picture numbers int32 [N].
      weight: guidance weight w.
      how: sampling.
      num_codes: P.

    Returns:
      The state after one code.
    """
    model = nnx.merge(graphdef, params)
    slots = whole_slots(ids.shape[-1] + num_codes - 1)  # the last code is never read back

    def prompt(pair: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, KVCache]:
        tokens, valid, places = pair
        two = (2, tokens.shape[-1])
        x = model.embed(tokens)
        h, cache = model.prefill(
            x, jnp.broadcast_to(places, two), jnp.broadcast_to(valid, two), slots
        )
        return h[:, -1:], cache

    last, caches = lax.map(prompt, (ids, mask, positions))

    def rows(x: jax.Array) -> jax.Array:
        """[Q, 2, ...] -> [R, ...]: every picture gets its prompt's two rows."""
        return x[owner].reshape(-1, *x.shape[2:])

    def kept(x: jax.Array) -> jax.Array:
        """Keys or values [Q, 2, K, S, H] -> [R, K, S, H], rows and heads over the mesh."""
        return constrain(rows(x), "batch", "heads", None, None)

    cache = KVCache(
        k=tuple(map(kept, caches.k)),
        v=tuple(map(kept, caches.v)),
        valid=rows(caches.valid),
        length=caches.length[0],
    )
    keys = row_keys(*keys_from)
    first = _next_codes(model, rows(last), keys, jnp.int32(0), weight, how)
    codes = jnp.zeros((owner.shape[0], num_codes), jnp.int32).at[:, 0].set(first)
    # Whole on every device: each host of several can read all of them.
    codes = constrain(codes, None, None)
    lengths = jnp.repeat(jnp.sum(mask, axis=-1, dtype=jnp.int32)[owner], 2)
    return DrawState(cache, codes, jnp.int32(1), lengths, keys)


@functools.partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("state",))
def advance(
    graphdef: Any,
    params: Any,
    state: DrawState,
    stop: jax.Array | int,
    weight: jax.Array | float,
    how: Sampling,
) -> DrawState:
    """Draws codes until `stop` of them exist; one loop on the device, caches updated in place.

    Args:
      graphdef: static part of the model.
      params: parameters.
      state: given up by the caller (its buffers are reused).
      stop: number of codes, at most P; traced, so one program serves any part of a picture.
      weight: guidance weight.
      how: sampling.

    Returns:
      The new state.
    """
    model = nnx.merge(graphdef, params)

    def body(state: DrawState) -> DrawState:
        previous = lax.dynamic_slice_in_dim(state.codes, state.step - 1, 1, axis=1)
        # Repeated before the aligner, not after, so that one picture too has two rows in every
        # product: a single row takes another kernel with another order of summation.
        x = model.embed_image_tokens(jnp.repeat(previous, 2, axis=0))
        places = state.prompt_length[:, None] + state.step - 1
        h, cache = model.decode_step(x, places, state.cache)
        drawn = _next_codes(model, h, state.keys, state.step, weight, how)
        codes = lax.dynamic_update_slice_in_dim(state.codes, drawn[:, None], state.step, axis=1)
        return DrawState(cache, codes, state.step + 1, state.prompt_length, state.keys)

    done = lax.while_loop(lambda state: state.step < stop, body, state)
    return replace(done, codes=constrain(done.codes, None, None))


@functools.partial(jax.jit, static_argnames=("graphdef",))
def pictures(graphdef: Any, params: Any, codes: jax.Array) -> jax.Array:
    """Codes [N, P] -> pictures [N, S, S, 3] float32, about [-1, 1]."""
    return constrain(nnx.merge(graphdef, params).vq_decode(codes), None, None, None, None)


def decode_codes(graphdef: Any, params: Any, codes: np.ndarray, chunk: int = 1) -> np.ndarray:
    """Decodes pictures a few at a time: memory for `chunk` of them, one program for any number.

    Args:
      graphdef: static part of the model.
      params: parameters.
      codes: int32 [N, P].
      chunk: pictures a call. The decoder is compute-bound at one, so more gains little.

    Returns:
      float32 [N, S, S, 3], about [-1, 1], not clipped.
    """
    short = -len(codes) % chunk
    padded = np.concatenate([codes, np.repeat(codes[-1:], short, axis=0)])
    with on_mesh(params):
        parts = [
            pictures(graphdef, params, padded[i : i + chunk]) for i in range(0, len(padded), chunk)
        ]
    return np.concatenate([np.asarray(part) for part in parts])[: len(codes)]


def encode_prompts(
    config: JanusConfig, tokenizer: Tokenizer, roles: Roles, prompts: Any
) -> list[np.ndarray]:
    """Generation prompts as ids, int32 [T] each.

    Raises:
      BadPrompts: some are no texts, empty or too long; says which.
      InputError: `prompts` is no list of one or more.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise InputError(f"prompts is {prompts!r}", "a list of one or more texts")
    rows, problems = [], {}
    for i, text in enumerate(prompts):
        name = f"prompt {i + 1} of {len(prompts)}"
        try:
            rows.append(encode_prompt(config, tokenizer, roles, text, name=name))
        except InputError as error:
            problems[i] = error
    if problems:
        raise BadPrompts(problems)
    return rows


def encode_prompt(
    config: JanusConfig, tokenizer: Tokenizer, roles: Roles, text: Any, *, name: str
) -> np.ndarray:
    """One generation prompt as ids, int32 [T].

    Raises:
      InputError: no text, empty or too long; `name` is what the message calls it.
    """
    room = config.llm.max_positions - config.num_image_tokens + 1
    try:
        row = generation_prompt(tokenizer, text, roles=roles)
    except InputError as error:
        raise InputError(f"{name}: {error.what}", error.allowed, error.fix) from error
    if len(row) > room:
        raise InputError(
            f"{name} is too long: {len(row)} tokens with its template",
            f"at most {room} beside the {config.num_image_tokens} of the picture",
            "shorten the prompt",
        )
    return row


def generate_codes(
    graphdef: Any,
    params: Any,
    config: JanusConfig,
    tokenizer: Tokenizer,
    roles: Roles,
    prompts: Any,
    *,
    numbers: Sequence[int],
    cfg: float,
    how: Sampling,
    seed: int,
    progress: Progress | None = None,
    drawn: Drawn | None = None,
    at_once: int | None = None,
) -> np.ndarray:
    """Draws pictures of each prompt, as image codes.

    Picture i of a prompt depends on the weights, `seed`, the prompt, i and the sampling settings
    alone (bit-equal in float32 on one backend); Janus-Pro report, section 2.1, for the method and
    the reference implementation for its unconditional row.

    Args:
      graphdef: static part of the model.
      params: parameters.
      config: its architecture.
      tokenizer: vocabulary.
      roles: names of the speakers.
      prompts: what to draw, a list of texts.
      numbers: which pictures of each prompt: 0 and 1 for the first two.
      cfg: guidance weight; 1 is no guidance, and costs the same: one row a picture would take other
        kernels on a CPU, with other last bits, than the same row beside others.
      how: sampling.
      seed: 0 to 2**32 - 1.
      progress: called with (codes drawn, codes in all) now and then.
      drawn: called with (place of the prompt, number of the picture, its codes int32 [P]) for the
        pictures that are drawn at once, before the next are begun.
      at_once: pictures drawn at once; None draws as many as fit, at most MAX_PICTURES. More are
        refused on a CPU, for the reason at the top of this file.

    Returns:
      int32 [len(prompts), len(numbers), P].

    Raises:
      BadPrompts: some prompts are no texts, empty or too long; nothing was drawn.
      InputError: no list of prompts, too many at once, or too little memory.
    """
    rows = encode_prompts(config, tokenizer, roles, prompts)
    size, count = config.num_image_tokens, len(rows) * len(numbers)
    if at_once is not None:
        at_once = min(at_once, count)
        if at_once > MAX_PICTURES and jax.default_backend() == "cpu":
            raise InputError(
                f"drawing {at_once} pictures at once",
                f"at most {MAX_PICTURES} on a CPU, where more come out as other pictures",
            )
    codes = np.zeros((len(rows), len(numbers), size), np.int32)
    total, done = codes.size, 0
    weight = np.float32(cfg)
    lengths = [bucket_length(len(row)) for row in rows]
    mesh = mesh_of(params)
    at_once = pictures_at_once(
        config,
        param_bytes(params),
        max(lengths),
        itemsize=cache_itemsize(params),
        most=min(MAX_PICTURES, count),
        asked=at_once,
        prompts=len(rows),
        mesh=None if mesh is None else dict(mesh.shape),
    )
    at_once = least_of_hosts(params, at_once)
    for batch in _batches(lengths, len(numbers), at_once):
        chosen = sorted({p for p, _ in batch})
        pairs = [(rows[p], unconditional(rows[p], tokenizer.pad)) for p in chosen]
        length = bucket_length(len(pairs[0][0]))
        ids, mask, positions = left_pad([r for pair in pairs for r in pair], tokenizer.pad, length)
        keys_from = (
            np.uint32(seed),
            np.stack([prompt_digest(prompts[p]) for p, _ in batch]),
            np.array([numbers[i] for _, i in batch], np.int32),
        )
        with on_mesh(params):
            state = begin(
                graphdef,
                params,
                ids.reshape(-1, 2, length),
                mask[::2],
                positions[::2],
                np.array([chosen.index(p) for p, _ in batch], np.int32),
                keys_from,
                weight,
                how,
                num_codes=size,
            )
            every = size if progress is None else math.ceil(size / _REPORTS)
            for stop in [*range(every, size, every), size]:
                state = advance(graphdef, params, state, np.int32(stop), weight, how)
                if progress is not None:
                    jax.block_until_ready(state.step)
                    progress(done + stop * len(batch), total)
        done += size * len(batch)
        found = np.asarray(state.codes)
        del state  # the caches go before anybody decodes
        for (p, i), row in zip(batch, found, strict=True):
            codes[p, i] = row
            if drawn is not None:
                drawn(p, numbers[i], row)
    return codes


def _batches(lengths: Sequence[int], n: int, size: int) -> Iterator[list[tuple[int, int]]]:
    """(prompt, picture) pairs in batches of at most `size`, each of one bucket only."""
    for length in sorted(set(lengths)):
        pairs = [(p, i) for p, own in enumerate(lengths) if own == length for i in range(n)]
        for start in range(0, len(pairs), size):
            yield pairs[start : start + size]
