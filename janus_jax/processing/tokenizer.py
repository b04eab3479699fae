"""Text to ids and back, with a wall between what people type and what controls the model.

Control tokens (role tags, image markers, begin and end of sentence) are looked up by their string,
because their ids differ between checkpoints, and `Tokenizer.encode` can never produce one: the
prompt builder is the only place that writes them.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, SupportsInt

import tokenizers
from tokenizers import AddedToken, Encoding, decoders, models, pre_tokenizers, trainers

from janus_jax.errors import InputError

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
IMAGE_PLACEHOLDER = "<image_placeholder>"
IMAGE_START = "<begin_of_image>"
IMAGE_END = "<end_of_image>"
USER = "<|User|>"
ASSISTANT = "<|Assistant|>"

_REQUIRED = (BOS, EOS, PAD, IMAGE_PLACEHOLDER, IMAGE_START, IMAGE_END)
CONTROL_TOKENS = (*_REQUIRED, USER, ASSISTANT)
"""The control strings of Janus-Pro, in the order `train_bpe` numbers them."""


class Tokenizer:
    """A `tokenizer.json` with Janus' control tokens.

    Attributes:
        bos, eos, pad: Ids of the sentence markers and the padding token.
        image_start, image_end, image_placeholder: Ids of the image markers.
        user, assistant: Ids of Janus-Pro's role tags; None where the vocabulary has none.
        vocab_size: Rows an embedding needs: one more than the largest id, added tokens included.
        protected: Every id that `encode` never returns: all added tokens but plain letters, and all
            control tokens.
    """

    def __init__(self, raw: tokenizers.Tokenizer, name: str = "the tokenizer"):
        """Wraps a tokenizer of the `tokenizers` package.

        Args:
            raw: The tokenizer; not changed.
            name: What error messages call it.

        Raises:
            InputError: A control token is missing.
        """
        self._raw = raw
        missing = [token for token in _REQUIRED if raw.token_to_id(token) is None]
        if missing:
            raise InputError(
                f"{name} lacks the control tokens {', '.join(missing)}",
                fix="use the tokenizer.json of a Janus model",
            )
        ids: dict[str, Any] = {token: raw.token_to_id(token) for token in CONTROL_TOKENS}
        self.bos: int = ids[BOS]
        self.eos: int = ids[EOS]
        self.pad: int = ids[PAD]
        self.image_placeholder: int = ids[IMAGE_PLACEHOLDER]
        self.image_start: int = ids[IMAGE_START]
        self.image_end: int = ids[IMAGE_END]
        self.user: int | None = ids[USER]
        self.assistant: int | None = ids[ASSISTANT]
        self.vocab_size: int = 1 + max(raw.get_vocab(with_added_tokens=True).values())

        added = raw.get_added_tokens_decoder()
        control = {i for i in ids.values() if i is not None}
        letters = {i for i, token in added.items() if _is_letter(token.content, token.special)}
        self.protected = (frozenset(added) - letters) | control
        self._skipped = frozenset(i for i, token in added.items() if token.special) | control
        # A byte-level decoder reads the letters of an added token as bytes; DeepSeek's vocabulary
        # has added letters ("ø"), which must come back as themselves.
        self._literal = {
            i: token.content
            for i, token in added.items()
            if i not in self._skipped and raw.decode([i]) != token.content
        }
        self._encoder = _protected_copy(raw)

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Loads a `tokenizer.json`.

        Args:
            path: The file.

        Returns:
            The tokenizer.

        Raises:
            InputError: The file is missing, unreadable, not a tokenizer, or lacks a control token.
        """
        name = f"tokenizer file {str(path)!r}"
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(f"{name} does not exist", fix="check the path") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{name} cannot be read ({error})") from error
        return cls.from_json(text, name)

    @classmethod
    def from_json(cls, text: str, name: str = "the tokenizer") -> "Tokenizer":
        """Parses the content of a `tokenizer.json`.

        Args:
            text: The content.
            name: What error messages call it.

        Returns:
            The tokenizer.

        Raises:
            InputError: Not a tokenizer, or one that lacks a control token.
        """
        raw = parse_tokenizer(text, name)
        with _refusing(f"{name} is not a usable tokenizer.json"):
            return cls(raw, name)

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer as `tokenizer.json`, unprotected, for any library to load.

        Args:
            path: The file.
        """
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        return self._raw.to_str(pretty=True)

    def token_id(self, token: str) -> int | None:
        """The id of an added or control token given by its exact string, None for other strings."""
        found = self._raw.token_to_id(token)
        return found if found in self.protected else None

    def encode(self, text: str) -> list[int]:
        """Encodes plain text; typed control strings stay plain text.

        Args:
            text: Any Unicode text.

        Returns:
            Ids, none of them in `protected`; no BOS or EOS is added.

        Raises:
            InputError: The text is not valid Unicode (lone surrogates), is made of a single
                character that the vocabulary has only as a control token, or defeats the rules of
                its file.
        """
        try:
            text.encode()  # the package has no clear error for lone surrogates
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has a character that is not valid Unicode at position {error.start}",
                fix="pass UTF-8 text",
            ) from error
        with _refusing("the tokenizer cannot encode this text"):
            encoding = self._encoder.encode(text, add_special_tokens=False)
        ids = encoding.ids
        if self.protected.isdisjoint(ids):
            return ids
        return self._encode_around(text, encoding)

    def _encode_around(self, text: str, encoding: Encoding) -> list[int]:
        """Cuts the text inside the first control token, for models that hold it as a word too.

        Byte-pair models never get here; a unigram model can choose a whole control string.
        """
        at = next(i for i, token in enumerate(encoding.ids) if token in self.protected)
        start, end = encoding.offsets[at]
        if end - start < 2:
            raise InputError(
                f"the text has the character {text[start:end]!r}, which this tokenizer.json has "
                "only as a control token"
            )
        return self.encode(text[: start + 1]) + self.encode(text[start + 1 :])

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Text of the ids; control tokens and unknown ids are skipped.

        Args:
            ids: Token ids (ints, NumPy or JAX scalars).

        Returns:
            The text, with U+FFFD where the bytes are not UTF-8.
        """
        text, run = [], []
        for token in map(int, ids):
            if token in self._literal:
                text += [self._raw.decode(run), self._literal[token]]
                run = []
            elif token >= 0 and token not in self._skipped:
                run.append(token)
        return "".join(text) + self._raw.decode(run)


