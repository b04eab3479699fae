"""Runs a model over the emoji data set and puts its scores together; `bench/emoji.py` defines them.

Dims: N records, M all 3,941 pictures, S picture side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import emoji_metrics as metrics
from bench.emoji_gallery import draw_gallery
from bench.emoji_model import Progress, answer, draw, reconstruct
from janus_jax import Janus
from train.data.emoji import Emoji, load_emoji, load_pictures, parse_name
from train.data.split import concept_of
from train.data.tasks import CAPTION_QUESTIONS, question_examples

CFG = 5.0
TEMPERATURE = 1.0
GALLERY = 64
Stage = Callable[[str], AbstractContextManager[Progress]]
Scores = dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """Which records are asked about. Candidates of ranks are all pictures, whatever is selected.

    Attributes:
        train: Captions and VQ.
        drawn: Training records whose names are drawn.
        heldout: Captions, questions, VQ, drawings, gallery.
        concept: Captions and drawings of whole concepts left out.
    """

    train: Sequence[Emoji]
    drawn: Sequence[Emoji]
    heldout: Sequence[Emoji]
    concept: Sequence[Emoji]

    @classmethod
    def full(cls, train_samples: int | None = None) -> Selection:
        """Everything, or of the training names that many, evenly spaced, to draw."""
        splits = {
            split: [e for e in load_emoji() if e.split == split]
            for split in ("train", "heldout", "concept")
        }
        train = splits["train"]
        drawn = [train[i] for i in metrics.evenly_spaced(len(train), train_samples)]
        return cls(train, drawn, splits["heldout"], splits["concept"])


@contextmanager
def quiet(label: str) -> Iterator[Progress]:
    """A stage that reports nothing."""
    yield lambda done, total: None


class Drawings:
    """Pictures of one seed, ranked against all pictures.

    Args:
        records: N records; of each the name was the prompt.
        pictures: uint8 [N, S, S, 3].
        world: All pictures.
    """

    def __init__(self, records: Sequence[Emoji], pictures: np.ndarray, world: World):
        self.pictures = pictures
        self.errors = metrics.squared_errors(pictures, world.pictures)
        self.true = world.indices(records)
        self.world = world

    def closer_than_training(self) -> np.ndarray:
        """Which pictures are nearer to the true one than to any training picture, bool [N]."""
        own = self.errors[np.arange(len(self.true)), self.true]
        return own < self.errors[:, self.world.training].min(axis=1)

    def ranks(self, mapped: np.ndarray | None = None) -> np.ndarray:
        """Ranks of the true pictures, int64 [N]; with `mapped`, of the pictures of other records
        (indices into these)."""
        true = self.true if mapped is None else self.true[mapped]
        return metrics.ranks(self.errors, true, self.world.looks)


class World:
    """All 3,941 pictures, the candidates of every rank."""

    def __init__(self, size: int):
        self.records = load_emoji()
        self.pictures = load_pictures(self.records, size)
        self.looks = metrics.look_alikes(self.pictures)
        self.training = np.array([e.split == "train" for e in self.records])
        concepts = [concept_of(e.name, e.kind) for e in self.records]
        self.families = metrics.families(concepts, [str(look) for look in self.looks])
        self._index = {e.codepoints: i for i, e in enumerate(self.records)}

    def indices(self, records: Iterable[Emoji]) -> np.ndarray:
        """Where records stand among all, int64 [N]."""
        return np.array([self._index[e.codepoints] for e in records], np.int64)

    def of(self, records: Sequence[Emoji]) -> np.ndarray:
        """Their pictures, uint8 [N, S, S, 3]."""
        return self.pictures[self.indices(records)]

    def nearest_training(self, errors: np.ndarray) -> np.ndarray:
        """Of errors [N, M], the index of the nearest training picture, int64 [N]."""
        return np.where(self.training, errors, np.inf).argmin(axis=1)

    def derangement(self, records: Sequence[Emoji], seed: int = 0) -> np.ndarray:
        """A permutation that maps no record to one of its family, int64 [N]."""
        return metrics.derangement([self.families[i] for i in self.indices(records)], seed)


def evaluate(
    model: Janus,
    selection: Selection,
    *,
    seeds: int = 3,
    gallery: Path,
    stage: Stage = quiet,
) -> Scores:
    """All scores of a model.

    Args:
        model: The model.
        selection: The records.
        seeds: Pictures of each held-out prompt, seeds 0 to `seeds` - 1.
        gallery: The PNG to write.
        stage: Opens a named stage and gives what reports its progress.

    Returns:
        The object of ``bench/emoji.py --json``.

    Raises:
        InputError: The data set is not installed or the gallery cannot be written.
    """
    began = time.perf_counter()
    world = World(model.config.image_size)
    scores: Scores = {"model": model.name, "weights": model.fingerprint}
    scores |= {
        "n_train": len(selection.train),
        "n_train_drawn": len(selection.drawn),
        "n_heldout": len(selection.heldout),
        "n_concept": len(selection.concept),
        "seeds": seeds,
    }
    scores |= _captions(model, selection, world, stage)
    scores |= _questions(model, selection.heldout, world, stage)
    scores |= _vq(model, selection, world, stage)
    scores |= _drawings(model, selection, world, seeds, gallery, stage)
    scores["gallery"] = str(gallery)
    scores["seconds"] = round(time.perf_counter() - began, 1)
    return scores


def _captions(model: Janus, selection: Selection, world: World, stage: Stage) -> Scores:
    english: dict[str, set[str]] = {}
    chinese: dict[str, set[str]] = {}
    for e in world.records:
        english.setdefault(e.picture, set()).add(e.name)
        chinese.setdefault(e.picture, set()).add(e.name_zh)

    def ask(records: Sequence[Emoji], language: int, label: str) -> tuple[list[str], float]:
        with stage(f"captions, {label}") as progress:
            questions = [CAPTION_QUESTIONS[language]] * len(records)
            answers = answer(model, questions, world.of(records), progress)
        names = chinese if language else english
        accepted = [frozenset(names[e.picture]) for e in records]
        return answers, metrics.exact_match(answers, accepted)

    training = [e for e in world.records if e.split == "train"]
    guess = 1 / len({e.name for e in training})
    scores: Scores = {}
    captions, scores["caption_exact_heldout"] = ask(selection.heldout, 0, "held-out")
    scores["caption_exact_train"] = ask(selection.train, 0, "training")[1]
    scores["caption_exact_concept"] = ask(selection.concept, 0, "concepts left out")[1]
    scores["caption_zh_exact_heldout"] = ask(selection.heldout, 1, "held-out, Chinese")[1]
    scores |= {f"{key}_chance": guess for key in list(scores)}
    read = [parse_name(caption) for caption in captions]
    for name in ("role", "gender", "tone"):
        true = [getattr(e, name) for e in selection.heldout]
        predicted = [getattr(attributes, name) for attributes in read]
        known = [getattr(e, name) for e in training]
        scores[f"{name}_heldout"] = metrics.attribute_accuracy(predicted, true)
        scores[f"{name}_heldout_chance"] = metrics.commonest_chance(known, true)
        scores[f"n_{name}_heldout"] = sum(value is not None for value in true)
    return scores


def _questions(model: Janus, records: Sequence[Emoji], world: World, stage: Stage) -> Scores:
    # Questions come in pairs, English and Chinese; the English ones are asked.
    asked = [(e, qa) for e in records for qa in question_examples(e)[::2]]
    with stage("questions, held-out") as progress:
        questions = [qa.question for _, qa in asked]
        answers = answer(model, questions, world.of([e for e, _ in asked]), progress)
    training = [
        (qa.question, qa.answer)
        for e in world.records
        if e.split == "train"
        for qa in question_examples(e)[::2]
    ]
    right = [frozenset([qa.answer]) for _, qa in asked]
    return {
        "questions_heldout": metrics.exact_match(answers, right),
        "questions_heldout_chance": metrics.question_chance(
            training, [(qa.question, qa.answer) for _, qa in asked]
        ),
        "n_questions_heldout": len(asked),
    }


def _vq(model: Janus, selection: Selection, world: World, stage: Stage) -> Scores:
    with stage("VQ reconstructions"):
        heldout, train = world.of(selection.heldout), world.of(selection.train)
        seen = reconstruct(model, heldout)
        best = Drawings(selection.heldout, seen, world)
        return {
            "vq_psnr_db": metrics.psnr_db(heldout, seen),
            "vq_psnr_train_db": metrics.psnr_db(train, reconstruct(model, train)),
            "top5_heldout_vq": metrics.top_share(best.ranks()),
            "closer_than_training_heldout_vq": metrics.share(best.closer_than_training()),
        }


def _drawings(
    model: Janus,
    selection: Selection,
    world: World,
    seeds: int,
    gallery: Path,
    stage: Stage,
) -> Scores:
    def drawings(records: Sequence[Emoji], seed: int, label: str, cfg: float = CFG) -> Drawings:
        with stage(f"drawings, {label}") as progress:
            prompts = [e.name for e in records]
            pictures = draw(
                model, prompts, seed=seed, cfg=cfg, temperature=TEMPERATURE, progress=progress
            )
            return Drawings(records, pictures, world)

    heldout = [drawings(selection.heldout, seed, f"held-out, seed {seed}") for seed in range(seeds)]
    write_gallery(selection.heldout, heldout[0], gallery)
    plain = drawings(selection.heldout, 0, "held-out, no guidance", cfg=1.0)
    concept = drawings(selection.concept, 0, "concepts left out")
    train = drawings(selection.drawn, 0, "training")

    found = [d.ranks() for d in heldout]
    by_seed = [metrics.top_share(r) for r in found]
    every = np.concatenate(found)
    copied = world.nearest_training(
        metrics.squared_errors(world.of(selection.heldout), world.pictures)
    )
    copies = Drawings(selection.heldout, world.pictures[copied], world)
    closer = np.concatenate([d.closer_than_training() for d in heldout])
    scores: Scores = {
        "top5_train": metrics.top_share(train.ranks()),
        "top1_train": metrics.top_share(train.ranks(), 1),
        "median_rank_train": float(np.median(train.ranks())),
        "top5_heldout": float(np.mean(by_seed)),
        "top5_heldout_by_seed": by_seed,
        "top5_heldout_std": float(np.std(by_seed, ddof=1)) if seeds > 1 else 0.0,
        "top1_heldout": metrics.top_share(every, 1),
        "median_rank_heldout": float(np.median(every)),
        "top5_heldout_no_guidance": metrics.top_share(plain.ranks()),
        "top5_heldout_copy": metrics.top_share(copies.ranks()),
        "closer_than_training_heldout": metrics.share(closer),
        "top5_concept": metrics.top_share(concept.ranks()),
    }
    scores |= _shuffled(selection, heldout, train)
    for key in list(scores):
        if key.startswith(("top1", "top5")) and isinstance(scores[key], float):
            scores[f"{key}_chance"] = (1 if key.startswith("top1") else 5) / len(world.records)
    for key in ("top5_heldout_std", "top5_heldout_copy"):
        del scores[f"{key}_chance"]
    return scores


def _shuffled(selection: Selection, heldout: Sequence[Drawings], train: Drawings) -> Scores:
    """The control: drawings ranked against records of another family."""
    world = train.world
    mapped = world.derangement(selection.heldout)
    own = np.concatenate([d.ranks(mapped) for d in heldout])
    records = [*selection.heldout, *selection.drawn]
    mapped = world.derangement(records)
    errors = np.concatenate([heldout[0].errors, train.errors])
    true = world.indices(records)[mapped]
    return {
        "top5_shuffled": metrics.top_share(metrics.ranks(errors, true, world.looks)),
        "top5_shuffled_heldout": metrics.top_share(own),
    }


def write_gallery(records: Sequence[Emoji], drawings: Drawings, path: Path) -> None:
    """Draws the sheet of the first held-out prompts.

    Raises:
        InputError: The file cannot be written.
    """
    world = drawings.world
    count = min(GALLERY, len(records))
    nearest = world.nearest_training(drawings.errors[:count])
    draw_gallery(
        drawings.pictures[:count],
        world.of(records[:count]),
        world.pictures[nearest],
        [e.name for e in records[:count]],
        f"The first {count} held-out prompts, in frozen order, one picture each",
        path,
    )
