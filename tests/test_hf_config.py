"""Our configs from and to transformers' config.json, checked against transformers itself."""

import dataclasses
import json

import pytest
import transformers

from janus_jax.config import DEBUG, JANUS_PRO_7B, NAMED, get_config
from janus_jax.errors import InputError
from janus_jax.hf_config import from_hf_config, llama_from_hf, to_hf_config


@pytest.mark.parametrize("name", sorted(NAMED))
def test_round_trip_through_a_file_that_transformers_wrote(name: str, tmp_path):
    config = get_config(name)
    ours = to_hf_config(config, image_token_id=7, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    assert from_hf_config(json.loads(json.dumps(ours)), name=name) == config

    theirs = transformers.JanusConfig(**ours)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert from_hf_config(written, name=name) == config
    assert from_hf_config(theirs.to_dict(), name=name) == config


def test_what_transformers_understands():
    config = transformers.JanusConfig(**to_hf_config(DEBUG, image_token_id=7, eos_token_id=2))
    assert config.tie_word_embeddings is False
    assert config.image_token_id == 7 and config.text_config.eos_token_id == 2
    assert config.vq_config.num_patches == 4
    assert config.vision_config.num_image_tokens == 16
    assert int(config.vision_config.hidden_size * config.vision_config.mlp_ratio) == 64
    assert config.text_config.rope_parameters["rope_theta"] == 1e4


def test_pro_7b_names_four_keys_and_relies_on_defaults():
    fields = {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": 30,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    }
    assert llama_from_hf(fields) == JANUS_PRO_7B.llm


def test_missing_sections_take_transformers_defaults():
    data = {"model_type": "janus", "text_config": {"hidden_size": 2048}}
    config = from_hf_config(data)
    theirs = transformers.JanusConfig(text_config={"model_type": "llama", "hidden_size": 2048})
    assert config == from_hf_config(theirs.to_dict())
    assert config.vision == get_config("janus-pro-1b").vision
    assert config.vq == get_config("janus-pro-1b").vq
    assert (config.llm.vocab_size, config.llm.depth, config.llm.head_dim) == (32000, 32, 64)


def test_the_older_rope_key_and_null_heads():
    fields = {"rope_theta": 5e5, "num_key_value_heads": None, "head_dim": None}
    llm = llama_from_hf(fields)
    assert (llm.rope_theta, llm.num_kv_heads, llm.head_dim) == (5e5, 32, 128)


@pytest.mark.parametrize("width", range(32, 2048, 32))
def test_the_mlp_ratio_is_read_as_the_exact_size(width: int):
    for mlp_dim in (width + 1, width * 2 + 7, 4303):
        vision = dataclasses.replace(DEBUG.vision, width=width, mlp_dim=mlp_dim)
        config = dataclasses.replace(DEBUG, vision=vision)
        assert from_hf_config(to_hf_config(config, image_token_id=7), name="debug") == config


def changed(section: str, key: str, value) -> dict:
    data = to_hf_config(DEBUG, image_token_id=7)
    data[section][key] = value
    return data


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "attention_bias", True),
        ("text_config", "mlp_bias", True),
        ("text_config", "tie_word_embeddings", True),
        ("text_config", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("text_config", "rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}),
        ("text_config", "vocab_size", "2048"),
        ("text_config", "hidden_size", 0),
        ("text_config", "num_hidden_layers", True),
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "hidden_size", 10**12),
        ("text_config", "rope_parameters", {"rope_type": "default", "rope_theta": float("inf")}),
        ("vision_config", "mlp_ratio", 1e300),
        ("vision_config", "mlp_ratio", float("inf")),
        ("vision_config", "num_hidden_layers", -24),
        ("vq_config", "num_res_blocks", 10**9),
        ("vq_config", "channel_multiplier", [1] * 1000),
        ("vq_config", "channel_multiplier", [10**9]),
        ("text_config", "rms_norm_eps", 0),
        ("text_config", "rms_norm_eps", float("nan")),
        ("vision_config", "hidden_act", "gelu_pytorch_tanh"),
        ("vision_config", "use_qk_norm", True),
        ("vision_config", "attention_bias", False),
        ("vision_config", "depth", 3),
        ("vision_config", "num_channels", 1),
        ("vision_config", "projection_dim", 64),
        ("vision_config", "image_size", [16, 16]),
        ("vq_config", "double_latent", True),
        ("vq_config", "num_hidden_layers", 1),
        ("vq_config", "image_token_embed_dim", 2048),
        ("vq_config", "channel_multiplier", [1, 0]),
        ("vq_config", "channel_multiplier", []),
        ("vq_config", "channel_multiplier", "1,1,2"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(section: str, key: str, value):
    with pytest.raises(InputError) as info:
        from_hf_config(changed(section, key, value))
    assert section in str(info.value) and key in str(info.value)
    assert info.value.allowed


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="num_attention_heads is 33; allowed: a divisor"):
        llama_from_hf({"num_attention_heads": 33})
    assert llama_from_hf({"num_attention_heads": 33, "head_dim": 128}).num_heads == 33


def test_a_number_too_long_to_print_is_refused():
    with pytest.raises(InputError, match=r"text_config\.vocab_size is a number of thousands"):
        from_hf_config(changed("text_config", "vocab_size", 1 << 20_000))


def test_sizes_that_fit_no_model_are_refused():
    with pytest.raises(InputError, match=r"vision\.image_size is 18"):
        from_hf_config(changed("vision_config", "image_size", 18))


@pytest.mark.parametrize("data", [{}, {"model_type": "llama"}, [], None, {"model_type": 3}])
def test_other_files_are_refused(data):
    with pytest.raises(InputError, match="model_type"):
        from_hf_config(data)


@pytest.mark.parametrize("section", ["text_config", "vision_config", "vq_config"])
def test_a_section_that_is_no_object_is_refused(section: str):
    with pytest.raises(InputError, match=section):
        from_hf_config(to_hf_config(DEBUG, image_token_id=7) | {section: [1]})


def test_grids_transformers_cannot_express_are_refused_on_export():
    vision = dataclasses.replace(DEBUG.vision, patch_size=8)
    with pytest.raises(InputError, match="2x2 grid of patches and a 4x4 grid of codes"):
        to_hf_config(dataclasses.replace(DEBUG, vision=vision), image_token_id=7)
