import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from janus_jax import functional, memory, sharding
from janus_jax.api import Janus
from janus_jax.checkpoint import load_model, save_model
from janus_jax.config import DEBUG, EMOJI
from janus_jax.errors import InputError
from janus_jax.locate import find_model
from janus_jax.params_io import restore_params, save_params
from janus_jax.quantize import is_quantized, quantize, quantize_kernel
from tests.debug_model import CARD, processor, random_params
from tests.processing.fakes import emoji_like


@pytest.fixture(scope="module")
def params() -> nnx.State:
    return random_params(DEBUG)


@pytest.fixture
def copy(debug_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(debug_dir, tmp_path / "copy"))


def arrays(tree: nnx.State) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in functional.flat_params(tree).items()}


def test_a_model_comes_back_as_it_was(debug_dir, debug_model, params):
    assert sorted(p.name for p in debug_dir.iterdir()) == [
        "MODEL_CARD.md",
        "config.json",
        "manifest.json",
        "params",
        "preprocessor.json",
        "tokenizer.json",
    ]
    assert debug_model.config == DEBUG
    assert debug_model.processor == processor(DEBUG)
    assert debug_model.tokenizer.to_json() == emoji_like().to_json()
    assert debug_model.card_text == CARD
    assert (debug_model.source, debug_model.stored_dtype) == ("tests", "bfloat16")
    assert debug_model.graphdef == functional.abstract(DEBUG)[0]
    want, got = arrays(params), arrays(debug_model.params)
    assert list(want) == list(got)
    for key in want:
        assert got[key].dtype == np.float32
        np.testing.assert_array_equal(got[key], want[key].astype(ml_dtypes.bfloat16), err_msg=key)


def test_the_manifest_describes_every_tensor(debug_dir, params):
    manifest = json.loads((debug_dir / "manifest.json").read_text())
    assert manifest["source"] == "tests"
    assert {"janus-jax", "jax", "orbax-checkpoint"} <= set(manifest["versions"])
    for key, value in arrays(params).items():
        entry = manifest["tensors"][key]
        assert entry["shape"] == list(value.shape)
        assert entry["dtype"] == "bfloat16"
        assert len(entry["sha256"]) == 64


def test_what_we_ship_fits(tmp_path):
    # Random normals, which compress worse than trained weights do.
    save_params(tmp_path / "params", random_params(EMOJI), dtype="bfloat16")
    size = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert size < 11.5 * 2**20, size


def test_parts_of_a_model_are_kept_exactly_and_replaced_whole(tmp_path, params):
    part = nnx.State({"vq": params["vq"], "aligner": params["aligner"]})
    save_params(tmp_path / "p", params)
    save_params(tmp_path / "p", part)
    back = restore_params(tmp_path / "p", part)
    assert jax.tree.structure(back) == jax.tree.structure(part)
    for key, value in arrays(part).items():
        np.testing.assert_array_equal(arrays(back)[key], value)


def test_any_mesh_can_be_the_target(debug_dir, debug_model):
    mesh = sharding.make_mesh({"fsdp": 2, "data": 4})
    wanted = functional.abstract(DEBUG)[1]
    # 3 heads of 16 over 2 ways of fsdp: every embed axis of the debug model divides by two.
    shardings = sharding.param_shardings(wanted, mesh)
    placed = restore_params(debug_dir / "params", wanted, shardings)
    leaf = functional.flat_params(placed)["llm/layers/0/mlp/gate/kernel"]
    assert len(leaf.sharding.device_set) == 8
    assert leaf.addressable_shards[0].data.shape == (24, 80)
    for key, value in arrays(debug_model.params).items():
        np.testing.assert_array_equal(arrays(placed)[key], value, err_msg=key)


def test_a_model_loads_onto_a_mesh_in_another_dtype(debug_dir, debug_model):
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    placed = functional.flat_params(
        Janus.from_pretrained(debug_dir, dtype="bfloat16", mesh=mesh).params
    )
    gate = placed["llm/layers/0/mlp/gate/kernel"]
    assert gate.addressable_shards[0].data.shape == (12, 40)
    for key, value in arrays(debug_model.params).items():
        assert placed[key].dtype == ml_dtypes.bfloat16 and len(placed[key].sharding.device_set) == 8
        np.testing.assert_array_equal(
            np.asarray(placed[key]).astype(np.float32),
            value.astype(ml_dtypes.bfloat16),
            err_msg=key,
        )


