"""Tokenizer and preprocessing of an export, written as the peers' own loaders expect them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tokenizers

from convert.jsonfile import write_object
from convert.layouts import Layout
from convert.processors import ROLES_KEY
from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.processing.image import ImageSettings
from janus_jax.processing.prompt import UNDERSTANDING_SYSTEM_PROMPT, Roles
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

_IMAGE_TOKENS = {
    "image_token": IMAGE_PLACEHOLDER,
    "boi_token": IMAGE_START,
    "eoi_token": IMAGE_END,
}


def write_processor_files(
    directory: Path,
    layout: Layout,
    config: JanusConfig,
    tokenizer: Tokenizer,
    settings: ProcessorConfig,
) -> None:
    """Writes the files beside an export's tensors that prepare its inputs.

    In transformers' layout `AutoProcessor.from_pretrained` and `AutoTokenizer.from_pretrained` load
    them; in DeepSeek's, the reference's `VLChatProcessor.from_pretrained`.

    Args:
      directory: gets the files.
      layout: of the export.
      config: the architecture.
      tokenizer: vocabulary.
      settings: image settings, role names, system prompt.

    Raises:
      InputError: settings that the layout cannot express.
    """
    _check_background(settings.image)
    write = _write_hf if layout.config == "hf" else _write_deepseek
    write(directory, config, tokenizer, settings)
    write_object(directory / "special_tokens_map.json", _special_tokens(tokenizer))


def _write_hf(
    directory: Path, config: JanusConfig, tokenizer: Tokenizer, settings: ProcessorConfig
) -> None:
    if settings.system_prompt not in ("", UNDERSTANDING_SYSTEM_PROMPT):
        raise InputError(
            f"the model's system prompt is {settings.system_prompt[:80]!r}",
            "Janus' own or none (transformers knows no other)",
        )
    image = settings.image
    (directory / "tokenizer.json").write_text(_with_bos(tokenizer), encoding="utf-8")
    write_object(
        directory / "tokenizer_config.json",
        {
            # The class that takes tokenizer.json as it is, in every release.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "JanusProcessor",
            **_tokenizer_fields(config),
            "extra_special_tokens": _IMAGE_TOKENS,
        },
    )
    write_object(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "JanusImageProcessor",
            "processor_class": "JanusProcessor",
            "size": {"height": image.image_size, "width": image.image_size},
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "resample": 3,
            **_image_fields(image),
        },
    )
    write_object(
        directory / "processor_config.json",
        {
            "processor_class": "JanusProcessor",
            "num_image_tokens": config.vision.num_patches,
            "use_default_system_prompt": bool(settings.system_prompt),
        },
    )
    (directory / "chat_template.jinja").write_text(chat_template(settings.roles), encoding="utf-8")
    write_object(
        directory / "generation_config.json",
        {
            "bos_token_id": tokenizer.bos,
            "eos_token_id": tokenizer.eos,
            "pad_token_id": tokenizer.pad,
            # Drawing: where the prompt ends, and the weight of guidance.
            "generation_kwargs": {"boi_token_id": tokenizer.image_start},
            "guidance_scale": 5,
        },
    )


def _write_deepseek(
    directory: Path, config: JanusConfig, tokenizer: Tokenizer, settings: ProcessorConfig
) -> None:
    (directory / "tokenizer.json").write_text(_with_bos(tokenizer), encoding="utf-8")
    write_object(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "processor_class": "VLChatProcessor",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": True,
            "unk_token": None,
            **_tokenizer_fields(config),
            # Not the reference's: it takes the names from its caller. Unknown keys of this file
            # are ignored.
            ROLES_KEY: dataclasses.asdict(settings.roles),
        },
    )
    write_object(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "VLMImageProcessor",
            "processor_class": "VLChatProcessor",
            "image_size": settings.image.image_size,
            **_image_fields(settings.image),
        },
    )
    chat: dict[str, Any] = {
        "processor_class": "VLChatProcessor",
        "image_tag": IMAGE_PLACEHOLDER,
        "num_image_tokens": config.vision.num_patches,
        "add_special_token": False,
        "sft_format": "deepseek",
        "mask_prompt": True,
        "ignore_id": -100,
    }
    if settings.system_prompt != UNDERSTANDING_SYSTEM_PROMPT:
        # The reference knows one system prompt. A key that it does not know is better than a
        # prompt the weights do not.
        chat["system_prompt"] = settings.system_prompt
    write_object(directory / "processor_config.json", chat)


def chat_template(roles: Roles) -> str:
    """The Jinja template that renders a conversation as `janus_jax.processing.chat_prompt` does.

    Messages have the roles `user` and `assistant`, and as content a string or a list of parts
    (`{"type": "image"}`, `{"type": "text", "text": ...}`). The processor itself puts the system
    prompt before it.
    """
    return "".join(
        [
            "{%- for message in messages -%}",
            "{%- if message['role'] not in ('user', 'assistant') -%}",
            "{{- raise_exception('roles are user and assistant') -}}{%- endif -%}",
            "{%- set ns = namespace(text='') -%}",
            "{%- if message['content'] is string -%}{%- set ns.text = message['content'] -%}",
            "{%- else -%}{%- for part in message['content'] -%}",
            "{%- if part['type'] == 'image' -%}",
            f"{{%- set ns.text = ns.text ~ '{IMAGE_PLACEHOLDER}\\n' -%}}",
            "{%- elif part['type'] == 'text' -%}",
            "{%- set ns.text = ns.text ~ part['text'] -%}",
            "{%- endif -%}{%- endfor -%}{%- endif -%}",
            "{%- set text = ns.text | trim -%}",
            "{%- set last = loop.last and not add_generation_prompt -%}",
            "{%- if message['role'] == 'user' -%}",
            f"{{{{- {roles.user!r} ~ ':' -}}}}",
            "{%- if text -%}{{- ' ' ~ text ~ ('' if last else '\\n\\n') -}}{%- endif -%}",
            "{%- else -%}",
            f"{{{{- {roles.assistant!r} ~ ':' -}}}}",
            f"{{%- if text -%}}{{{{- ' ' ~ text ~ ('' if last else {EOS!r}) -}}}}{{%- endif -%}}",
            "{%- endif -%}{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            f"{{{{- {roles.assistant!r} ~ ':' -}}}}",
            "{%- endif -%}",
        ]
    )


def _with_bos(tokenizer: Tokenizer) -> str:
    """The content of tokenizer.json whose encoding begins with BOS, as the reference's does.

    DeepSeek's file leaves that to the class that loads it. That class is gone from release 5 of
    transformers, whose generic one does what the file says; in earlier releases it writes the same
    rule over this one.
    """
    raw = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    if raw.encode("a").ids[:1] == [tokenizer.bos]:
        return tokenizer.to_json()
    content = json.loads(tokenizer.to_json())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": BOS, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": BOS, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {BOS: {"id": BOS, "ids": [tokenizer.bos], "tokens": [BOS]}},
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _tokenizer_fields(config: JanusConfig) -> dict[str, Any]:
    return {
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.llm.max_positions,
    }


def _image_fields(image: ImageSettings) -> dict[str, Any]:
    return {
        "background_color": list(image.background),
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "min_size": image.min_size,
        "rescale_factor": 1 / 255,
    }


def _special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    extra = [
        IMAGE_PLACEHOLDER,
        *(t for t in (USER, ASSISTANT) if tokenizer.token_id(t) is not None),
    ]
    return {
        "additional_special_tokens": extra,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
    }


def _check_background(image: ImageSettings) -> None:
    computed = tuple(int(x * 255) for x in image.mean)
    if image.background != computed:
        raise InputError(
            f"the model's image background is {image.background}",
            f"{computed}, which both published layouts compute from the mean",
        )
