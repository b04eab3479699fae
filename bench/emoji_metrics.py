"""Scores of the emoji model as pure functions of arrays and texts: no model, no files.

Dims: N pictures scored, M candidates, S picture side.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

TOP = 5
# A reconstruction without any error would have an infinite PSNR and spoil the mean.
_PSNR_CAP_DB = 100.0


def share(hits: Iterable[bool]) -> float:
    """The share of true values, 0 to 1; NaN of nothing."""
    found = [bool(hit) for hit in hits]
    return sum(found) / len(found) if found else float("nan")


def exact_match(answers: Sequence[str], accepted: Sequence[frozenset[str]]) -> float:
    """The share of answers that are, without outer white space, one of the accepted ones."""
    return share(a.strip() in names for a, names in zip(answers, accepted, strict=True))


def attribute_accuracy(predicted: Sequence[str | None], true: Sequence[str | None]) -> float:
    """The share of right predictions among the records that have the attribute."""
    pairs = zip(predicted, true, strict=True)
    return share(guess == value for guess, value in pairs if value is not None)


def commonest_chance(training: Iterable[str | None], true: Iterable[str | None]) -> float:
    """What always answering the commonest training value scores, of equals the first by name.

    Args:
        training: The attribute of every training record; None where it has none.
        true: The attribute of every record scored.

    Returns:
        0 to 1; NaN if no record scored has the attribute.
    """
    counts = Counter(value for value in training if value is not None)
    if not counts:
        return share(False for value in true if value is not None)
    answer = min(counts, key=lambda value: (-counts[value], value))
    return share(value == answer for value in true if value is not None)


def question_chance(
    training: Iterable[tuple[str, str]], scored: Sequence[tuple[str, str]]
) -> float:
    """What the commonest training answer of each question scores.

    Args:
        training: (question, answer) of the training split.
        scored: Those asked.

    Returns:
        0 to 1; a question that training never asks counts as wrong.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in training:
        answers[question][answer] += 1
    best = {q: min(c, key=lambda a, c=c: (-c[a], a)) for q, c in answers.items()}
    return share(best.get(question) == answer for question, answer in scored)


def look_alikes(pictures: np.ndarray) -> np.ndarray:
    """Numbers pictures so that those with equal pixels have equal numbers.

    Args:
        pictures: uint8 [M, S, S, 3].

    Returns:
        int64 [M], the index of the first picture with the same pixels.
    """
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(p.tobytes(), i) for i, p in enumerate(pictures)], np.int64)


def squared_errors(drawn: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Sum of squared RGB differences of every picture to every candidate.

    Exact whole numbers (float64 holds them up to 2^53), so ties are ties on every machine.

    Args:
        drawn: uint8 [N, S, S, 3].
        candidates: uint8 [M, S, S, 3].

    Returns:
        float64 [N, M].
    """
    rows = candidates.reshape(len(candidates), -1).astype(np.float64)
    norms = np.einsum("md,md->m", rows, rows)
    errors = np.empty((len(drawn), len(rows)))
    for start in range(0, len(drawn), 256):
        part = drawn[start : start + 256].reshape(-1, rows.shape[1]).astype(np.float64)
        own = np.einsum("nd,nd->n", part, part)
        errors[start : start + 256] = own[:, None] - 2 * (part @ rows.T) + norms
    return errors


def ranks(errors: np.ndarray, true: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """The rank of the true picture among all candidates, 1 the nearest.

    Candidates with the pixels of the true one share its rank; of others that are exactly as near,
    every one goes before it.

    Args:
        errors: float [N, M], see `squared_errors`.
        true: int [N], which candidate is the true one.
        looks: int [M], see `look_alikes`.

    Returns:
        int64 [N], 1 to M.
    """
    own = np.take_along_axis(errors, true[:, None], axis=1)
    before = (errors < own) | ((errors == own) & (looks[None] != looks[true][:, None]))
    return 1 + before.sum(axis=1)


def top_share(found: np.ndarray, top: int = TOP) -> float:
    """The share of ranks that are at most `top`."""
    return share(found <= top)


def psnr_db(pictures: np.ndarray, reconstructed: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio.

    Args:
        pictures: uint8 [N, S, S, 3].
        reconstructed: uint8 [N, S, S, 3].

    Returns:
        Decibels; a picture without any error counts as 100.
    """
    difference = pictures.astype(np.float64) - reconstructed.astype(np.float64)
    error = np.mean(difference**2, axis=(1, 2, 3))
    ratio = 10 * np.log10(255.0**2 / np.maximum(error, 1e-12))
    return float(np.minimum(ratio, _PSNR_CAP_DB).mean())


def families(concepts: Sequence[str], pictures: Sequence[str]) -> list[str]:
    """Joins concepts that share a picture, as the flags of a country and its territory do.

    Args:
        concepts: The concept of each record.
        pictures: What tells its picture apart, equal for equal pictures.

    Returns:
        A family for each record: equal where a chain of shared pictures links two concepts.
    """
    parent: dict[str, str] = {concept: concept for concept in concepts}

    def root(concept: str) -> str:
        while parent[concept] != concept:
            concept = parent[concept]
        return concept

    shown: dict[str, str] = {}
    for concept, picture in zip(concepts, pictures, strict=True):
        one, other = root(concept), root(shown.setdefault(picture, concept))
        parent[max(one, other)] = min(one, other)
    return [root(concept) for concept in concepts]


def derangement(groups: Sequence[str], seed: int) -> np.ndarray:
    """A random permutation that maps no record to one of its own group.

    Records are ordered by group, groups and members shuffled, and each takes the record that lies
    one largest group further on: never one of its own, because no group is longer than the step.

    Args:
        groups: The group of each record.
        seed: Of the shuffles.

    Returns:
        int64 [N], for each record the one it is mapped to.

    Raises:
        ValueError: One group has more than half of the records, so there is no such permutation.
    """
    largest = max(Counter(groups).values(), default=0)
    if 2 * largest > len(groups):
        raise ValueError(f"a group of {largest} among {len(groups)} records: nothing to swap with")
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    place: Mapping[str, int] = dict(zip(names, rng.permutation(len(names)), strict=True))
    within = rng.permutation(len(groups))
    order = np.lexsort((within, np.array([place[group] for group in groups])))
    mapped = np.empty(len(groups), np.int64)
    mapped[order] = np.roll(order, -largest)
    return mapped


def evenly_spaced(count: int, wanted: int | None) -> np.ndarray:
    """Indices of `wanted` of `count` records, evenly spaced from the first; all by default."""
    wanted = count if wanted is None else min(wanted, count)
    return np.arange(wanted, dtype=np.int64) * count // max(wanted, 1)
