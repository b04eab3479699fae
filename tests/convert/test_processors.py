"""Tokenizer and preprocessor files: into the peers' loaders as they are, and back."""

import dataclasses
import json
from pathlib import Path

import jinja2
import numpy as np
import pytest
import transformers

from convert.layouts import DEEPSEEK_LAYOUT, HF_LAYOUT
from convert.processor_files import chat_template, write_processor_files
from convert.processors import Processor, read_processor
from janus_jax.config import DEBUG
from janus_jax.errors import InputError
from janus_jax.processing import (
    EMOJI_PROCESSOR,
    JANUS,
    JANUS_PRO,
    JANUS_PRO_PROCESSOR,
    JANUS_PROCESSOR,
    ImageSettings,
    ProcessorConfig,
    Roles,
    Turn,
    chat_prompt,
    generation_prompt,
    understanding_pixels,
)
from tests.processing import fakes

IMAGE = ImageSettings(image_size=DEBUG.image_size)
SETTINGS = {
    "janus": dataclasses.replace(JANUS_PROCESSOR, image=IMAGE),
    "janus-pro": dataclasses.replace(JANUS_PRO_PROCESSOR, image=IMAGE),
    "emoji": dataclasses.replace(EMOJI_PROCESSOR, image=IMAGE),
}
LAYOUTS = {"hf": HF_LAYOUT, "deepseek": DEEPSEEK_LAYOUT}


def written(path: Path, layout: str, settings: ProcessorConfig = SETTINGS["janus-pro"]) -> Path:
    write_processor_files(path, LAYOUTS[layout], DEBUG, fakes.deepseek_like(), settings)
    return path


