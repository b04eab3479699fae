"""What a model's preprocessor.json holds: how its images and prompts are prepared."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from janus_jax.errors import InputError
from janus_jax.processing.image import ImageSettings
from janus_jax.processing.prompt import JANUS, JANUS_PRO, UNDERSTANDING_SYSTEM_PROMPT, Roles

_FORMAT = "janus-jax-preprocessor"
_VERSION = 1


@dataclass(frozen=True)
class ProcessorConfig:
    """Image settings, role names and system prompt of a model.

    Attributes:
        image: The understanding path; generation uses its `image_size` only.
        roles: Speaker names of the chat template.
        system_prompt: For understanding; generation has none.
    """

    image: ImageSettings
    roles: Roles
    system_prompt: str

    def to_json(self) -> str:
        """The content of preprocessor.json."""
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "preprocessor.json") -> "ProcessorConfig":
        """Reads the content of preprocessor.json.

        Args:
            text: The content.
            name: What error messages call it.

        Returns:
            The configuration.

        Raises:
            InputError: Not JSON, not this format or version, or a field is missing, unknown or out
                of range.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name} is not valid JSON ({error})") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise InputError(f"{name} is not a Janus-JAX preprocessor file", f"format {_FORMAT!r}")
        if content.get("version") != _VERSION:
            raise InputError(
                f"{name} has version {content.get('version')!r}",
                f"version {_VERSION}",
                "install the janus-jax that wrote it, or convert the model again",
            )
        del content["format"], content["version"]
        content = _fields(cls, content, name)
        image = _fields(ImageSettings, content["image"], f"{name}: image")
        roles = _fields(Roles, content["roles"], f"{name}: roles")
        for field, value in {**roles, "system_prompt": content["system_prompt"]}.items():
            if not isinstance(value, str):
                raise InputError(f"{name}: {field} is {value!r}", "a string")
        if not all(roles.values()):
            raise InputError(f"{name}: a role has no name", "two strings that are not empty")
        return cls(_image_settings(image, name), Roles(**roles), content["system_prompt"])

    def save(self, path: str | Path) -> None:
        """Writes preprocessor.json.

        Args:
            path: The file.
        """
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "ProcessorConfig":
        """Reads preprocessor.json.

        Args:
            path: The file.

        Returns:
            The configuration.

        Raises:
            InputError: The file is missing, unreadable or malformed.
        """
        name = f"preprocessor file {str(path)!r}"
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(f"{name} does not exist", fix="check the path") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{name} cannot be read ({error})") from error
        return cls.from_json(text, name)


def _fields(cls: type, content: Any, name: str) -> dict[str, Any]:
    """A copy of a JSON object that has exactly the fields of the dataclass `cls`."""
    if not isinstance(content, dict):
        raise InputError(f"{name} is not a JSON object")
    expected = [field.name for field in fields(cls)]
    unknown = sorted(set(content) - set(expected))
    missing = [field for field in expected if field not in content]
    if unknown or missing:
        problem = f"the unknown field {unknown[0]!r}" if unknown else f"no field {missing[0]!r}"
        raise InputError(f"{name} has {problem}", ", ".join(expected))
    return dict(content)


def _image_settings(values: dict[str, Any], name: str) -> ImageSettings:
    """Image settings from JSON values, types checked here and ranges by the class itself."""
    for field in ("image_size", "min_size"):
        if not _is(int, values[field]):
            raise InputError(f"{name}: {field} is {values[field]!r}", "a whole number of pixels")
    kinds: dict[str, tuple[type, ...]] = {"mean": (int, float), "std": (int, float)}
    for field, kind in {**kinds, "background": (int,)}.items():
        value = values[field]
        if not isinstance(value, list) or len(value) != 3 or not all(_is(kind, v) for v in value):
            raise InputError(f"{name}: {field} is {value!r}", "three numbers, one a channel")
        values[field] = tuple(value)
    if values["resize"] not in ("reference", "hf"):
        raise InputError(f"{name}: resize is {values['resize']!r}", "'reference' or 'hf'")
    try:
        return ImageSettings(**values)
    except InputError as error:
        raise InputError(f"{name}: {error.what}", error.allowed, error.fix) from error


def _is(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # bool is an int in Python


JANUS_PROCESSOR = ProcessorConfig(ImageSettings(), JANUS, UNDERSTANDING_SYSTEM_PROMPT)
"""Janus-1.3B."""
JANUS_PRO_PROCESSOR = ProcessorConfig(ImageSettings(), JANUS_PRO, UNDERSTANDING_SYSTEM_PROMPT)
"""Janus-Pro-1B and 7B."""
EMOJI_PROCESSOR = ProcessorConfig(ImageSettings(image_size=48), JANUS_PRO, "")
"""The shipped emoji model, trained without a system prompt."""