class StreamDecoder:
    """Decodes ids one at a time without ever showing half a character.

    The pieces of `push` and the rest of `finish` join to what `decode` gives for all the ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Starts an empty stream."""
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # the last ids already shown: context for the new ones
        self._held: list[int] = []

    def push(self, token: SupportsInt) -> str:
        """Adds one id; returns the text that is now certain, often empty.

        Args:
            token: The id.

        Returns:
            The new text.
        """
        self._held.append(int(token))
        piece = self._new_text()
        if not piece or piece.endswith("\ufffd"):
            return ""  # perhaps the first bytes of a character
        self._shown, self._held = self._held, []
        return piece

    def finish(self) -> str:
        """What was held back; the stream is empty afterwards."""
        piece = self._new_text()
        self._shown, self._held = [], []
        return piece

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._held)[len(before) :]


def train_bpe(texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
    """Trains a byte-level BPE tokenizer that carries Janus-Pro's control tokens.

    Every text round-trips exactly: all 256 bytes are in the alphabet and nothing is normalised. The
    result depends only on the texts. Control tokens get the ids 0 to 7, in the order of
    `CONTROL_TOKENS`.

    Args:
        texts: The training text.
        vocab_size: Upper bound on the number of entries; a small text gives fewer.

    Returns:
        The tokenizer.

    Raises:
        InputError: `vocab_size` has no room for the bytes and the control tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(CONTROL_TOKENS)
    if vocab_size < smallest:
        raise InputError(f"vocab_size is {vocab_size}", f"at least {smallest}")
    raw: Any = tokenizers.Tokenizer(models.BPE())  # its attributes are untyped properties
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return Tokenizer(raw)


def parse_tokenizer(text: str, name: str) -> tokenizers.Tokenizer:
    """Parses a tokenizer.json that nobody vouches for, whatever its vocabulary.

    Args:
        text: The content.
        name: What error messages call it.

    Raises:
        InputError: It is not a tokenizer.
    """
    what = f"{name} is not a valid tokenizer.json"
    with _refusing(what):
        model = json.loads(text)["model"]
        # The package cuts this prefix off the second half of every merge without looking whether
        # it is there, and reads beyond the word's end. No Llama vocabulary has one.
        if model.get("continuing_subword_prefix") and "merges" in model:
            raise InputError(f"{what}: model.continuing_subword_prefix is set", "null")
        return tokenizers.Tokenizer.from_str(text)


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turns what the `tokenizers` package raises about a bad file into an `InputError`.

    It raises bare `Exception` for most things, and for some a `PanicException`, which is no
    `Exception` at all.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InputError(f"{what} ({str(error)[:200]})") from error


def _protected_copy(raw: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy in which added tokens, but for letters, are special and those are read as text."""
    content = json.loads(raw.to_str())
    for token in content.get("added_tokens", ()):
        token["special"] = not _is_letter(token["content"], token["special"])
    # A file may ask for a fixed length; a segment of a prompt must be neither cut nor filled.
    content["truncation"] = content["padding"] = None
    copy = tokenizers.Tokenizer.from_str(json.dumps(content))
    copy.encode_special_tokens = True
    return copy


def _is_letter(content: str, special: bool) -> bool:
    """Whether an added token is a plain letter that ordinary text holds.

    DeepSeek's vocabulary adds twelve of them ("ö", "ü", "ø", ...), so the weights know "schön" by
    the added token. A single character that is not flagged special controls nothing.
    """
    return len(content) == 1 and not special
