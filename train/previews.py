"""Samples of a run in progress: drawn pictures as PNG grids, and answers about pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from janus_jax import functional
from janus_jax.checkpoint import LoadedModel
from janus_jax.config import JanusConfig
from janus_jax.generate.batch import ChatRequest, answer_batch
from janus_jax.generate.chat import ImageSource
from janus_jax.generate.image import decode_codes, generate_codes
from janus_jax.generate.sampling import Sampling
from janus_jax.hosts import is_first
from janus_jax.models.janus import JanusModel
from janus_jax.nn.layers import ShapesOnly
from janus_jax.processing.image import to_uint8
from janus_jax.processing.prompt import Roles
from janus_jax.processing.settings import EMOJI_PROCESSOR
from janus_jax.processing.tokenizer import Tokenizer
from janus_jax.sharding import constrain, on_mesh
from train.config import PARTS
from train.data.emoji import Emoji, load_emoji, load_pictures
from train.data.mixture import parse_data
from train.data.records.lengths import read_record
from train.data.records.prepare import Preparation
from train.data.records.record import Kind, Record
from train.data.records.schema import BrokenRecord
from train.data.records.shards import RecordSet, open_records
from train.data.samples import emoji_tokenizer
from train.data.tasks import caption_examples
from train.init import Origin

# Pictures drawn, and questions asked, of a split.
COUNT, ASKED = 16, 8
# Most tokens of an answer, and characters of a text in the list of them.
ANSWER_TOKENS, SHOWN = 32, 200
# Records of a set among which samples are looked for.
_LOOKED_AT = 100
GUIDANCE = 5.0
SEED = 0


def grid(rows: Sequence[np.ndarray], *, scale: int = 2, margin: int = 2) -> Image.Image:
    """Lays out pictures in rows.

    Args:
      rows: each uint8 [N, S, S, 3].
      scale: whole-number enlargement.
      margin: white pixels between pictures, before enlargement.

    Returns:
      The sheet, RGB.
    """
    size = rows[0].shape[1] + margin
    sheet = np.full((len(rows) * size, max(map(len, rows)) * size, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * size, x * size
            sheet[top : top + size - margin, left : left + size - margin] = picture
    image = Image.fromarray(sheet)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


@dataclass(frozen=True, eq=False)
class Question:
    """A question about pictures, or about none, with the answer that the data gives.

    Attributes:
      images: the pictures: files as bytes, or PIL images.
      text: the question.
      answer: what the data answers.
    """

    images: tuple[ImageSource, ...]
    text: str
    answer: str


@dataclass(frozen=True, eq=False)
class Examples:
    """What samples are made for: always the same captions and questions, the first of a split.

    Attributes:
      captions: by split, to be drawn.
      codes: int32 [N, P], the true pictures of all captions as image tokens.
      questions: by split, to be answered.
    """

    captions: dict[str, list[str]]
    codes: np.ndarray | None
    questions: dict[str, list[Question]]


def find_examples(origin: Origin, data: Mapping[str, Sequence[str]]) -> Examples | None:
    """The first usable pictures of packed data sets, by split; None where there are none.

    Args:
      origin: the architecture, vocabulary and processor, which decide what is usable.
      data: packed data sets by split.

    Raises:
      RunFailed: storage goes on failing.
    """
    preparation = origin.preparation()
    captions: dict[str, list[str]] = {}
    codes: list[np.ndarray] = []
    questions: dict[str, list[Question]] = {}
    for split, names in data.items():
        sets = [open_records(s.directory) for s in parse_data(names)] if names else []
        if drawn := _first(sets, "generation", COUNT // 2, preparation):
            captions[split] = [r.caption for r in drawn]
            codes += [r.codes for r in drawn if r.codes is not None]
        if asked := _first(sets, "understanding", ASKED, preparation):
            questions[split] = [Question(r.images, r.turns[0][1], r.turns[1][1]) for r in asked]
    if not codes and not questions:
        return None
    return Examples(captions, np.stack(codes) if codes else None, questions)


def _first(
    sets: Sequence[RecordSet], kind: Kind, count: int, preparation: Preparation
) -> list[Record]:
    """The first records that training does not pass over, looked for among the first ones only."""
    found: list[Record] = []
    for records in (s.kinds[kind] for s in sets if kind in s.kinds):
        for number in range(min(len(records), _LOOKED_AT)):
            if len(found) == count:
                return found
            with suppress(BrokenRecord):
                record = read_record(records, number, kind)
                preparation.measure(record)
                found.append(record)
    return found


def save_preview(
    params: nnx.State, origin: Origin, path: Path, examples: Examples | None = None
) -> tuple[Path | None, dict[str, list[str]]]:
    """Shows what the model can do now.

    The sheet `PATH.png` has true pictures above and the model's below: a tokenizer shows
    reconstructions, a whole model draws the captions. `PATH.md` lists questions about pictures with
    the true answers and the model's. First comes the training split, then the held-out one: always
    the same samples, never chosen ones.

    Args:
      params: the parameters there are, as they are on disk.
      origin: the architecture, vocabulary and processor.
      path: the files to write, without their endings; the directory is made. Of several processes,
        which all have to draw and answer, the first one writes.
      examples: of a run on other data than the emoji drawings; their true pictures are shown as the
        tokenizer keeps them.

    Returns:
      The sheet, and texts by title: what was to be drawn, and what was answered. None and nothing
      where there is nothing to show.
    """
    if "vq" not in params:
        return None, {}
    if examples is None:
        emoji = _emoji()
        sheet, titles = _emoji_sheet(params, origin.model, emoji), "names"
        captions = {split: [e.name for e in records] for split, records in emoji.items()}
        questions = _emoji_questions(emoji, origin.model.image_size)
    else:
        sheet, titles = _sheet(params, origin, examples), "captions"
        captions, questions = examples.captions, examples.questions
    texts = {f"{split} {titles}": found for split, found in captions.items()}
    answers = answer(params, origin, questions) if set(PARTS) <= set(params) else {}
    texts |= {
        f"{split} answers": [f"{said} ({q.text} {q.answer})" for q, said in found]
        for split, found in answers.items()
    }
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        if answers:
            path.with_suffix(".md").write_text(_table(answers), encoding="utf-8")
        if sheet is not None:
            sheet.save(path.with_suffix(".png"))
    return None if sheet is None else path.with_suffix(".png"), texts


def _emoji() -> dict[str, list[Emoji]]:
    """The drawings shown, by split."""
    # Every 13th, so that the sheet is not sixteen tones of one hand.
    return {
        split: [e for e in load_emoji() if e.split == split][::13][:COUNT]
        for split in ("train", "heldout")
    }


def _emoji_sheet(
    params: nnx.State, config: JanusConfig, emoji: Mapping[str, Sequence[Emoji]]
) -> Image.Image:
    pictures = [load_pictures(tuple(records), config.image_size) for records in emoji.values()]
    if "llm" in params:
        names = [e.name for records in emoji.values() for e in records]
        tokenizer = emoji_tokenizer(config.llm.vocab_size)
        drawn = draw(params, config, names, tokenizer, EMOJI_PROCESSOR.roles)
    else:
        drawn = reconstruct(params["vq"], config, np.concatenate(pictures))
    cut = len(pictures[0])
    return grid([pictures[0], drawn[:cut], pictures[1], drawn[cut:]])


def _emoji_questions(emoji: Mapping[str, Sequence[Emoji]], size: int) -> dict[str, list[Question]]:
    asked: dict[str, list[Question]] = {}
    for split, records in emoji.items():
        some = tuple(records[:ASKED])
        pictures = map(Image.fromarray, load_pictures(some, size))
        asks = [caption_examples(e)[0] for e in some]
        asked[split] = [
            Question((picture,), qa.question, qa.answer)
            for picture, qa in zip(pictures, asks, strict=True)
        ]
    return asked


def _sheet(params: nnx.State, origin: Origin, examples: Examples) -> Image.Image | None:
    if examples.codes is None:
        return None
    config = origin.model
    captions = [caption for found in examples.captions.values() for caption in found]
    drawn = draw(params, config, captions, origin.tokenizer, origin.processor.roles)
    graphdef = functional.abstract(config)[0]
    true = to_uint8(decode_codes(graphdef, params, examples.codes))
    rows, start = [], 0
    for found in examples.captions.values():
        rows += [part[start : start + len(found)] for part in (true, drawn)]
        start += len(found)
    return grid(rows, scale=max(128 // config.image_size, 1))


def _table(answers: Mapping[str, Sequence[tuple[Question, str]]]) -> str:
    """Questions and answers as Markdown."""
    lines = ["| split | question | true answer | the model's answer |", "|---|---|---|---|"]
    for split, found in answers.items():
        for question, said in found:
            cells = (split, question.text, question.answer, said)
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A text in a cell of a Markdown table: of one line, shortened."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def reconstruct(params: nnx.State, config: JanusConfig, pictures: np.ndarray) -> np.ndarray:
    """Pictures after the tokenizer: uint8 [N, S, S, 3] -> the same."""
    graphdef = nnx.graphdef(JanusModel(config, ShapesOnly()).vq)
    pixels = np.asarray(pictures, np.float32) / 127.5 - 1.0
    with on_mesh(params):
        return to_uint8(np.asarray(_reconstruct(graphdef, params, pixels)))


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(graphdef: Any, params: Any, pixels: jax.Array) -> jax.Array:
    tokenizer = nnx.merge(graphdef, params)
    # Whole on every device, as every process reads them.
    return constrain(tokenizer.decode(tokenizer.encode(pixels)), None, None, None, None)


def draw(
    params: nnx.State,
    config: JanusConfig,
    names: Sequence[str],
    tokenizer: Tokenizer,
    roles: Roles,
) -> np.ndarray:
    """Pictures of names, guided as `janus-jax generate` guides, always with the same seed.

    Args:
      params: of the whole model.
      config: its architecture.
      names: N names.
      tokenizer: its vocabulary.
      roles: its role names.

    Returns:
      uint8 [N, S, S, 3].
    """
    graphdef = _graphdef(params, config)
    codes = generate_codes(
        graphdef,
        params,
        config,
        tokenizer,
        roles,
        names,
        numbers=[0],
        cfg=GUIDANCE,
        how=Sampling(np.float32(1.0)),
        seed=SEED,
        # One by one: a batch of any other number would be another program to compile.
        at_once=1,
    )
    return to_uint8(decode_codes(graphdef, params, codes[:, 0]))


def answer(
    params: nnx.State, origin: Origin, questions: Mapping[str, Sequence[Question]]
) -> dict[str, list[tuple[Question, str]]]:
    """Questions by split, each with the model's own answer: the likeliest token at a time.

    Args:
      params: of the whole model.
      origin: its architecture, vocabulary and processor.
      questions: any number.
    """
    if not questions:
        return {}
    model = LoadedModel(
        name="preview",
        config=origin.model,
        graphdef=_graphdef(params, origin.model),
        params=params,
        tokenizer=origin.tokenizer,
        processor=origin.processor,
        fingerprint="",
    )
    answers: dict[str, list[tuple[Question, str]]] = {}
    for split, found in questions.items():
        answers[split] = []
        for number, question in enumerate(found, 1):
            request = ChatRequest(question.text, question.images, name=f"question {number}")
            # One by one: a batch takes more memory, beside the state.
            (result,) = answer_batch(
                model, [request], max_tokens=ANSWER_TOKENS, how=Sampling(np.float32(0.0))
            )
            said = f"[not answered: {result.error}]" if result.text is None else result.text
            answers[split].append((question, said))
    return answers


def _graphdef(params: nnx.State, config: JanusConfig) -> Any:
    """The static part of a model that computes in the dtype of its weights.

    Weights of another dtype than the products' would be widened beside the narrow ones.
    """
    return functional.abstract(config, dtype=jax.tree.leaves(params["llm"])[0].dtype)[0]
