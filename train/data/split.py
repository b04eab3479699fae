"""The split of the emoji data set: by composition, never at random.

Tone variants of one drawing are near-duplicates, so a random split would measure memory. Instead:

- "concept": whole concepts, with all their tones and genders (and the mirrored "facing right"
  drawing), about 5% of them; nobody can draw what was never shown, and the score says so.
- "heldout": single compositions, about 10% of all (role, gender, tone) triples of people, of the
  (gesture, tone) pairs of hands and of the clocks' (hour, half hour) pairs, and about 15% of the
  few (shape, colour) pairs. The words and characters of their names all occur in training.
- "train": the rest, and every drawing that looks exactly like another.

Two people with two tones ("kiss, men: light skin tone, dark skin tone") are compositions like any
other, with a pair of tones as their tone: each ordered pair is held out on its own, and its mirror
image, which is another drawing, is not tied to it.

A draw is a hash of the English name, so it depends on no library's random numbers and adding an
emoji moves no other. Draws that break a promise are then undone, in the order of the list. A word
is the unit of `naming.words`; a role and gender together must occur in training too, with another
tone, so "woman genie", who has no tones, cannot be held out.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from train.data.naming import parse_colour, parse_name, split_tone, words

Split = Literal["train", "heldout", "concept"]

CONCEPT_RATE = 0.05
HELDOUT_RATE = 0.10
SHAPE_RATE = 0.15


def draw(purpose: str, name: str) -> float:
    """Hashes a name to a uniform number in [0, 1).

    Args:
        purpose: Keeps draws of different meaning independent ("concept", "heldout").
        name: The text drawn for.

    Returns:
        The first 8 bytes of SHA-256 of "purpose:name", as a fraction of 2^64.
    """
    digest = hashlib.sha256(f"{purpose}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def concept_of(name: str, kind: str) -> str:
    """The concept a name belongs to: what is left without gender, tone and direction.

    Args:
        name: English name.
        kind: Kind of the record.

    Returns:
        "firefighter" for every gender and tone of it, "thumbs up" for every tone of it; for shapes
        and clocks, whose colours and hours are compositions, one concept for all of the kind.
    """
    if kind in ("shape", "clock"):
        return kind
    role = parse_name(name).role
    if role is None:
        return split_tone(name)[0]
    return role.removesuffix(" facing right")


def assign_splits(records: Sequence[tuple[str, str, str, str]]) -> list[Split]:
    """Assigns every record to a split.

    Args:
        records: (English name, Chinese name, kind, picture digest) in frozen order.

    Returns:
        One split a record. See the module's docstring for the promises.
    """
    copies = Counter(picture for _, _, _, picture in records)
    tied = {concept_of(name, kind) for name, _, kind, picture in records if copies[picture] > 1}
    splits: list[Split] = []
    for name, _, kind, picture in records:
        concept = concept_of(name, kind)
        if (
            kind not in ("shape", "clock")
            and concept not in tied
            and draw("concept", concept) < CONCEPT_RATE
        ):
            splits.append("concept")
        elif copies[picture] == 1 and _is_composition(name, kind) and _drawn(name, kind):
            splits.append("heldout")
        else:
            splits.append("train")
    _undo_unseen(records, splits)
    return splits


def _is_composition(name: str, kind: str) -> bool:
    role, tone = parse_name(name).role, split_tone(name)[1]
    if kind in ("shape", "clock"):
        return True
    return role is not None or tone is not None


def _drawn(name: str, kind: str) -> bool:
    return draw("heldout", name) < (SHAPE_RATE if kind == "shape" else HELDOUT_RATE)


def _parts(name: str, name_zh: str, kind: str) -> set[str]:
    """Everything about a held-out record that training must show in another combination."""
    attributes = parse_name(name)
    parts = {f"word {word}" for word in words(name)} | {f"character {c}" for c in name_zh}
    parts |= {f"role {attributes.role}", f"gender {attributes.gender}", f"tone {attributes.tone}"}
    if attributes.role is not None:
        parts.add(f"role and gender {attributes.role} / {attributes.gender}")
    elif attributes.tone is not None:
        parts.add(f"gesture {split_tone(name)[0]}")
    if kind == "shape":
        colour, shape = parse_colour(name)
        parts |= {f"colour {colour}", f"shape {shape}"}
    return parts


def _undo_unseen(records: Sequence[tuple[str, str, str, str]], splits: list[Split]) -> None:
    """Moves held-out records back to training while one of their parts is nowhere in training."""
    seen: set[str] = set()
    for (name, name_zh, kind, _), split in zip(records, splits, strict=True):
        if split == "train":
            seen |= _parts(name, name_zh, kind)
    # A move only adds to what training shows, so one pass in order suffices.
    for i, (name, name_zh, kind, _) in enumerate(records):
        if splits[i] == "heldout" and not _parts(name, name_zh, kind) <= seen:
            splits[i] = "train"
            seen |= _parts(name, name_zh, kind)
