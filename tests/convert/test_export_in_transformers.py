"""An export, used by transformers alone: it loads whole, draws, and answers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from convert.configs import write_config
from convert.engine import plan_export, shapes_of
from convert.layouts import HF_LAYOUT
from convert.processor_files import write_processor_files
from janus_jax.config import DEBUG
from janus_jax.functional import flat_params
from janus_jax.processing import JANUS_PRO_PROCESSOR, ImageSettings
from tests.debug_model import random_params
from tests.processing import fakes


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export")
    ours = {key: np.asarray(value) for key, value in flat_params(random_params(DEBUG)).items()}
    plan = plan_export(HF_LAYOUT.table, shapes_of(ours), shapes_of(ours))
    save_file(dict(plan.write(ours)), path / "model.safetensors", metadata={"format": "pt"})
    image = ImageSettings(image_size=DEBUG.image_size)
    settings = dataclasses.replace(JANUS_PRO_PROCESSOR, image=image)
    write_config(path, HF_LAYOUT, DEBUG, fakes.deepseek_like(), dtype="float32")
    write_processor_files(path, HF_LAYOUT, DEBUG, fakes.deepseek_like(), settings)
    return path


@pytest.fixture(scope="module")
def peer(exported: Path):
    model, info = transformers.JanusForConditionalGeneration.from_pretrained(
        exported, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval(), transformers.AutoProcessor.from_pretrained(exported)


def test_it_draws(peer):
    """Guidance needs the ids of padding and of begin-of-image from generation_config.json."""
    model, processor = peer
    ours = fakes.deepseek_like()
    assert model.generation_config.generation_kwargs == {"boi_token_id": ours.image_start}
    assert model.generation_config.pad_token_id == ours.pad
    messages = [{"role": "user", "content": "a red apple"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=text, generation_mode="image", return_tensors="pt")
    with torch.no_grad():
        codes = model.generate(**inputs, generation_mode="image", do_sample=False)
        pictures = model.decode_image_tokens(codes)
    assert codes.shape == (1, DEBUG.num_image_tokens)
    assert pictures.shape == (1, 16, 16, 3) and bool(torch.isfinite(pictures).all())


def test_it_answers(peer):
    model, processor = peer
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=text, images=[fakes.picture(20, 16)], return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert inputs["input_ids"].shape[1] < answer.shape[1] <= inputs["input_ids"].shape[1] + 4