def read(path: Path, layout: str, **options) -> Processor:
    return read_processor(path, LAYOUTS[layout], DEBUG, **options)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_again(layout, name, tmp_path):
    found = read(written(tmp_path, layout, SETTINGS[name]), layout)
    assert found.settings == SETTINGS[name]
    text = "a red apple for <|User|>, schön"
    assert found.tokenizer.encode(text) == fakes.deepseek_like().encode(text)
    again = tmp_path / "again"
    again.mkdir()
    write_processor_files(again, LAYOUTS[layout], DEBUG, found.tokenizer, found.settings)
    for file in sorted(path for path in tmp_path.iterdir() if path.is_file()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.fixture(scope="module", params=["janus", "janus-pro", "emoji"])
def theirs(request, tmp_path_factory):
    """transformers' processor as it loads our files, and what they were written from."""
    settings = SETTINGS[request.param]
    path = written(tmp_path_factory.mktemp("hf"), "hf", settings)
    return transformers.AutoProcessor.from_pretrained(path), settings


def test_transformers_prepares_the_same_conversation(theirs):
    processor, settings = theirs
    assert type(processor).__name__ == "JanusProcessor"
    tokenizer, picture = fakes.deepseek_like(), fakes.picture(16, 16)
    conversations = [
        [Turn("user", " What is in this image? ", 1)],
        [Turn("user", "hi"), Turn("assistant", "a red apple"), Turn("user", "schön 一个", 2)],
        [Turn("user", "", 1)],
    ]
    for turns in conversations:
        messages = [
            {
                "role": turn.role,
                "content": [
                    *[{"type": "image"}] * turn.num_images,
                    *([{"type": "text", "text": turn.text}] if turn.text else []),
                ],
            }
            for turn in turns
        ]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [picture] * sum(turn.num_images for turn in turns)
        found = processor(text=text, images=images or None, return_tensors="np")
        wanted = chat_prompt(
            tokenizer,
            turns,
            roles=settings.roles,
            system=settings.system_prompt,
            num_image_tokens=DEBUG.vision.num_patches,
        )
        assert found["input_ids"][0].tolist() == wanted.ids.tolist()


def test_transformers_prepares_the_same_drawing_prompt(theirs):
    processor, settings = theirs
    messages = [{"role": "user", "content": "a red apple"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    found = processor(text=text, generation_mode="image", return_tensors="np")["input_ids"][0]
    wanted = generation_prompt(fakes.deepseek_like(), "a red apple", roles=settings.roles)
    assert found.tolist() == wanted.tolist()


def test_transformers_prepares_the_same_pixels(theirs):
    processor, settings = theirs
    wanted = understanding_pixels(fakes.picture(16, 16), settings.image)
    found = processor.image_processor(fakes.picture(16, 16), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), wanted, atol=1e-6)
    assert processor.image_processor.background_color == (127, 127, 127)


def test_transformers_tokenizer_alone(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(written(tmp_path, "hf"))
    ours = fakes.deepseek_like()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (ours.bos, ours.eos)
    assert (tokenizer.pad_token_id, tokenizer.boi_token_id) == (ours.pad, ours.image_start)
    assert tokenizer("a red apple").input_ids == [ours.bos, *ours.encode("a red apple")]


def test_a_closed_conversation_and_unknown_roles(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(written(tmp_path, "hf"))
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " yes "}]
    template = chat_template(JANUS)
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert text == "User: hi\n\nAssistant: yes"
    tool = [{"role": "tool", "content": ""}]
    with pytest.raises(jinja2.TemplateError, match="roles are user and assistant"):
        tokenizer.apply_chat_template(tool, chat_template=template, tokenize=False)


def test_deepseeks_files_have_the_names_the_reference_reads(tmp_path):
    path = written(tmp_path, "deepseek")
    image = json.loads((path / "preprocessor_config.json").read_text())
    assert image == {
        "image_processor_type": "VLMImageProcessor",
        "processor_class": "VLChatProcessor",
        "image_size": 16,
        "background_color": [127, 127, 127],
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "min_size": 14,
        "rescale_factor": 1 / 255,
    }
    chat = json.loads((path / "processor_config.json").read_text())
    assert chat == {
        "processor_class": "VLChatProcessor",
        "image_tag": "<image_placeholder>",
        "num_image_tokens": 16,
        "add_special_token": False,
        "sft_format": "deepseek",
        "mask_prompt": True,
        "ignore_id": -100,
    }
    assert json.loads((path / "special_tokens_map.json").read_text()) == {
        "additional_special_tokens": ["<image_placeholder>", "<|User|>", "<|Assistant|>"],
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": "<｜end▁of▁sentence｜>",
        "pad_token": "<｜▁pad▁｜>",
    }


def test_transformers_loads_deepseeks_tokenizer_files_too(tmp_path):
    """By its generic class, since release 5 has none for them: BOS in front all the same."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(written(tmp_path, "deepseek"))
    ours = fakes.deepseek_like()
    assert tokenizer("a red apple").input_ids == [ours.bos, *ours.encode("a red apple")]
    assert tokenizer.pad_token_id == ours.pad and "janus_roles" in tokenizer.init_kwargs


# --- traps


def without_roles(path: Path) -> Path:
    """A directory as DeepSeek's own, which do not say the roles."""
    file = path / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    assert fields.pop("janus_roles")
    file.write_text(json.dumps(fields))
    return path


def test_janus_1_3b_speaks_in_plain_words(tmp_path):
    path = without_roles(written(tmp_path, "deepseek"))
    assert read(path, "deepseek").settings.roles == JANUS_PRO
    assert read(path, "deepseek", source="deepseek-ai/Janus-1.3B@main").settings.roles == JANUS
    assert read(path, "deepseek", source="deepseek-ai/Janus-Pro-7B").settings.roles == JANUS_PRO
    assert read(path, "deepseek", source="Janus-1.3B/../Janus-Pro-1B").settings.roles == JANUS_PRO
    assert read(path, "deepseek", roles=JANUS).settings.roles == JANUS
    named = tmp_path / "Janus-1.3B"
    named.mkdir()
    assert read(without_roles(written(named, "deepseek")), "deepseek").settings.roles == JANUS


def test_a_missing_file_means_janus_values_and_a_missing_key_the_peers_default(tmp_path):
    for layout in LAYOUTS:
        path = tmp_path / layout
        path.mkdir()
        file = written(path, layout) / "preprocessor_config.json"
        fields = json.loads(file.read_text())
        del fields["image_mean"], fields["image_std"], fields["background_color"]
        file.write_text(json.dumps(fields))
        image = read(path, layout).settings.image
        assert image.mean == (0.48145466, 0.4578275, 0.40821073)
        assert image.background == (122, 116, 104)
        file.unlink()
        assert read(path, layout).settings.image == IMAGE


def test_transformers_own_way_to_save_is_read_too(tmp_path, theirs):
    """The image settings nested in processor_config.json, as release 5 writes them."""
    processor, settings = theirs
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert read(tmp_path, "hf").settings == settings


# --- refusals

DAMAGE = [
    ("preprocessor_config.json", {"image_size": 24}, "image_size is 24"),
    ("preprocessor_config.json", {"image_size": 10**9}, "image_size is 1000000000"),
    ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "image_mean"),
    ("preprocessor_config.json", {"image_mean": ["a", 0, 0]}, "image_mean"),
    ("preprocessor_config.json", {"image_std": [0, 1, 1]}, "std is"),
    ("preprocessor_config.json", {"image_std": [1e300, 1, 1]}, "image_std"),
    ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor"),
    ("preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
    ("preprocessor_config.json", {"min_size": 99}, "min_size is 99"),
    ("preprocessor_config.json", {"min_size": 1.5}, "min_size"),
    ("processor_config.json", {"sft_format": "llama-2"}, "sft_format"),
    ("processor_config.json", {"num_image_tokens": 576}, "num_image_tokens"),
    ("processor_config.json", {"image_tag": "<img>"}, "image_tag"),
    ("processor_config.json", {"system_prompt": 3}, "system_prompt"),
    ("tokenizer_config.json", {"janus_roles": ["User", "Assistant"]}, "janus_roles"),
    ("tokenizer_config.json", {"janus_roles": {"user": "", "assistant": "b"}}, "janus_roles"),
    ("tokenizer_config.json", {"janus_roles": {"user": "a", "x": "b"}}, "janus_roles"),
    ("special_tokens_map.json", {"eos_token": {"content": "</s>"}}, "eos_token is '</s>'"),
]


@pytest.mark.parametrize(("file", "change", "message"), DAMAGE)
def test_other_settings_are_refused_by_name(file, change, message, tmp_path):
    path = written(tmp_path, "deepseek")
    fields = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(fields | change))
    with pytest.raises(InputError) as info:
        read(path, "deepseek")
    assert message in str(info.value) and file in str(info.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"height": 16, "width": 24}}, "equal height and width"),
        ({"size": 16}, "equal height and width"),
        ({"size": {"height": 24, "width": 24}}, "size is 24"),
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample"),
    ],
)
def test_transformers_settings_are_checked_alike(change, message, tmp_path):
    path = written(tmp_path, "hf")
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read(path, "hf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"image_size": NaN}', "image_size is nan"),
        (b'{"image_size": 16, "image_size": 24}', "keys set twice"),
        (b'{"image_size": ' + b"9" * 9999 + b"}", "not valid JSON"),
        (b"[1]", "allowed: a JSON object"),
        (b" " * 2**21, "too big"),
    ],
)
def test_files_that_are_no_json_are_refused(content, message, tmp_path):
    path = written(tmp_path, "deepseek")
    (path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(path, "deepseek")


def hostile(change) -> str:
    content = json.loads(fakes.deepseek_like().to_json())
    change(content)
    return json.dumps(content)


TOKENIZERS = {
    "truncated": (fakes.deepseek_like().to_json()[:2000], "not a valid tokenizer.json"),
    "empty": ("", "not a valid tokenizer.json"),
    "an array": ("[]", "not a valid tokenizer.json"),
    "no model": (hostile(lambda c: c.pop("model")), "not a valid tokenizer.json"),
    "deep": ("[" * 100_000, "not a valid tokenizer.json"),
    "too big": (" " * (2**26 + 1), "too big"),
    "a negative id": (hostile(lambda c: c["model"]["vocab"].update(z=-1)), "not a valid"),
    "an id of 64 bits": (hostile(lambda c: c["model"]["vocab"].update(z=2**40)), "not a valid"),
    "an id beyond the embedding": (
        hostile(lambda c: c["model"]["vocab"].update(zzz=5000)),
        "ids up to 5000; allowed: ids below 2048",
    ),
    "a merge of nothing": (hostile(lambda c: c["model"]["merges"].append(["qq", "w"])), "not a"),
    "a prefix longer than its words": (
        hostile(lambda c: c["model"].update(continuing_subword_prefix="x" * 99)),
        "continuing_subword_prefix is set",
    ),
    "a normaliser that panics": (
        hostile(
            lambda c: c.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "A"})
        ),
        "not a valid tokenizer.json",
    ),
    "a broken pattern": (
        hostile(
            lambda c: c.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "("},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
        ),
        "not a valid tokenizer.json",
    ),
    "no placeholder": (
        hostile(lambda c: c["added_tokens"].pop(5)),
        "lacks the control tokens <image_placeholder>",
    ),
    "no roles": (
        hostile(lambda c: [c["added_tokens"].pop(9), c["added_tokens"].pop(8)]),
        "lacks the role token",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hostile_tokenizers_are_refused_in_one_line(name, tmp_path):
    text, message = TOKENIZERS[name]
    path = written(tmp_path, "deepseek")
    (path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError) as info:
        read(path, "deepseek", roles=JANUS_PRO)
    assert message in str(info.value) and "tokenizer.json" in str(info.value)
    assert "\n" not in str(info.value) and len(str(info.value)) < 600


def test_a_missing_tokenizer_is_named(tmp_path):
    path = written(tmp_path, "hf")
    (path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json' does not exist"):
        read(path, "hf")


def test_what_a_layout_cannot_say_is_refused_on_export(tmp_path):
    odd = dataclasses.replace(SETTINGS["janus"], system_prompt="You are a pirate.")
    with pytest.raises(InputError, match="pirate"):
        written(tmp_path, "hf", odd)
    assert read(written(tmp_path, "deepseek", odd), "deepseek").settings.system_prompt
    grey = dataclasses.replace(IMAGE, background=(0, 0, 0))
    with pytest.raises(InputError, match="background"):
        written(tmp_path, "hf", ProcessorConfig(grey, Roles("a", "b"), ""))