@pytest.mark.parametrize("sizes", [None, {"fsdp": 2, "tensor": 2, "data": 2}])
def test_int8_is_that_of_the_loaded_weights(debug_dir, sizes):
    mesh = None if sizes is None else sharding.make_mesh(sizes)
    wide = load_model(debug_dir, dtype="float32", mesh=mesh)
    graphdef, params = quantize(wide.graphdef, wide.params)
    loaded = load_model(debug_dir, dtype="int8", mesh=mesh)
    assert loaded.graphdef == graphdef
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    want = functional.flat_params(params)
    for key, value in functional.flat_params(loaded.params).items():
        assert (value.dtype, value.sharding) == (want[key].dtype, want[key].sharding), key
        np.testing.assert_array_equal(value, want[key], err_msg=key)


def test_int8_takes_one_wide_matrix_at_a_time(debug_dir, monkeypatch):
    shape = (DEBUG.llm.width, DEBUG.llm.mlp_dim)

    def wide() -> int:
        return sum(x.shape == shape and x.dtype != np.int8 for x in jax.live_arrays())

    before, seen = wide(), []

    def spy(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not isinstance(kernel, jax.core.Tracer):  # nor the shapes alone
            seen.append(wide() - before)
        return quantize_kernel(kernel)

    monkeypatch.setattr("janus_jax.quantize.quantize_kernel", spy)
    narrow = memory.param_bytes(load_model(debug_dir, dtype="int8").params)
    assert len(seen) == 7 * DEBUG.llm.depth + 3 and max(seen) == 1
    # So that is what must be free, and not the wider weights.
    monkeypatch.setenv("JANUS_JAX_MEMORY_GB", str((narrow + 10) / 1e9))
    assert is_quantized(load_model(debug_dir, dtype="int8").params)
    with pytest.raises(InputError, match="narrower dtype"):
        load_model(debug_dir, dtype="float32")
    monkeypatch.setenv("JANUS_JAX_MEMORY_GB", str((narrow - 10) / 1e9))
    with pytest.raises(InputError, match=r"takes .* on a device"):
        load_model(debug_dir, dtype="int8")


@pytest.mark.parametrize("dtype", ["int8", np.int8, jnp.int8, np.dtype("int8")])
def test_int8_by_any_name_is_rounded_not_cast(debug_dir, dtype):
    flat = functional.flat_params(load_model(debug_dir, dtype=dtype).params)
    assert flat["llm/lm_head/scale"].dtype == np.float32
    assert flat["llm/embed/embedding"].dtype != np.int8


@pytest.mark.parametrize("dtype", ["int16", jnp.int16, "fp16", "float16", float, "", [1], object()])
def test_other_dtypes_are_refused(debug_dir, dtype):
    with pytest.raises(InputError, match=r"^dtype is .* allowed: float32, bfloat16, int8$"):
        load_model(debug_dir, dtype=dtype)


def test_weights_that_were_rounded_are_not_saved(params, tmp_path):
    arguments = (DEBUG, params, emoji_like(), processor(DEBUG))
    save_model(tmp_path / "wide", *arguments, card_text="")
    rounded = Janus.from_pretrained(tmp_path / "wide", dtype="bfloat16")
    with pytest.raises(InputError, match=r"stored in float32 .* rounded to bfloat16; fix: load it"):
        rounded.save_pretrained(tmp_path / "copy")
    exact = Janus.from_pretrained(tmp_path / "wide", dtype="float32")
    exact.save_pretrained(tmp_path / "copy")
    assert load_model(tmp_path / "copy").fingerprint == exact.fingerprint

    flat = functional.flat_params(params)
    flat["llm/norm/scale"] = flat["llm/norm/scale"].astype(jnp.bfloat16)
    mixed = functional.unflatten_params(params, flat)
    save_model(tmp_path / "mixed", DEBUG, mixed, *arguments[2:], card_text="")
    with pytest.raises(InputError, match="stored in several precisions"):
        Janus.from_pretrained(tmp_path / "mixed", dtype="bfloat16").save_pretrained(tmp_path / "c")


def test_other_parameters_are_refused_by_name(tmp_path, params):
    part = nnx.State({"aligner": params["aligner"], "image_head": params["image_head"]})
    save_params(tmp_path / "p", part)
    with pytest.raises(InputError, match=r"gen_aligner/fc1/kernel missing.*out/bias unexpected"):
        restore_params(
            tmp_path / "p",
            nnx.State({"aligner": params["aligner"], "gen_aligner": params["gen_aligner"]}),
        )
    wider = functional.abstract(EMOJI)[1]["aligner"]
    narrow = nnx.State({"aligner": wider, "image_head": params["image_head"]})
    with pytest.raises(InputError, match=r"aligner/fc1/bias is \(48,\) instead of \(256,\)"):
        restore_params(tmp_path / "p", narrow)
    with pytest.raises(InputError, match="do not exist"):
        restore_params(tmp_path / "q", part)


def test_changed_weights_are_noticed(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["tensors"]["llm/norm/scale"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"damaged: llm/norm/scale does not match its sha256"):
        load_model(copy)
    assert load_model(copy, verify=False).config == DEBUG


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_damaged_weights_are_refused_wherever_the_damage_is(copy, share):
    data = max((copy / "params").rglob("*"), key=lambda p: p.stat().st_size)
    content = data.read_bytes()
    at = int(share * (len(content) - 64))
    flipped = bytes(byte ^ 0xFF for byte in content[at : at + 64])
    for damaged in (content[:at] + flipped + content[at + 64 :], content[:at]):
        data.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot be read|damaged"):
            load_model(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor.json", "params"])
def test_a_missing_file_is_named(copy, name):
    shutil.rmtree(copy / name) if name == "params" else (copy / name).unlink()
    with pytest.raises(InputError, match=name):
        load_model(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "janus-jax-manifest", "version": 1}'])
def test_a_malformed_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        load_model(copy)


def test_files_of_two_models_are_refused(copy):
    processor(EMOJI).save(copy / "preprocessor.json")
    with pytest.raises(InputError, match=r"image_size 48, config\.json 16"):
        load_model(copy)


def test_a_failed_save_leaves_the_old_model(copy, params, monkeypatch):
    before = (copy / "manifest.json").read_bytes()

    def broken(*_):
        raise OSError("disk full")

    tokenizer = emoji_like()
    monkeypatch.setattr(type(tokenizer), "save", broken)
    with pytest.raises(InputError, match="disk full"):
        save_model(copy, DEBUG, params, tokenizer, processor(DEBUG), card_text="new")
    assert (copy / "manifest.json").read_bytes() == before
    assert load_model(copy).card_text == CARD
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_a_disk_without_room_is_told_before_anything_is_written(copy, params, monkeypatch):
    usage = shutil.disk_usage(copy)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"takes 0\.00 GB; its disk has 0\.00 GB free"):
        save_model(copy, DEBUG, params, emoji_like(), processor(DEBUG), card_text="new")
    assert (copy / "manifest.json").read_bytes() == before
    # Half the width, half the room.
    whole = sum(v.nbytes for v in functional.flat_params(params).values())
    usage = usage._replace(free=whole // 2)
    with pytest.raises(InputError, match="its disk has"):
        save_model(copy, DEBUG, params, emoji_like(), processor(DEBUG), card_text="new")
    save_model(
        copy, DEBUG, params, emoji_like(), processor(DEBUG), card_text="new", dtype="bfloat16"
    )


def test_saving_replaces_a_model_and_nothing_else(copy, params, tmp_path):
    arguments = (DEBUG, params, emoji_like(), processor(DEBUG))
    save_model(copy, *arguments, card_text="new")
    loaded = load_model(copy)
    assert (loaded.card_text, loaded.stored_dtype) == ("new", "float32")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a Janus-JAX model"):
        save_model(tmp_path / "mine", *arguments, card_text="new")
    (copy / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a Janus-JAX model"):
        save_model(copy, *arguments, card_text="newer")
    assert load_model(copy).card_text == "new" and (copy / "notes.txt").exists()
    (tmp_path / "web").mkdir()  # many programs call a file so
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a page", "icons": []}')
    with pytest.raises(InputError, match="not a Janus-JAX model"):
        save_model(tmp_path / "web", *arguments, card_text="new")
    assert [p.name for p in (tmp_path / "web").iterdir()] == ["manifest.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_model(tmp_path / "file" / "model", *arguments, card_text="new")
    with pytest.raises(InputError, match="not those of the architecture"):
        save_model(tmp_path / "new", EMOJI, *arguments[1:], card_text="new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("emojii", "there is no model 'emojii'.*allowed: emoji, debug, a directory"),
        ("janus-pro-7b", "architecture whose weights are not shipped"),
        ("deepseek-ai/Janus-Pro-1B@main", "is not in the Hugging Face cache"),
        ("./a/b", "there is no model.* or a Hugging Face id such as deepseek-ai/Janus-Pro-1B"),
        ("", "not a model"),
        (__file__, "is a file"),
    ],
)
def test_a_name_that_is_no_model_is_explained(name, match):
    with pytest.raises(InputError, match=match):
        find_model(name)
