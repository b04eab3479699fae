"""A general language model's vocabulary, extended by the control tokens of Janus.

New input rows are drawn from a normal distribution with the mean and the standard deviation, column
by column, of the rows the model was trained on: of ordinary size, and different from one another
while the language model is frozen (stage 1). New rows of the head are the mean of its rows, so that
no new token is likelier than an average one. The tokens that begin and end a text start as copies
of the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken

from convert.jsonfile import read_text
from convert.processors import MAX_TOKENIZER_BYTES
from janus_jax.errors import InputError
from janus_jax.processing.tokenizer import BOS, CONTROL_TOKENS, EOS, Tokenizer, parse_tokenizer

ROWS_MULTIPLE = 64
"""A grown vocabulary is rounded up to this, so that it divides over devices."""

_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer with Janus' control tokens, and what they mean for the tables.

    Attributes:
      tokenizer: the extended tokenizer.
      added: id of every control token that it lacked.
      copies: for those that copy a row of the model's own, its id.
      known: ids of the tokenizer as it was; rows from there on are untrained.
      size: rows that the embedding and the head need.
    """

    tokenizer: Tokenizer
    added: dict[str, int]
    copies: dict[int, int]
    known: int
    size: int


def extend_vocabulary(path: Path, model: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """Adds the control tokens that a tokenizer lacks; those it has keep their ids.

    Args:
      path: `tokenizer.json` of the language model.
      model: its `config.json`, for `bos_token_id` and `eos_token_id`.
      vocab_size: rows of its embedding. Free ones are used before it grows.

    Raises:
      InputError: no usable tokenizer, or one with ids beyond the embedding.
    """
    text = read_text(path, max_bytes=MAX_TOKENIZER_BYTES)
    name = f"tokenizer file {str(path)!r}"
    raw = parse_tokenizer(text, name)
    known = 1 + max(raw.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 1 <= known <= vocab_size:
        raise InputError(
            f"{name} has ids up to {known - 1}", f"ids below {vocab_size} (vocab_size)"
        )
    lacking = [token for token in CONTROL_TOKENS if raw.token_to_id(token) is None]
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in lacking])
    tokenizer = Tokenizer(raw, name)
    words = raw.get_vocab(with_added_tokens=True)
    added = {token: words[token] for token in lacking}
    size = max(vocab_size, tokenizer.vocab_size)
    if size > vocab_size:
        size += -size % ROWS_MULTIPLE
    own = {BOS: model.get("bos_token_id"), EOS: model.get("eos_token_id")}
    copies = {
        added[token]: first
        for token, value in own.items()
        if token in added and (first := _first_id(value, known)) is not None
    }
    return Vocabulary(tokenizer, added, copies, known, size)


def extend_embedding(table: np.ndarray, vocabulary: Vocabulary, *, seed: int) -> np.ndarray:
    """Input table [V, D] -> [size, D], a copy in the same dtype, new rows as the module says."""
    mean, std = _statistics(table[: vocabulary.known])
    result = _grown(table, vocabulary.size)
    for row in _new_rows(table, vocabulary):
        noise = np.random.default_rng((seed, row)).standard_normal(len(mean))
        result[row] = (mean + std * noise).astype(table.dtype)
    for row, source in vocabulary.copies.items():
        result[row] = table[source]
    return result


def extend_head(kernel: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Head [D, V] -> [D, size], a copy in the same dtype, new columns as the module says."""
    rows = kernel.T
    mean, _ = _statistics(rows[: vocabulary.known])
    result = _grown(rows, vocabulary.size)
    for row in _new_rows(rows, vocabulary):
        result[row] = mean.astype(kernel.dtype)
    for row, source in vocabulary.copies.items():
        result[row] = rows[source]
    return result.T


def _new_rows(table: np.ndarray, vocabulary: Vocabulary) -> list[int]:
    """Rows of added tokens, and those below the new size that no token has."""
    return sorted({*vocabulary.added.values(), *range(len(table), vocabulary.size)})


def _grown(table: np.ndarray, size: int) -> np.ndarray:
    result = np.zeros((size, table.shape[1]), table.dtype)
    result[: len(table)] = table
    return result


def _statistics(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, float64, in chunks of rows."""
    total = np.zeros(table.shape[1])
    squares = np.zeros(table.shape[1])
    for start in range(0, len(table), _CHUNK):
        chunk = table[start : start + _CHUNK].astype(np.float64)
        total += chunk.sum(axis=0)
        squares += (chunk**2).sum(axis=0)
    mean = total / len(table)
    return mean, np.sqrt(np.maximum(squares / len(table) - mean**2, 0))


def _first_id(value: Any, known: int) -> int | None:
    """An id of a config, which may be a list of ids; None where it is no id of the tokenizer."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, int) and not isinstance(first, bool) and 0 <= first < known:
        return first
    return None
