"""Published components become a model directory that stage 1 starts from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from convert.assemble import FreshParts, assemble
from convert.engine import plan_export, shapes_of
from convert.extend import extend_embedding, extend_head, extend_vocabulary
from convert.keys import VQ16
from convert.parts import part_shapes, plan_part
from janus_jax import functional
from janus_jax.checkpoint import load_model
from janus_jax.cli.main import run
from janus_jax.config import DEBUG
from janus_jax.errors import InputError
from janus_jax.functional import flat_params
from janus_jax.processing import CONTROL_TOKENS, JANUS_PRO
from tests.processing import fakes
from train.arguments import parse_preset
from train.cli import Flags
from train.init import find_origin
from train.presets import PRESETS

LLM: dict[str, Any] = dict(
    vocab_size=300,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=512,
)


def general_tokenizer() -> Tokenizer:
    """A Llama tokenizer of nobody's in particular: bytes, `<s>` and `</s>`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw: Any = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return raw


@pytest.fixture(scope="module")
def components(tmp_path_factory) -> dict[str, Path]:
    """A Llama, a SigLIP and a VQ tokenizer on disk, as their makers publish them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("components")
    config = transformers.LlamaConfig(**LLM, bos_token_id=256, eos_token_id=[257, 3])
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "llm")
    general_tokenizer().save(str(root / "llm" / "tokenizer.json"))
    vision = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    transformers.SiglipVisionModel(vision).save_pretrained(root / "siglip")
    shapes = part_shapes("vq", DEBUG.vq)
    rng = np.random.default_rng(1)
    ours = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    state = {k: torch.from_numpy(v) for k, v in plan_export(VQ16, shapes, shapes).write(ours)}
    torch.save({"model": state}, root / "vq.pt")
    return {"llm": root / "llm", "vision": root / "siglip", "vq": root / "vq.pt"}


@pytest.fixture(scope="module")
def assembled(components, tmp_path_factory):
    destination = tmp_path_factory.mktemp("models") / "start"
    return assemble(destination, **components, seed=3)


@pytest.fixture(scope="module")
def model(assembled):
    return load_model(assembled.destination, dtype="float32")


def test_components_are_what_they_were(components, model):
    found = flat_params(model.params)
    for kind, source in components.items():
        for path, array in plan_part(kind, source).read():
            if path == "llm/lm_head/kernel":
                kept = np.asarray(found[path])[:, :258]
                array = array[:, :258]
            else:
                kept = np.asarray(found[path])[: len(array)]
                kept, array = (kept[:258], array[:258]) if "embed/" in path else (kept, array)
            np.testing.assert_array_equal(kept, array.astype(np.float32), err_msg=path)


def test_the_directory_is_a_whole_model(assembled, model):
    assert model.config == assembled.config
    # 258 words and 8 control tokens fit into the 300 rows there are.
    assert assembled.config.llm.vocab_size == 300 and assembled.config.vision == DEBUG.vision
    assert assembled.added == {token: 258 + i for i, token in enumerate(CONTROL_TOKENS)}
    assert assembled.dropped["vision"] and assembled.dropped["llm"] == ()
    assert sum(assembled.parameters.values()) == functional.count_params(model.params)
    assert model.processor.roles == JANUS_PRO and model.processor.image.image_size == 16
    assert (model.tokenizer.bos, model.tokenizer.user) == (258, 264)
    assert "cannot" in model.card_text or "can neither" in model.card_text
    assert "<|User|>" in model.card_text and "seed 3" in model.source
    assert str(assembled.destination.parent) not in model.card_text + model.source


def test_stage_1_takes_the_architecture_from_it(assembled):
    where = [f"{part}={assembled.destination.name}" for part in ("llm", "vision", "vq")]
    argv = ["janus-pro-1b-stage1", "--model", "", "--init", *where]
    _, config = parse_preset(Flags(), argv, PRESETS, command="train")
    run_dir = assembled.destination.parent / "stage1"
    run_dir.mkdir()
    origin = find_origin(config, run_dir)
    assert origin.model == assembled.config and origin.model.name == "custom"
    assert (origin.tokenizer.bos, origin.tokenizer.user) == (258, 264)


def test_new_rows(model):
    found = flat_params(model.params)
    table = np.asarray(found["llm/embed/embedding"])
    head = np.asarray(found["llm/lm_head/kernel"]).T
    # BOS and EOS are copies of the model's own, eos_token_id being a list.
    for rows in (table, head):
        np.testing.assert_array_equal(rows[258], rows[256])
        np.testing.assert_array_equal(rows[259], rows[257])
    # The others differ from one another and are of ordinary size; the head's are the mean.
    new = table[260:266]
    assert len({row.tobytes() for row in new}) == 6
    assert 0.5 < new.std() / table[:258].std() < 2
    np.testing.assert_allclose(head[260:266], np.tile(head[:258].mean(0), (6, 1)), atol=1e-3)


def test_what_is_new_is_initialised_as_the_model_does(assembled, model):
    """Same shapes as `JanusModel`'s own children, and the same distribution."""
    whole = flat_params(functional.abstract(assembled.config)[1])
    found = flat_params(model.params)
    _, reference = functional.build(assembled.config, 0)
    reference = flat_params(reference)
    fresh = [path for path in whole if path.split("/")[0] in vars_of_fresh(assembled.config)]
    assert len(fresh) == 13
    for path in fresh:
        ours, theirs = np.asarray(found[path]), np.asarray(reference[path])
        assert ours.shape == theirs.shape, path
        assert abs(ours.mean() - theirs.mean()) < 0.1 + theirs.std() / 4, path
        if ours.size > 1000:
            assert abs(ours.std() / theirs.std() - 1) < 0.1, path


