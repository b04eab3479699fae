"""Small pictures and tokenizers, made here, that stand for the ones in the wild."""

import io
import json
from functools import cache

import numpy as np
import tokenizers
from PIL import Image
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from janus_jax.processing import CONTROL_TOKENS, Tokenizer, train_bpe

TEXTS = [
    "a red apple",
    "a green apple",
    "What is in this image?",
    "You are a helpful language and vision assistant.",
    "User: hello Assistant: hi there",
    "一个红苹果",
    "画一个绿色的苹果。",
    "<begin_of_image> is a string, <|User|> too",
] * 3


@cache
def emoji_like() -> Tokenizer:
    """Made by `train_bpe`: control tokens first, all flagged special."""
    return train_bpe(TEXTS, 340)


@cache
def deepseek_like() -> Tokenizer:
    """As the published files: control tokens last, some not flagged special, added letters."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXTS, trainer)
    raw.add_special_tokens([AddedToken(t, normalized=False) for t in CONTROL_TOKENS[:2]])
    raw.add_tokens([AddedToken(t) for t in ("ø", "ü")])
    raw.add_tokens([AddedToken(t) for t in CONTROL_TOKENS[2:]])
    raw.add_tokens([AddedToken(t, single_word=True) for t in ("<|ref|>", "apple pie")])
    return Tokenizer(raw)


@cache
def unigram() -> Tokenizer:
    """Holds the control strings as words of the model too, which re-flagging cannot protect."""
    letters = sorted({c for text in TEXTS for c in text} | {c for t in CONTROL_TOKENS for c in t})
    pieces = [("<unk>", 0.0), *((c, -5.0) for c in letters), *((t, -1.0) for t in CONTROL_TOKENS)]
    raw = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens(list(CONTROL_TOKENS))
    return Tokenizer(raw)


def added(tokenizer: Tokenizer) -> dict[str, int]:
    """Every added token of a tokenizer and its id, read from its file."""
    return {t["content"]: t["id"] for t in json.loads(tokenizer.to_json())["added_tokens"]}


def whole_string(tokenizer: Tokenizer, text: str) -> list[int]:
    """What the unprotected tokenizer makes of a rendered prompt, control strings included."""
    raw = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    return raw.encode(text, add_special_tokens=False).ids


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
