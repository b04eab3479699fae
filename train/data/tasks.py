"""The four tasks made from the emoji data set, as plain text in English and Chinese.

1. generation: a name -> the picture (`generation_prompts`).
2. caption: the picture and a fixed question -> its name (`caption_examples`).
3. questions: the picture and a short question -> a short answer (`question_examples`).
4. text only: a name -> its translation, and the same short questions about a name where the
   picture would stand (`text_examples`).

Everything is a pure function of the frozen list. The functions answer for any record, because
evaluation asks them about held-out ones; whoever trains must pass records of the training split
only, in the text-only task too: a held-out name in a text would give away the combination.
`tokenizer_corpus` follows that rule.

Yes-or-no questions are balanced within each split: as many pictures answer "yes" to "Is it food?"
as "no", the latter chosen by a hash of the name.
"""

import functools
from collections import defaultdict
from dataclasses import dataclass
from typing import get_args

import numpy as np

from train.data.emoji import Emoji, Kind, Split, load_emoji
from train.data.naming import COLOURS_ZH, TONES_ZH
from train.data.split import draw


@dataclass(frozen=True)
class QA:
    """One question and its answer."""

    question: str
    answer: str


CAPTION_QUESTIONS = ("What is this?", "这是什么？")
"""The fixed caption question, English and Chinese."""

# Answers of "What kind?", and what "Is it ...?" asks for.
_KINDS: dict[Kind, tuple[str, str, str]] = {
    "person-role": ("person", "人", "a person"),
    "body": ("body part", "身体", "a body part"),
    "face": ("face", "表情", "a face"),
    "animal": ("animal", "动物", "an animal"),
    "plant": ("plant", "植物", "a plant"),
    "food": ("food", "食物", "food"),
    "vehicle": ("vehicle", "车船", "a vehicle"),
    "building": ("building", "建筑", "a building"),
    "clothing": ("clothing", "衣物", "clothing"),
    "flag": ("flag", "旗", "a flag"),
    "shape": ("shape", "形状", "a shape"),
    "clock": ("clock", "钟", "a clock"),
    "other": ("thing", "东西", ""),
}
_GENDERS_ZH = {
    "woman": "女人",
    "man": "男人",
    "person": "成人",
    "women": "两个女人",
    "men": "两个男人",
    "people": "两个成人",
    "woman and man": "女人和男人",
}
_CHILDREN = {"woman": ("girl", "女孩"), "man": ("boy", "男孩"), "person": ("child", "儿童")}
_FORMS_ZH = {
    "heart": "心形",
    "circle": "圆形",
    "square": "方形",
    "diamond": "菱形",
    "triangle": "三角形",
}


def generation_prompts(e: Emoji) -> tuple[str, str]:
    """The texts that ask for this picture: its English and its Chinese name."""
    return e.name, e.name_zh


def caption_examples(e: Emoji) -> tuple[QA, QA]:
    """The caption task in English and in Chinese.

    Returns:
        The fixed question and the picture's name. Of several names of one picture the shortest is
        the answer, for all of them, because no one could tell which was meant.
    """
    named = _captioned()[e.picture]
    return QA(CAPTION_QUESTIONS[0], named.name), QA(CAPTION_QUESTIONS[1], named.name_zh)


def question_examples(e: Emoji) -> tuple[QA, ...]:
    """Short questions about the picture, each in English and then in Chinese.

    Args:
        e: A record.

    Returns:
        At least one pair (its kind), then those that apply: skin tone, who, colour, shape, time,
        whose flag, woman or not, and the yes-or-no questions about kinds that fall to this record.
    """
    english = [question for question, _ in _questions(e)]
    chinese = [question for _, question in _questions(e)]
    return tuple(qa for pair in zip(english, chinese, strict=True) for qa in pair)


def text_examples(e: Emoji) -> tuple[QA, ...]:
    """Questions without a picture: translation both ways, then `question_examples` of the name."""
    texts = [
        QA(f"{e.name} in Chinese?", e.name_zh),
        QA(f"{e.name_zh}，英文？", e.name),
    ]
    for english, chinese in _questions(e):
        texts.append(QA(f"{e.name}. {english.question}", english.answer))
        texts.append(QA(f"{e.name_zh}。{chinese.question}", chinese.answer))
    return tuple(texts)


def sample_generation(e: Emoji, rng: np.random.Generator) -> str:
    """Picks one of `generation_prompts`, each language as likely."""
    return generation_prompts(e)[rng.integers(2)]