def vars_of_fresh(config) -> set[str]:
    from flax import nnx

    state = flat_params(nnx.state(FreshParts(config, nnx.Rngs(params=0))))
    return {path.split("/")[0] for path in state}


def test_the_seed_decides(components, assembled, tmp_path):
    again = assemble(tmp_path / "again", **components, seed=3)
    other = assemble(tmp_path / "other", **components, seed=4)
    digests = [
        json.loads((a.destination / "manifest.json").read_text())["tensors"]
        for a in (assembled, again, other)
    ]
    assert digests[0] == digests[1]
    changed = {path.split("/")[0] for path in digests[0] if digests[0][path] != digests[2][path]}
    assert changed == {"aligner", "gen_aligner", "gen_embed", "image_head", "llm"}
    assert digests[0]["llm/embed/embedding"]["dtype"] == "bfloat16"
    assert digests[0]["aligner/fc1/kernel"]["dtype"] == "float32"


# --- vocabulary


def saved(raw: Tokenizer, path: Path) -> Path:
    raw.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


def test_a_full_embedding_grows(tmp_path):
    words = extend_vocabulary(saved(general_tokenizer(), tmp_path), {"bos_token_id": 256}, 258)
    assert (words.known, words.size) == (258, 320)
    assert words.copies == {258: 256}
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((258, 4)) * [1, 2, 3, 4] + 5).astype(np.float32)
    grown = extend_embedding(table, words, seed=0)
    assert grown.shape == (320, 4) and grown.dtype == np.float32
    np.testing.assert_array_equal(grown[:258], table)
    np.testing.assert_allclose(grown[259:].mean(0), table.mean(0), atol=1.5)
    np.testing.assert_allclose(grown[259:].std(0), table.std(0), rtol=0.3)
    head = extend_head(table.T, words)
    assert head.shape == (4, 320)
    np.testing.assert_allclose(head[:, 300], table.mean(0), rtol=1e-5)


def test_a_vocabulary_that_has_the_tokens_keeps_them(tmp_path):
    fakes.deepseek_like().save(tmp_path / "tokenizer.json")
    words = extend_vocabulary(tmp_path / "tokenizer.json", {}, 400)
    assert words.added == {} and words.copies == {} and words.size == 400
    table = np.arange(800, dtype=np.float32).reshape(400, 2)
    np.testing.assert_array_equal(extend_embedding(table, words, seed=0), table)
    np.testing.assert_array_equal(extend_head(table.T, words), table.T)


@pytest.mark.parametrize("value", [None, -1, 10**9, True, "256", [], [[1]]])
def test_ids_of_a_config_that_are_none_are_not_copied(value, tmp_path):
    model = {"bos_token_id": value, "eos_token_id": value}
    assert extend_vocabulary(saved(general_tokenizer(), tmp_path), model, 300).copies == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a valid tokenizer.json"),
        ('{"version": "1.0"}', "not a valid tokenizer.json"),
        (
            '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "model": {}}',
            "not a valid tokenizer.json",
        ),
    ],
)
def test_broken_tokenizers_are_refused(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=message):
        extend_vocabulary(tmp_path / "tokenizer.json", {}, 300)


def test_a_tokenizer_beyond_the_embedding_is_refused(tmp_path):
    with pytest.raises(InputError, match="ids up to 257; allowed: ids below 200"):
        extend_vocabulary(saved(general_tokenizer(), tmp_path), {}, 200)


# --- the command


def test_the_command(components, tmp_path, capsys):
    flags = [f"--{kind}={path}" for kind, path in components.items()]
    assert run(["assemble", str(tmp_path / "a"), *flags, "--dtype=bfloat16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["destination"] == str(tmp_path / "a") and report["architecture"] == "custom"
    assert set(report["parameters"]) == {
        *("llm", "vision", "vq", "aligner", "gen_embed", "gen_aligner", "image_head")
    }
    assert len(report["added_tokens"]) == 8 and report["dropped"]["vision"]
    assert load_model(tmp_path / "a").stored_dtype == "bfloat16"

    assert run(["assemble", str(tmp_path / "b"), *flags, "--seed=-1"]) == 2
    assert "--seed -1" in capsys.readouterr().err
    wrong = [*flags[:2], f"--vq={components['llm'] / 'config.json'}"]
    assert run(["assemble", str(tmp_path / "b"), *wrong]) == 2
    assert not (tmp_path / "b").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert run(["assemble", str(tmp_path / "mine"), *flags]) == 2
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_shapes_of_a_part_are_those_of_the_whole_model():
    whole = shapes_of(flat_params(functional.abstract(DEBUG)[1]))
    for kind, config in (("llm", DEBUG.llm), ("vision", DEBUG.vision), ("vq", DEBUG.vq)):
        mine = {k: v for k, v in whole.items() if k.startswith(f"{kind}/")}
        assert part_shapes(kind, config) == mine
