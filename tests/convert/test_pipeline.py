"""Conversions from end to end: what the peers wrote into ours, and back into what they load."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convert.pipeline import convert, lines
from convert.source import open_source
from janus_jax.checkpoint import load_model
from janus_jax.errors import InputError
from janus_jax.locate import assets_directory
from janus_jax.manifest import read_manifest
from tests.convert import peers
from tests.convert.whole import SETTINGS, save_deepseek, save_hf
from tests.processing import fakes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAVE = {"hf": save_hf, "deepseek": save_deepseek}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conversions")


@pytest.fixture(scope="module", params=["hf-float32", "deepseek-bfloat16"])
def trip(request, folder: Path) -> dict[str, Path]:
    """From a peer's layout to ours and from ours to both."""
    layout, dtype = request.param.split("-")
    paths = {name: folder / f"{request.param}-{name}" for name in ("from", "ours", *SAVE)}
    SAVE[layout](paths["from"], DTYPES[dtype])
    convert(open_source(paths["from"]), paths["ours"])
    for to in SAVE:
        convert(open_source(paths["ours"]), paths[to], to=to, max_shard_bytes=400_000)
    return paths


def stored(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {
        key: (t.dtype, tuple(t.shape), t.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for key, t in tensors.items()
    }


def test_every_tensor_comes_back_bit_for_bit(trip):
    dtype = next(iter(stored(trip["hf"]).values())).dtype
    wanted = peers.hf_state(dtype)
    assert bits(stored(trip["hf"])) == bits(wanted)
    deepseek = peers.deepseek_state(wanted)
    kept = {key: value for key, value in deepseek.items() if key not in peers.DROPPED}
    assert bits(stored(trip["deepseek"])) == bits(kept)


def test_shards_are_as_small_as_asked_for_and_indexed(trip):
    index = json.loads((trip["hf"] / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in trip["hf"].glob("*.safetensors"))
    assert len(shards) > 2 and sorted(set(index["weight_map"].values())) == shards
    for name in shards:
        data = (trip["hf"] / name).read_bytes()
        header = int.from_bytes(data[:8], "little")
        assert header % 8 == 0 and len(data) - header - 8 <= 400_000
        with safe_open(trip["hf"] / name, "np") as file:
            assert file.metadata() == {"format": "pt"}
            assert {index["weight_map"][key] for key in file.keys()} == {name}  # noqa: SIM118


def test_the_manifest_says_where_everything_comes_from(trip):
    manifest = read_manifest(trip["ours"])
    weights = [p for p in trip["from"].iterdir() if p.suffix in (".bin", ".safetensors")]
    digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in weights}
    assert manifest["source_files"] == digests and digests
    card = (trip["ours"] / "MODEL_CARD.md").read_text()
    for text in (*digests, *digests.values(), *manifest["dropped"], manifest["source"], "DeepSeek"):
        assert text in card
    assert bool(manifest["dropped"]) == (manifest["source_layout"] == "deepseek")
    for to in SAVE:  # the facts go on to what is made of it
        facts = json.loads((trip[to] / "conversion.json").read_text())
        for fact in ("source", "revision", "source_layout", "source_files", "dropped"):
            assert facts[fact] == manifest[fact]
        for text in (*digests.values(), manifest["source"]):
            assert text in (trip[to] / "README.md").read_text()
        assert set(facts["tensors"]) == set(stored(trip[to]))
    assert str(trip["from"].parent) not in "".join([card, json.dumps(manifest)])


def test_ours_loads_and_has_their_tokenizer_and_settings(trip):
    loaded = load_model(trip["ours"], dtype="float32")
    assert loaded.processor == SETTINGS
    assert loaded.tokenizer.encode("schön") == fakes.deepseek_like().encode("schön")


def test_transformers_loads_the_export_and_agrees(trip):
    """Both load the same export, we by way of a second conversion."""
    peer, info = transformers.JanusForConditionalGeneration.from_pretrained(
        trip["hf"], dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    loaded = load_model(trip["ours"], dtype="float32")
    model = nnx.merge(loaded.graphdef, loaded.params)
    tokens = np.random.default_rng(0).integers(8, loaded.config.llm.vocab_size, (2, 9))
    tokens[tokens == fakes.deepseek_like().image_placeholder] = 8
    embedded = model.embed(jnp.asarray(tokens))
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    hidden = model.hidden(embedded, positions, jnp.ones((2, 9), bool))
    ours = np.asarray(model.text_logits(hidden))
    with torch.no_grad():
        theirs = peer.eval()(input_ids=torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_dtypes_that_are_fused_lose_nothing(tmp_path):
    """DeepSeek has one matrix where we have three."""
    save_hf(tmp_path / "from", torch.bfloat16)
    key = "model.vision_model.encoder.layers.0.self_attn.{}_proj.weight"
    (shard,) = [p for p in (tmp_path / "from").glob("*.safetensors") if key.format("k") in _keys(p)]
    tensors = load_file(shard)
    tensors[key.format("k")] = torch.full_like(tensors[key.format("k")], 0.1, dtype=torch.float32)
    save_file(tensors, shard, metadata={"format": "pt"})
    convert(open_source(tmp_path / "from"), tmp_path / "to", to="deepseek")
    fused = stored(tmp_path / "to")["vision_model.vision_tower.blocks.0.attn.qkv.weight"]
    q, k, v = fused.chunk(3)
    assert torch.equal(k, tensors[key.format("k")]) and k.dtype == torch.float32
    before = stored(tmp_path / "from")
    assert torch.equal(q, before[key.format("q")].float())
    assert torch.equal(v, before[key.format("v")].float())


def _keys(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_damaged_weights_are_not_passed_on(trip, tmp_path):
    shutil.copytree(trip["ours"], tmp_path / "copy")
    path = tmp_path / "copy" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tensors"]["llm/norm/scale"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="parameter 'llm/norm/scale' is damaged"):
        convert(open_source(tmp_path / "copy"), tmp_path / "hf", to="hf")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("to", SAVE)
def test_the_shipped_model_leaves_and_comes_back_bit_for_bit(to, folder):
    emoji = assets_directory() / "emoji"
    convert(open_source(emoji), folder / f"emoji-{to}", to=to)
    again = folder / f"emoji-{to}-again"
    convert(open_source(folder / f"emoji-{to}"), again)
    assert read_manifest(again)["tensors"] == read_manifest(emoji)["tensors"]
    for name in ("config.json", "preprocessor.json"):
        assert (again / name).read_bytes() == (emoji / name).read_bytes(), name
    first, second = load_model(emoji), load_model(again)
    assert second.fingerprint == first.fingerprint
    text = "a red apple, 一个红苹果"
    assert second.tokenizer.encode(text) == first.tokenizer.encode(text)


def test_the_dtype_asked_for(trip, tmp_path):
    convert(open_source(trip["from"]), tmp_path / "half", to="hf", dtype="bfloat16")
    found, wanted = stored(tmp_path / "half"), peers.hf_state(torch.float32)
    exact = next(iter(stored(trip["hf"]).values())).dtype == torch.float32
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    for key, tensor in wanted.items():
        assert not exact or torch.equal(found[key], tensor.to(torch.bfloat16)), key
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("to", ["orbax", *SAVE])
def test_the_listing_is_what_happens(to, trip):
    listed = lines(open_source(trip["from"]), to, None)
    total = sum(line.nbytes for line in listed)
    if to == "orbax":
        tensors = read_manifest(trip["ours"])["tensors"]
        assert {line.destination: list(line.shape) for line in listed} == {
            key: value["shape"] for key, value in tensors.items()
        }
    else:
        found = stored(trip[to])
        assert {line.destination for line in listed} == set(found)
        for line in listed:
            if "to rows" not in line.transform:
                assert line.shape == tuple(found[line.destination].shape), line
        assert total == sum(t.nbytes for t in found.values())
    keys = {line.source for line in listed}
    state = peers.hf_state(torch.float32)
    assert keys in (set(state), set(peers.deepseek_state(state)) - set(peers.DROPPED))


def test_what_is_at_the_destination_is_replaced_only_on_request(trip, tmp_path):
    source = open_source(trip["from"])
    target = tmp_path / "model"
    convert(source, target)
    with pytest.raises(InputError, match="holds something"):
        convert(source, target)
    convert(source, target, to="hf", overwrite=True)
    assert not (target / "manifest.json").exists() and (target / "conversion.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not a converted model"):
        convert(source, tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model"]


@pytest.mark.parametrize("to", ["orbax", *SAVE])
def test_what_others_put_into_a_converted_model_is_not_deleted(to, trip, tmp_path):
    source, target = open_source(trip["from"]), tmp_path / "model"
    convert(source, target, to=to)
    card = target / ("MODEL_CARD.md" if to == "orbax" else "README.md")
    left = card.with_name(f".{card.name}.writing")
    left.write_text("what a killed --verify leaves")
    convert(source, target, to=to, overwrite=True)
    assert card.is_file() and not left.exists()
    (target / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not a converted model"):
        convert(source, target, to=to, overwrite=True)
    assert (target / "notes.txt").exists()


@pytest.mark.parametrize("name", ["manifest.json", "conversion.json"])
def test_a_file_of_anybody_by_our_name_marks_nothing(name, trip, tmp_path):
    (tmp_path / name).write_text('{"name": "a page"}')
    with pytest.raises(InputError, match="is not a converted model"):
        convert(open_source(trip["from"]), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_disk_without_room_is_refused_before_anything_is_written(trip, tmp_path, monkeypatch):
    monkeypatch.setattr("janus_jax.atomic.free_bytes", lambda path: 1_000_000)
    with pytest.raises(InputError, match=r"takes 0\.02 GB; its disk has 0\.00 GB free"):
        convert(open_source(trip["from"]), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
