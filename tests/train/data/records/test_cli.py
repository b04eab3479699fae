"""`janus-jax data`, from files to a data set with image tokens."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from janus_jax.checkpoint import load_model
from janus_jax.errors import InputError
from janus_jax.processing.image import generation_pixels, load_image
from tests.train.data.records.files import COUNT, captions_jsonl, picture, turns, write_jsonl
from train.data.records.cli import main
from train.data.records.shards import open_records


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    captions_jsonl(folder)
    chats = write_jsonl(folder / "chats.jsonl", [{"turns": turns(i)} for i in range(3)])
    arguments = [str(folder / "captions.jsonl"), str(chats), "--out", str(folder / "set")]
    assert main(["pack", *arguments, "--captions", "both", "--workers", "1"]) == 0
    return folder / "set"


def test_inspect_counts_measures_and_draws(packed: Path, tmp_path: Path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", str(packed), "--sheet", str(sheet), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {k: v["records"] for k, v in report["kinds"].items()} == {
        "understanding": COUNT,
        "text": 3,
        "generation": COUNT,
    }
    assert report["kinds"]["generation"]["picture_sides"] == {"min": 12, "median": 16, "max": 25}
    # 36 image tokens and begin-of-image, BOS and a caption.
    assert report["kinds"]["generation"]["tokens"]["min"] > 38
    assert report["kinds"]["text"]["picture_sides"] is None
    with Image.open(sheet) as image:
        assert image.size == (6 * 128, 4 * (128 + 28))  # 20 pictures, 6 a row
        colours = {image.getpixel((x * 128 + 64, 64)) for x in range(6)}
    assert len(colours) == 6


def test_inspect_prints_a_table(packed: Path, capsys):
    assert main(["inspect", str(packed), "--samples", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["understanding", "10", "records"],
        ["text", "3", "records"],
        ["generation", "10", "records"],
    ]


def test_encode_adds_the_models_own_codes_and_goes_on_after_a_stop(
    packed: Path, tmp_path: Path, capsys
):
    out = tmp_path / "codes"
    assert main(["encode", str(packed), "--out", str(out), "--model", "debug", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == {"generation": COUNT}
    loaded = load_model("debug")
    size = loaded.config.image_size
    records = open_records(out).kinds["generation"]
    pixels = np.stack([generation_pixels(load_image(picture(i)), size) for i in range(COUNT)])
    expected = nnx.merge(loaded.graphdef, loaded.params).vq_encode(jnp.asarray(pixels))
    np.testing.assert_array_equal([r.codes for r in records], expected)
    assert [(r.caption, r.images) for r in records][3] == ("picture number 3", ())
    before = (out / "generation/00000.array_record").stat().st_mtime_ns
    (out / "manifest.json").unlink()
    main(["encode", str(packed), "--out", str(out), "--model", "debug"])
    assert (out / "generation/00000.array_record").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="begun with other inputs or settings"):
        main(["encode", str(packed), "--out", str(out), "--model", "debug", "--keep-images"])


def test_a_flipped_bit_is_named_by_inspect_and_encode(packed: Path, tmp_path: Path, capsys):
    damaged = Path(shutil.copytree(packed, tmp_path / "set"))
    (shard,) = (damaged / "generation").iterdir()
    content = bytearray(shard.read_bytes())
    content[content.index(b"picture number 3")] ^= 1
    shard.write_bytes(content)
    assert main(["inspect", str(damaged), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["kinds"]["generation"]
    [(name, reason)] = report["unreadable"].items()
    assert name == "generation[3]" and f"{damaged}/generation[3] is damaged (" in reason
    with pytest.raises(InputError, match=r"generation\[3\] is damaged \(.*pack the data again"):
        main(["encode", str(damaged), "--out", str(tmp_path / "codes"), "--model", "emoji"])


def test_encode_over_a_mesh_gives_the_same_codes(packed: Path, tmp_path: Path):
    mesh = f"fsdp={jax.device_count() // 2},tensor=2"
    for name, how in (("one", []), ("mesh", ["--mesh", mesh])):
        main(["encode", str(packed), "--out", str(tmp_path / name), "--model", "debug", *how])
    one, spread = (open_records(tmp_path / n).kinds["generation"] for n in ("one", "mesh"))
    assert len(one) == len(spread) == COUNT
    np.testing.assert_array_equal([r.codes for r in spread], [r.codes for r in one])


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["encode", "x", "--out", "y", "--mesh", "fsdp=3"], "--mesh.*has 3 places for"),
        (["fetch"], "unknown command 'data fetch'; allowed: pack, encode, inspect, ids"),
        (["pack", "--out", "x"], "INPUT is missing"),
        (["pack", "a.jsonl", "--out", "x", "--workers", "0"], "--workers is 0"),
        (["pack", "a.jsonl", "--out", "x", "--max-broken", "2"], "--max-broken is 2.0"),
        (["inspect", "nowhere"], "'nowhere' is no packed data set"),
    ],
)
def test_bad_arguments(argv: list[str], reason: str):
    with pytest.raises(InputError, match=reason):
        main(argv)
