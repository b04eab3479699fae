"""Between people and the model: images, tokenizer, prompts, and their settings."""

from janus_jax.processing.image import (
    MAX_PIXELS,
    ImageSettings,
    generation_pixels,
    load_image,
    to_uint8,
    understanding_canvas,
    understanding_pixels,
)
from janus_jax.processing.prompt import (
    JANUS,
    JANUS_PRO,
    UNDERSTANDING_SYSTEM_PROMPT,
    Prompt,
    Roles,
    Turn,
    chat_prompt,
    generation_prompt,
    image_index,
    left_pad,
    unconditional,
)
from janus_jax.processing.settings import (
    EMOJI_PROCESSOR,
    JANUS_PRO_PROCESSOR,
    JANUS_PROCESSOR,
    ProcessorConfig,
)
from janus_jax.processing.tokenizer import CONTROL_TOKENS, StreamDecoder, Tokenizer, train_bpe

__all__ = [
    "CONTROL_TOKENS",
    "EMOJI_PROCESSOR",
    "JANUS",
    "JANUS_PRO",
    "JANUS_PROCESSOR",
    "JANUS_PRO_PROCESSOR",
    "MAX_PIXELS",
    "UNDERSTANDING_SYSTEM_PROMPT",
    "ImageSettings",
    "ProcessorConfig",
    "Prompt",
    "Roles",
    "StreamDecoder",
    "Tokenizer",
    "Turn",
    "chat_prompt",
    "generation_pixels",
    "generation_prompt",
    "image_index",
    "left_pad",
    "load_image",
    "to_uint8",
    "train_bpe",
    "unconditional",
    "understanding_canvas",
    "understanding_pixels",
]