def sample_caption(e: Emoji, rng: np.random.Generator) -> QA:
    """Picks one of `caption_examples`, each language as likely."""
    return caption_examples(e)[rng.integers(2)]


def sample_question(e: Emoji, rng: np.random.Generator) -> QA:
    """Picks one of `question_examples`, all as likely."""
    examples = question_examples(e)
    return examples[rng.integers(len(examples))]


def sample_text(e: Emoji, rng: np.random.Generator) -> QA:
    """Picks one of `text_examples`, all as likely."""
    examples = text_examples(e)
    return examples[rng.integers(len(examples))]


def tokenizer_corpus() -> list[str]:
    """All texts of the four tasks over the training split, in record order, with repetitions."""
    texts: list[str] = []
    for e in load_emoji():
        if e.split != "train":
            continue
        texts.extend(generation_prompts(e))
        for qa in (*caption_examples(e), *question_examples(e), *text_examples(e)):
            texts.extend((qa.question, qa.answer))
    return texts


@functools.cache
def _questions(e: Emoji) -> tuple[tuple[QA, QA], ...]:
    """All questions about one record as (English, Chinese)."""
    noun, noun_zh, _ = _KINDS[e.kind]
    pairs = [(QA("What kind?", noun), QA("什么类？", noun_zh))]
    if e.tone is not None:
        tones_zh = "、".join(TONES_ZH[tone] for tone in e.tone.split(", "))
        pairs.append((QA("What skin tone?", e.tone), QA("什么肤色？", tones_zh)))
    who = _who(e)
    if who is not None:
        pairs.append((QA("Who is it?", who[0]), QA("是谁？", who[1])))
    if e.colour is not None:
        pairs.append((QA("What colour?", e.colour), QA("什么颜色？", COLOURS_ZH[e.colour])))
    if e.shape is not None:
        form = next(form for form in _FORMS_ZH if form in e.shape.split())
        pairs.append((QA("What shape?", form), QA("什么形状？", _FORMS_ZH[form])))
    if e.kind == "clock":
        pairs.append((QA("What time is it?", e.name), QA("几点？", e.name_zh)))
    if e.name.startswith("flag: "):
        place, place_zh = e.name.removeprefix("flag: "), e.name_zh.removeprefix("旗：")
        pairs.append((QA("Whose flag?", place), QA("谁的旗？", place_zh)))
    if who is not None and e.gender in ("woman", "man") and e.role != "child":
        pairs.append(_yes_no("a woman", "女人", e.gender == "woman"))
    for kind, is_it in _kind_questions()[e.codepoints]:
        pairs.append(_yes_no(_KINDS[kind][2], _KINDS[kind][1], is_it))
    return tuple(pairs)


def _yes_no(noun: str, noun_zh: str, is_it: bool) -> tuple[QA, QA]:
    return (
        QA(f"Is it {noun}?", "yes" if is_it else "no"),
        QA(f"是{noun_zh}吗？", "是" if is_it else "不是"),
    )


def _who(e: Emoji) -> tuple[str, str] | None:
    if e.gender is None or e.role in ("baby", "baby angel"):
        return None
    if e.role == "child":
        return _CHILDREN[e.gender]
    return e.gender, _GENDERS_ZH[e.gender]


@functools.cache
def _captioned() -> dict[str, Emoji]:
    """The record whose names caption each picture: the shortest English name."""
    groups: dict[str, list[Emoji]] = defaultdict(list)
    for e in load_emoji():
        groups[e.picture].append(e)
    return {p: min(group, key=lambda e: (len(e.name), e.name)) for p, group in groups.items()}


@functools.cache
def _kind_questions() -> dict[str, tuple[tuple[Kind, bool], ...]]:
    """Which "Is it ...?" questions fall to each record, by code points.

    For every kind and within every split, all records of the kind answer yes and as many others,
    those with the smallest hash, answer no; where one side is larger, its smallest hashes stay.
    """
    falls: dict[str, list[tuple[Kind, bool]]] = {e.codepoints: [] for e in load_emoji()}
    for split in get_args(Split):
        records = [e for e in load_emoji() if e.split == split]
        for kind, (_, _, noun) in _KINDS.items():
            if not noun:
                continue
            ordered = sorted(records, key=lambda e: draw(f"is it {noun}", e.name))
            yes = [e for e in ordered if e.kind == kind]
            no = [e for e in ordered if e.kind != kind]
            for e in yes[: len(no)]:
                falls[e.codepoints].append((kind, True))
            for e in no[: len(yes)]:
                falls[e.codepoints].append((kind, False))
    return {codepoints: tuple(questions) for codepoints, questions in falls.items()}
