"""preprocessor.json: round trip and refusals."""

import json
from dataclasses import replace

import pytest

from janus_jax.errors import InputError
from janus_jax.processing import (
    EMOJI_PROCESSOR,
    JANUS,
    JANUS_PRO,
    JANUS_PRO_PROCESSOR,
    JANUS_PROCESSOR,
    UNDERSTANDING_SYSTEM_PROMPT,
    ImageSettings,
    ProcessorConfig,
    Roles,
)

OTHER = ProcessorConfig(
    ImageSettings(96, (0.1, 0.2, 0.3), (1, 2.5, 3), (0, 1, 255), 7, "hf"),
    Roles("人", "机"),
    "a\n“b”",
)


@pytest.mark.parametrize(
    "config", [JANUS_PROCESSOR, JANUS_PRO_PROCESSOR, EMOJI_PROCESSOR, OTHER], ids=range(4)
)
def test_round_trip(config, tmp_path):
    assert ProcessorConfig.from_json(config.to_json()) == config
    config.save(tmp_path / "preprocessor.json")
    assert ProcessorConfig.load(tmp_path / "preprocessor.json") == config


def test_named_settings():
    image = JANUS_PROCESSOR.image
    assert (image.image_size, image.min_size, image.resize) == (384, 14, "reference")
    assert image.mean == image.std == (0.5, 0.5, 0.5) and image.background == (127, 127, 127)
    assert (JANUS_PROCESSOR.roles, JANUS_PRO_PROCESSOR.roles) == (JANUS, JANUS_PRO)
    assert JANUS_PRO_PROCESSOR.system_prompt == UNDERSTANDING_SYSTEM_PROMPT
    assert (
        replace(JANUS_PRO_PROCESSOR, image=replace(image, image_size=48), system_prompt="")
        == EMOJI_PROCESSOR
    )


def changed(path, value):
    """The default file with one entry replaced, or removed where value is `...`."""
    content = json.loads(JANUS_PROCESSOR.to_json())
    *parents, last = path.split("/")
    place = content
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[" * 100000, "is not valid JSON"),
        ("[]", "is not a Janus-JAX preprocessor file"),
        ('{"image_mean": [0.5, 0.5, 0.5]}', "is not a Janus-JAX preprocessor file"),
        (changed("version", 2), "has version 2"),
        (changed("image", ...), "has no field 'image'"),
        (changed("image", [1]), "image is not a JSON object"),
        (changed("image/std", ...), "image has no field 'std'"),
        (changed("image/sise", 3), "image has the unknown field 'sise'"),
        (changed("image/image_size", "384"), "image_size is '384'"),
        (changed("image/image_size", 384.0), "image_size is 384.0"),
        (changed("image/image_size", True), "image_size is True"),
        (changed("image/image_size", 0), "image_size is 0"),
        (changed("image/min_size", 385), "min_size is 385"),
        (changed("image/mean", [0.5, 0.5]), r"mean is \[0.5, 0.5\]"),
        (changed("image/background", [127.0, 127, 127]), r"background is \[127.0"),
        (changed("image/mean", 0.5), "mean is 0.5"),
        (changed("image/std", [0.5, 0.5, 0]), r"std is \(0.5, 0.5, 0\)"),
        (changed("image/mean", [0.5, 0.5, float("nan")]), "mean is"),
        (changed("image/resize", "bilinear"), "resize is 'bilinear'"),
        (changed("image/resize", []), r"resize is \[\]"),
        (changed("roles/user", ""), "a role has no name"),
        (changed("roles/assistant", None), "assistant is None"),
        (changed("system_prompt", 3), "system_prompt is 3"),
        (changed("extra", 1), "has the unknown field 'extra'"),
    ],
)
def test_malformed_files_are_refused(text, message, tmp_path):
    path = tmp_path / "preprocessor.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        ProcessorConfig.load(path)
    assert "preprocessor.json" in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        ProcessorConfig.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        ProcessorConfig.load(tmp_path)
    (tmp_path / "latin.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        ProcessorConfig.load(tmp_path / "latin.json")
