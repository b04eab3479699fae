"""Whole checkpoints: the weights as the peers write them, with tokenizer and preprocessing."""

import dataclasses
from pathlib import Path

import torch

from convert.layouts import DEEPSEEK_LAYOUT, HF_LAYOUT
from convert.processor_files import write_processor_files
from janus_jax.config import DEBUG
from janus_jax.processing import JANUS_PRO_PROCESSOR, ImageSettings
from tests.convert import peers
from tests.processing import fakes

SETTINGS = dataclasses.replace(
    JANUS_PRO_PROCESSOR, image=ImageSettings(image_size=DEBUG.image_size)
)


def save_hf(path: Path, dtype: torch.dtype) -> None:
    """transformers' layout, in several safetensors shards."""
    peers.save_hf(path, dtype)
    write_processor_files(path, HF_LAYOUT, DEBUG, fakes.deepseek_like(), SETTINGS)


def save_deepseek(path: Path, dtype: torch.dtype) -> None:
    """DeepSeek's layout, in one file of `torch.save`."""
    peers.save_deepseek(path, dtype)
    write_processor_files(path, DEEPSEEK_LAYOUT, DEBUG, fakes.deepseek_like(), SETTINGS)
