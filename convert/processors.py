"""Tokenizer and preprocessing of a checkpoint, read from the files that lie beside its tensors.

Both layouts compute the background from the mean, as `int(255 * mean)`, whatever their files say,
and both fall back to CLIP's mean and standard deviation where a file that is there lacks them.
Where the whole file is missing those would be wrong for any Janus, so Janus' own 0.5 is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.jsonfile import read_object, read_text
from convert.layouts import Layout
from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.processing.image import ImageSettings
from janus_jax.processing.prompt import JANUS, JANUS_PRO, UNDERSTANDING_SYSTEM_PROMPT, Roles
from janus_jax.processing.settings import ProcessorConfig
from janus_jax.processing.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    PAD,
    USER,
    Tokenizer,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ROLES_KEY = "janus_roles"
"""Where our exports in DeepSeek's layout say the role names, in tokenizer_config.json."""

MAX_TOKENIZER_BYTES = 2**26
"""DeepSeek's tokenizer.json has 5 MB; those of the largest vocabularies about 35."""


@dataclass(frozen=True, eq=False)
class Processor:
    """What stands between people and a model.

    Attributes:
      tokenizer: vocabulary.
      settings: image settings, role names, system prompt.
    """

    tokenizer: Tokenizer
    settings: ProcessorConfig


def read_processor(
    directory: Path,
    layout: Layout,
    config: JanusConfig,
    *,
    source: str = "",
    roles: Roles | None = None,
) -> Processor:
    """Reads tokenizer and preprocessing of a checkpoint.

    DeepSeek's files do not say how a prompt names the speakers, because the reference takes that
    from the caller: plain words for Janus-1.3B, control tokens for Janus-Pro. Words are taken where
    the vocabulary has no role tokens or the source is called Janus-1.3B, unless `roles` says
    something else. Our own exports say it in a key of theirs, transformers' files in their chat
    template.

    Args:
      directory: holds the files.
      layout: of the checkpoint.
      config: the architecture, which the files must fit.
      source: what the user called the checkpoint (an id or a path).
      roles: overrides the detection.

    Raises:
      InputError: a file that is missing, malformed or does not fit the architecture, or a setting
        that this package does not have.
    """
    tokenizer = read_tokenizer(directory / "tokenizer.json", config.llm.vocab_size)
    read = _read_hf if layout.config == "hf" else _read_deepseek
    # Of an id or a path only the last part: the folders above say nothing about this model.
    name = Path(source.partition("@")[0]).name or directory.resolve().name
    settings = read(directory, config, tokenizer, name)
    if roles is not None:
        settings = ProcessorConfig(settings.image, roles, settings.system_prompt)
    for role in (USER, ASSISTANT) if settings.roles == JANUS_PRO else ():
        if tokenizer.token_id(role) is None:
            raise InputError(
                f"{str(directory / 'tokenizer.json')!r} lacks the role token {role}",
                "a vocabulary that has the roles of the prompts",
                "use the tokenizer.json of this model, or the roles of janus-1.3b",
            )
    return Processor(tokenizer, settings)


def read_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Reads a tokenizer.json whose ids an embedding of `vocab_size` rows covers.

    Raises:
      InputError: missing, too big, malformed, without Janus' control tokens, or with an id beyond
        the embedding.
    """
    text = read_text(path, max_bytes=MAX_TOKENIZER_BYTES)
    tokenizer = Tokenizer.from_json(text, f"tokenizer file {str(path)!r}")
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"{str(path)!r} has ids up to {tokenizer.vocab_size - 1}",
            f"ids below {vocab_size} (vocab_size of config.json)",
        )
    return tokenizer


def _read_deepseek(
    directory: Path, config: JanusConfig, tokenizer: Tokenizer, name: str
) -> ProcessorConfig:
    """`preprocessor_config.json` and `processor_config.json` of the reference's VLChatProcessor."""
    path = directory / "preprocessor_config.json"
    fields = read_object(path) if path.exists() else None
    image = _image(fields, "image_size", path, config)
    path = directory / "processor_config.json"
    chat = read_object(path) if path.exists() else {}
    wanted = {
        "image_tag": IMAGE_PLACEHOLDER,
        "image_start_tag": IMAGE_START,
        "image_end_tag": IMAGE_END,
        "pad_tag": PAD,
        "sft_format": "deepseek",
        "add_special_token": False,
        "num_image_tokens": config.vision.num_patches,
    }
    _check(path, chat, wanted)
    _check_specials(directory / "special_tokens_map.json")
    system = chat.get("system_prompt", UNDERSTANDING_SYSTEM_PROMPT)
    if not isinstance(system, str):
        raise InputError(f"{str(path)!r}: system_prompt is {str(system)[:80]!r}", "a string")
    return ProcessorConfig(image, _said_roles(directory) or _roles(tokenizer, name), system)


