"""config.json of both layouts, both ways, and hostile ones."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.configs import config_content, named, plan_whole, read_config, write_config
from convert.counts import parameter_count
from convert.deepseek_config import from_deepseek_config, reference_builds, to_deepseek_config
from convert.keys import DEEPSEEK
from convert.layouts import DEEPSEEK_LAYOUT, HF_LAYOUT
from janus_jax.config import DEBUG, JANUS_PRO_1B, JANUS_PRO_7B, NAMED, get_config
from janus_jax.errors import InputError
from janus_jax.functional import abstract, count_params
from janus_jax.hf_config import from_hf_config, to_hf_config
from janus_jax.processing import JANUS, JANUS_PRO
from tests.processing import fakes

LAYOUTS = {"hf": HF_LAYOUT, "deepseek": DEEPSEEK_LAYOUT}

# The published file of Janus-Pro-7B, less what says how it was saved: every key it has, no others.
PRO_7B = {
    "model_type": "multi_modality",
    "aligner_config": {
        "cls": "MlpProjector",
        "model_type": "aligner",
        "params": {
            "depth": 2,
            "input_dim": 1024,
            "n_embed": 4096,
            "projector_type": "mlp_gelu",
        },
    },
    "gen_aligner_config": {
        "cls": "MlpProjector",
        "model_type": "gen_aligner",
        "params": {"depth": 2, "input_dim": 8, "n_embed": 4096, "projector_type": "mlp_gelu"},
    },
    "gen_head_config": {
        "cls": "vision_head",
        "model_type": "gen_head",
        "params": {"image_token_embed": 4096, "image_token_size": 16384, "n_embed": 4096},
    },
    "gen_vision_config": {
        "cls": "VQ-16",
        "model_type": "gen_vision",
        "params": {"image_token_size": 16384, "n_embed": 8},
    },
    "language_config": {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": 30,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
    "vision_config": {
        "cls": "CLIPVisionTower",
        "model_type": "vision",
        "params": {
            "image_size": 384,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    },
}


def test_the_published_7b():
    assert from_deepseek_config(PRO_7B, name="janus-pro-7b") == JANUS_PRO_7B


@pytest.mark.parametrize("name", sorted(NAMED))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_named_architecture_comes_back(layout, name, tmp_path):
    config = get_config(name)
    content = config_content(LAYOUTS[layout], config, fakes.deepseek_like(), dtype="bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(content))
    found = read_config(tmp_path, LAYOUTS[layout])
    assert dataclasses.replace(found, name=name) == config
    # The sizes of Janus-1.3B and Janus-Pro-1B are the same; the words for the speakers differ.
    assert found.name == ("janus-pro-1b" if name == "janus-1.3b" else name)
    assert named(found, JANUS).name == ("janus-1.3b" if name == "janus-pro-1b" else name)
    assert named(found, JANUS_PRO) == found


def test_what_deepseeks_code_can_build():
    built = {name for name, config in NAMED.items() if reference_builds(config)}
    assert built == {"janus-1.3b", "janus-pro-1b", "janus-pro-7b"}
    content = to_deepseek_config(JANUS_PRO_7B, dtype="bfloat16")
    for section in PRO_7B.keys() - {"language_config"}:
        assert content[section] == PRO_7B[section]
    assert PRO_7B["language_config"].items() <= content["language_config"].items()
    # Other sizes go by names that the reference's tables do not have.
    content = to_deepseek_config(DEBUG, dtype="float32")
    assert content["vision_config"]["params"]["model_name"] == "siglip_custom"
    assert content["gen_vision_config"]["cls"] == "VQ-custom"


def test_transformers_reads_what_is_written(tmp_path):
    write_config(tmp_path, HF_LAYOUT, DEBUG, fakes.deepseek_like(), dtype="bfloat16")
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    ours = fakes.deepseek_like()
    assert config.image_token_id == ours.image_placeholder
    assert config.text_config.eos_token_id == ours.eos
    assert str(config.dtype) == "torch.bfloat16"


def changed(path: str, value: object, data: dict = PRO_7B) -> dict:
    """A copy of a config with one entry of it changed; None removes it."""
    data = json.loads(json.dumps(data))
    *parents, last = path.split("/")
    node = data
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return data


def test_missing_keys_mean_what_they_mean_to_the_reference():
    # select_layer -2 stops one block short, image_size is 336 (spec of CLIPVisionTower).
    found = from_deepseek_config(changed("vision_config/params/select_layer", None))
    assert found.vision == dataclasses.replace(JANUS_PRO_7B.vision, depth=23)
    found = from_deepseek_config(changed("vision_config/params/select_layer", 7))
    assert found.vision.depth == 7
    found = from_deepseek_config(changed("vision_config/params/image_size", None))
    assert (found.image_size, found.num_image_tokens) == (336, 441)
    # LlamaConfig's defaults: 32 layers and 32,000 words.
    found = from_deepseek_config(changed("language_config", {}))
    assert (found.llm.depth, found.llm.vocab_size, found.llm.width) == (32, 32000, 4096)
    # An aligner without a depth has one layer, which is not what Janus has.
    with pytest.raises(InputError, match=r"aligner_config\.params\.depth is 1; allowed: 2"):
        from_deepseek_config(changed("aligner_config/params/depth", None))


HUGE = int("9" * 4000)
HOSTILE = [
    ("model_type", "llama"),
    ("model_type", ["multi_modality"]),
    ("language_config", []),
    ("language_config", "llama"),
    ("language_config/num_hidden_layers", 10**9),
    ("language_config/num_hidden_layers", -1),
    ("language_config/num_hidden_layers", 0),
    ("language_config/num_hidden_layers", 2.0),
    ("language_config/num_hidden_layers", "30"),
    ("language_config/num_hidden_layers", [30]),
    ("language_config/num_hidden_layers", float("nan")),
    ("language_config/num_hidden_layers", HUGE),
    ("language_config/hidden_size", 10**12),
    ("language_config/vocab_size", 2**40),
    ("language_config/rms_norm_eps", float("nan")),
    ("language_config/rms_norm_eps", float("inf")),
    ("language_config/rope_theta", -1e4),
    ("language_config/rope_scaling", {"type": "dynamic", "factor": 2}),
    ("language_config/num_attention_heads", 33),
    ("language_config/num_key_value_heads", 5),
    ("vision_config/cls", "os.system"),
    ("vision_config/cls", {"a": 1}),
    ("vision_config/params", 3),
    ("vision_config/params/model_name", "sam_b_downsample"),
    ("vision_config/params/model_name", ["siglip_large_patch16_384"]),
    ("vision_config/params/image_size", 10**9),
    ("vision_config/params/image_size", 383),
    ("vision_config/params/select_layer", -25),
    ("vision_config/params/select_layer", -(10**9)),
    ("vision_config/params/select_layer", True),
    ("gen_vision_config/cls", "VQ-8"),
    ("gen_vision_config/params/image_token_size", 8192),
    ("gen_vision_config/params/n_embed", 16),
    ("aligner_config/params/projector_type", "linear"),
    ("aligner_config/params/input_dim", 1152),
    ("gen_aligner_config/params/n_embed", 2048),
    ("gen_head_config/params/image_token_size", 16385),
    ("gen_head_config/cls", "VisionHead"),
]


@pytest.mark.parametrize(("path", "value"), HOSTILE, ids=lambda x: str(x)[:40])
def test_hostile_and_foreign_values_are_refused_by_name(path, value):
    begin = time.monotonic()
    with pytest.raises(InputError) as info:
        from_deepseek_config(changed(path, value))
    message = str(info.value)
    last = path.split("/")[-1]
    # Sizes that do not go together are named as our config names them.
    assert {"num_key_value_heads": "num_kv_heads"}.get(last, last) in message
    assert len(message) < 400 and "\n" not in message
    assert time.monotonic() - begin < 1


CUSTOM = to_deepseek_config(DEBUG, dtype="float32")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_config/params/layers", 10**9),
        ("vision_config/params/mlp_ratio", 1e300),
        ("vision_config/params/mlp_ratio", 1e-9),
        ("vision_config/params/mlp_ratio", float("inf")),
        ("vision_config/params/width", 33),
        ("vision_config/params/patch_size", -4),
        ("gen_vision_config/params/ch_mult", [1] * 10**5),
        ("gen_vision_config/params/ch_mult", [10**9]),
        ("gen_vision_config/params/ch_mult", []),
        ("gen_vision_config/params/num_res_blocks", 10**9),
        ("gen_vision_config/params/ch", 33),
    ],
)
def test_spelt_out_sizes_are_checked_too(path, value):
    with pytest.raises(InputError):
        from_deepseek_config(changed(path, value, CUSTOM))


FILES = {
    "empty": b"",
    "truncated": json.dumps(PRO_7B).encode()[:300],
    "an array": b"[1]",
    "deep": b'{"a":' * 200_000,
    "not text": b"\xff\xfe\x00",
    "a long number": b'{"x": ' + b"1" * 10_000 + b"}",
    "keys set twice": b'{"model_type": "janus", "model_type": "multi_modality"}',
    "too big": b" " * (2**20 + 1),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_are_no_config(layout, name, tmp_path):
    (tmp_path / "config.json").write_bytes(FILES[name])
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(tmp_path, LAYOUTS[layout])


def test_no_file_and_no_regular_file(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        read_config(tmp_path, HF_LAYOUT)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match="regular file"):
        read_config(tmp_path, HF_LAYOUT)


# --- sizes, before anything is built


@pytest.mark.parametrize("name", sorted(NAMED))
def test_parameters_are_counted_as_they_are(name):
    config = get_config(name)
    assert parameter_count(config) == count_params(abstract(config)[1])


def test_counts_of_unusual_shapes():
    vq = dataclasses.replace(DEBUG.vq, channel_multipliers=(2, 1, 3), num_res_blocks=2)
    llm = dataclasses.replace(DEBUG.llm, num_heads=4, num_kv_heads=2, head_dim=8)
    config = dataclasses.replace(DEBUG, vq=vq, llm=llm)
    assert parameter_count(config) == count_params(abstract(config)[1])


def test_a_config_that_asks_for_more_than_there_is_builds_nothing(monkeypatch):
    monkeypatch.setattr("convert.configs.abstract", None)  # nothing may be built
    shapes = {
        "language_model.model.norm.weight": (48,),
        "vision_model.vision_tower.attn_pool.latent": (10**6, 10**6),  # dropped, so not counted
    }
    llm = dataclasses.replace(JANUS_PRO_1B.llm, depth=1000, width=2**20)
    with pytest.raises(InputError, match=r"a model of [0-9,]{18,} parameters.* hold 48"):
        plan_whole(dataclasses.replace(JANUS_PRO_1B, llm=llm), DEEPSEEK, shapes)


# --- any JSON at any place

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**9, 2**31, 2**63, -1, 0, 1, 1e308, "llama", "VQ-16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


def paths(data: dict, prefix: str = "") -> list[str]:
    """Every place of a config, sections included."""
    found = []
    for key, value in data.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += paths(value, f"{prefix}{key}/")
    return found


HF_DEBUG = to_hf_config(DEBUG, image_token_id=7)


@pytest.mark.parametrize(
    ("read", "data"),
    [(from_deepseek_config, PRO_7B), (from_deepseek_config, CUSTOM), (from_hf_config, HF_DEBUG)],
    ids=["deepseek", "custom", "hf"],
)
@given(choice=st.data())
@settings(max_examples=150, deadline=1000)
def test_any_change_gives_a_config_or_one_line(read, data, choice):
    path = choice.draw(st.sampled_from(paths(data)))
    value = choice.draw(VALUES)
    try:
        config = read(changed(path, value, data))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert parameter_count(config) > 0
