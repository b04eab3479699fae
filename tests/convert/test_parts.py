"""Published components become parts: against transformers' own modules, and refusals by name."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import save_file

from convert.engine import MappingError, plan_export
from convert.keys import VQ16
from convert.parts import Part, part_shapes, plan_part
from janus_jax.config import DEBUG, LlamaConfig, SiglipConfig
from janus_jax.errors import InputError
from janus_jax.functional import unflatten_params
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.nn.layers import ShapesOnly

LLAMA: dict[str, Any] = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rope_theta=5e4,
)
SIGLIP: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=16,
    patch_size=4,
)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """All weights random, biases and norms too: a swapped or dropped one shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            ones = name.endswith("norm.weight") or "layer_norm" in name
            value.copy_(torch.randn_like(value) * 0.2 + ones)
    return model.eval()


def built(part: Part, module: Any) -> Any:
    """Our module with the part's weights."""
    kwargs: dict[str, Any] = dict(dtype=jnp.float32, param_dtype=jnp.float32)
    graphdef, abstract = nnx.split(module(ShapesOnly(), part.config, **kwargs))
    flat = {path.partition("/")[2]: jnp.asarray(array) for path, array in part.read()}
    return nnx.merge(graphdef, unflatten_params(abstract, flat))


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_computes_what_transformers_computes(tied, tmp_path):
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
    theirs = randomised(transformers.LlamaForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    part = plan_part("llm", tmp_path)
    assert isinstance(part.config, LlamaConfig)
    assert (part.config.rope_theta, part.config.num_kv_heads) == (5e4, 2)
    ours = built(part, Llama)
    ids = np.arange(12).reshape(2, 6) * 7 % 99
    x = ours.embed(jnp.asarray(ids))
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    found = ours.logits(ours.hidden(x, positions, jnp.ones((2, 6), bool))[0])
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(np.asarray(found), wanted, atol=2e-5 * np.abs(wanted).max())


def test_two_ends_of_a_tied_llama_hold_the_same_numbers(tmp_path):
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    found = dict(plan_part("llm", tmp_path).read())
    np.testing.assert_array_equal(found["llm/lm_head/kernel"].T, found["llm/embed/embedding"])
    assert found["llm/embed/embedding"].dtype.name == "bfloat16"


@pytest.mark.parametrize("whole", [False, True])
def test_a_siglip_computes_what_transformers_computes(whole, tmp_path):
    """The tower alone as release 5 writes it, or within a whole SigLIP, whose rest is dropped."""
    vision = {**SIGLIP, "hidden_act": "gelu"}
    if whole:
        text = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=9)
        text |= dict(num_attention_heads=2, max_position_embeddings=4)
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = randomised(transformers.SiglipModel(config))
        tower = model.vision_model
    else:
        tower = model = randomised(
            transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision))
        )
    model.save_pretrained(tmp_path)
    part = plan_part("vision", tmp_path)
    assert part.config == SiglipConfig(16, 4, 32, 2, 4, 48, 1e-6)
    kinds = {key.split(".")[0] for key in part.plan.dropped}
    assert kinds == (
        {"vision_model", "text_model", "logit_scale", "logit_bias"} if whole else {"head"}
    )
    pixels = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    found = built(part, Siglip)(jnp.asarray(pixels))
    with torch.no_grad():
        wanted = tower(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    np.testing.assert_allclose(np.asarray(found), wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def vq() -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """A tokenizer of ours, and as LlamaGen's state dict."""
    shapes = part_shapes("vq", DEBUG.vq)
    rng = np.random.default_rng(0)
    ours = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    written = plan_export(VQ16, shapes, shapes).write(ours)
    state = {key: torch.from_numpy(array.copy()) for key, array in written}
    state["quantize.codebook_used"] = torch.zeros(65536)
    return ours, state


@pytest.mark.parametrize("nest", ["plain", "model", "ema"])
def test_a_vq_tokenizer_from_a_torch_file(nest, vq, tmp_path):
    ours, state = vq
    content = {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "ema": {"model": {k: v + 1 for k, v in state.items()}, "ema": state},
    }[nest]
    torch.save(content, tmp_path / "vq.pt")
    part = plan_part("vq", tmp_path / "vq.pt")
    assert part.config == DEBUG.vq and part.plan.dropped == ("quantize.codebook_used",)
    found = dict(part.read())
    assert list(found) == list(ours)
    for path, array in ours.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_a_vq_tokenizer_from_safetensors(vq, tmp_path):
    ours, state = vq
    save_file({key: value.numpy() for key, value in state.items()}, tmp_path / "vq.safetensors")
    found = dict(plan_part("vq", tmp_path / "vq.safetensors").read())
    assert all(np.array_equal(found[path], array) for path, array in ours.items())


# --- refusals


def llm_directory(path: Path, **changes) -> Path:
    config = transformers.LlamaConfig(**LLAMA)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    data = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(data | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is yes"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"hidden_size": 2**21}, "describes a model of .* parameters, but the tensors"),
        ({"num_hidden_layers": 3}, "layers.2.self_attn.q_proj.weight"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)
def test_a_llama_that_does_not_fit_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        plan_part("llm", llm_directory(tmp_path, **changes))


def test_an_untied_llama_without_a_head_is_refused(tmp_path):
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"tie_word_embeddings": False}))
    with pytest.raises(MappingError) as info:
        plan_part("llm", tmp_path)
    assert info.value.problems.missing == ("lm_head.weight",)


def test_a_file_that_is_no_tokenizer_is_refused(vq, tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"encoder\.conv_in\.weight is missing"):
        plan_part("vq", tmp_path / "other.pt")
    state = dict(vq[1])
    state["encoder.conv_blocks.0.res.0.conv1.weight"] = torch.zeros(33, 32, 3, 3)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="its levels have"):
        plan_part("vq", tmp_path / "odd.pt")
    state = {k: v for k, v in vq[1].items() if k != "decoder.conv_out.bias"}
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(MappingError, match=r"missing \(1\): decoder\.conv_out\.bias"):
        plan_part("vq", tmp_path / "short.pt")


def test_there_are_three_kinds(tmp_path):
    with pytest.raises(InputError, match="no part 'audio'; allowed: llm, vision, vq"):
        plan_part("audio", tmp_path)