def _read_hf(
    directory: Path, config: JanusConfig, tokenizer: Tokenizer, name: str
) -> ProcessorConfig:
    """JanusProcessor of transformers; its image settings are in either of two files."""
    path = directory / "processor_config.json"
    chat = read_object(path) if path.exists() else {}
    fields = chat.get("image_processor")
    if fields is not None and not isinstance(fields, Mapping):
        raise InputError(f"{str(path)!r}: image_processor is no JSON object")
    if fields is None and (directory / "preprocessor_config.json").exists():
        path = directory / "preprocessor_config.json"
        fields = read_object(path)
    if fields is not None:
        size = fields.get("size", {"height": 384, "width": 384})
        if not isinstance(size, Mapping) or size.get("height") != size.get("width"):
            raise InputError(f"{str(path)!r}: size is {str(size)[:80]}", "equal height and width")
        _check(path, fields, {"do_resize": True, "do_rescale": True, "do_pad": True, "resample": 3})
        fields = {**fields, "image_size": size.get("height")}
    image = _image(fields, "size", path, config)
    path = directory / "processor_config.json"
    _check(path, chat, {"num_image_tokens": config.vision.num_patches})
    _check_specials(directory / "special_tokens_map.json")
    template = _chat_template(directory, chat)
    if template is None:
        roles = _roles(tokenizer, name)
    else:
        roles = JANUS_PRO if USER in template else JANUS
    has_system = chat.get("use_default_system_prompt", False)
    if not isinstance(has_system, bool):
        raise InputError(
            f"{str(path)!r}: use_default_system_prompt is {str(has_system)[:80]!r}", "true or false"
        )
    return ProcessorConfig(image, roles, UNDERSTANDING_SYSTEM_PROMPT if has_system else "")


def _said_roles(directory: Path) -> Roles | None:
    """Role names as our own exports say them."""
    path = directory / "tokenizer_config.json"
    said = read_object(path, max_bytes=2**24).get(ROLES_KEY) if path.exists() else None
    if said is None:
        return None
    names = list(said.values()) if isinstance(said, Mapping) else []
    if (
        len(names) != 2
        or {*said} != {"user", "assistant"}
        or not all(isinstance(name, str) and 0 < len(name) <= 64 for name in names)
    ):
        raise InputError(
            f"{str(path)!r}: {ROLES_KEY} is {str(said)[:80]}",
            "a name for user and one for assistant",
        )
    return Roles(said["user"], said["assistant"])


def _roles(tokenizer: Tokenizer, name: str) -> Roles:
    """Role names where no file says them."""
    plain = tokenizer.user is None or "janus-1.3b" in name.lower()
    return JANUS if plain else JANUS_PRO


def _chat_template(directory: Path, chat: Mapping[str, Any]) -> str | None:
    """The template's text, wherever a release of transformers has put it."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return read_text(path, max_bytes=2**20)
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (directory / name).exists():
            template = read_object(directory / name, max_bytes=2**24).get("chat_template")
            if isinstance(template, str):
                return template
    template = chat.get("chat_template")
    return template if isinstance(template, str) else None


def _image(
    fields: Mapping[str, Any] | None, size_key: str, path: Path, config: JanusConfig
) -> ImageSettings:
    """Image settings; `fields` is None where the checkpoint has no such file."""
    if fields is None:
        return ImageSettings(image_size=config.image_size)
    name = repr(str(path))
    size = fields.get("image_size")
    if size != config.image_size or isinstance(size, bool):
        raise InputError(
            f"{name}: {size_key} is {str(size)[:80]}",
            f"{config.image_size} (pixels of the vision tower, from config.json)",
        )
    _check(path, fields, {"do_normalize": True})
    factor = fields.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or abs(factor - 1 / 255) > 1e-9:
        raise InputError(f"{name}: rescale_factor is {str(factor)[:80]}", "1/255")
    mean, std = (
        _triple(fields, "image_mean", CLIP_MEAN, name),
        _triple(fields, "image_std", CLIP_STD, name),
    )
    min_size = fields.get("min_size", 14)
    if not isinstance(min_size, int) or isinstance(min_size, bool):
        raise InputError(f"{name}: min_size is {str(min_size)[:80]!r}", "a whole number of pixels")
    red, green, blue = (int(x * 255) for x in mean)
    try:
        return ImageSettings(config.image_size, mean, std, (red, green, blue), min_size)
    except InputError as error:
        raise InputError(f"{name}: {error.what}", error.allowed, error.fix) from error


def _triple(
    fields: Mapping[str, Any], key: str, default: tuple[float, float, float], name: str
) -> tuple[float, float, float]:
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
        raise InputError(f"{name}: {key} is {str(value)[:80]}", "three numbers from -100 to 100")
    r, g, b = value
    return float(r), float(g), float(b)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 100


def _check(path: Path, fields: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses settings that have another value than the only one this package has."""
    for key, only in wanted.items():
        value = fields.get(key)
        if value is not None and (value != only or type(value) is not type(only)):
            raise InputError(f"{str(path)!r}: {key} is {str(value)[:80]!r}", repr(only))


def _check_specials(path: Path) -> None:
    """Refuses sentence markers other than Janus': prompts would begin and end with others."""
    if not path.exists():
        return
    fields = read_object(path)
    for key, only in (("bos_token", BOS), ("eos_token", EOS)):
        value = fields.get(key)
        value = value.get("content") if isinstance(value, Mapping) else value
        if value is not None and value != only:
            raise InputError(f"{str(path)!r}: {key} is {str(value)[:80]!r}", only)
