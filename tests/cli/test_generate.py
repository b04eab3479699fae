import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax import Janus, picture_file
from janus_jax.cli import main
from janus_jax.generate import image as draw

APPLE = "a red apple"


@pytest.fixture
def run(debug_dir, tmp_path, capsys):
    def call(*arguments: str, model: str = str(debug_dir), out: str = str(tmp_path / "out")):
        status = main.run(["generate", *arguments, "--model", model, "--out", out])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def refused(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("janus-jax: error: ") and err.count("\n") == 1, err
    return err


def test_pictures_are_written_and_listed(run, debug_dir, tmp_path):
    status, out, err = run(APPLE, "黑猫 / Katze!", "--n", "2", "--seed", "7")
    assert (status, err) == (0, "")
    names = [
        "a-red-apple-seed7-0",
        "a-red-apple-seed7-1",
        "黑猫-katze-seed7-0",
        "黑猫-katze-seed7-1",
    ]
    assert out.splitlines() == [str(tmp_path / "out" / f"{name}.png") for name in names]
    janus = Janus.from_pretrained(debug_dir)
    want = janus.generate_images([APPLE, "黑猫 / Katze!"], 2, seed=7)
    for path, image in zip(out.splitlines(), [i for row in want for i in row], strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image))


def test_json_is_one_object_and_nothing_else(run):
    _, out, err = run(APPLE, "--n", "2", "--json")
    assert err == ""
    assert out.count("\n") == 1
    paths = json.loads(out)["images"]
    assert len(paths) == 2 and all(Image.open(path).format == "PNG" for path in paths)
    assert set(json.loads(out)) == {"images"}


def test_a_file_says_how_to_draw_it_again(run, debug_dir):
    flags = ["--cfg", "2.5", "--temperature", "0.5", "--top-k", "9", "--top-p", "0.5"]
    [_, path] = run("黑猫", "--n", "2", "--seed", "3", *flags, "--dtype", "float32")[1].split()
    with Image.open(path) as image:
        text, pixels = image.text, np.asarray(image)
    settings = json.loads(text["settings"])
    assert settings == {
        "cfg": 2.5,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.5,
        "dtype": "float32",
    }
    janus = Janus.from_pretrained(debug_dir, dtype=settings.pop("dtype"))
    assert text["model"] == f"debug {janus.fingerprint}"
    assert text["Software"].startswith("janus-jax ")
    index = int(text["index"])
    again = janus.generate_images([text["prompt"]], index + 1, seed=int(text["seed"]), **settings)
    assert np.array_equal(again[0][index], pixels)


def test_a_file_is_drawn_again_by_one_flag(run, tmp_path):
    flags = ["--cfg", "2.5", "--temperature", "0.5", "--top-k", "9"]
    [_, path] = run("黑猫", "--n", "2", "--seed", "3", *flags)[1].split()
    copy = tmp_path / "copy.png"
    Path(path).rename(copy)
    status, out, err = run("--again", str(copy))
    assert (status, err, out.strip()) == (0, "", path)
    assert Path(path).read_bytes() == copy.read_bytes()


def test_a_picture_of_other_weights_or_of_nobody_is_not_drawn_again(run, tmp_path):
    [path] = run(APPLE)[1].split()
    with Image.open(path) as image:
        image.save(tmp_path / "bare.png")
    assert "does not say how it was drawn" in refused(run("--again", str(tmp_path / "bare.png")))
    content = Path(path).read_bytes()
    assert "was drawn by another model, 'debug'" in refused(run("--again", path, model="emoji"))
    assert Path(path).read_bytes() == content


@pytest.mark.parametrize("settings", ["7", "null", '"cfg"', '["dtype"]', "{}", "not json"])
def test_settings_that_are_none_are_refused(run, tmp_path, settings):
    about = {"prompt": APPLE, "seed": "0", "index": "0", "model": "debug 0", "settings": settings}
    path = tmp_path / "odd.png"
    path.write_bytes(picture_file.encode(Image.new("RGB", (4, 4)), about))
    assert "odd.png' does not say how it was drawn" in refused(run("--again", str(path)))


def test_a_bad_prompt_fails_alone_and_by_name(run):
    status, out, err = run(APPLE, "  ", "word " * 600, "b")
    assert status == 2
    assert [Path(p).name for p in out.split()] == ["a-red-apple-seed0-0.png", "b-seed0-0.png"]
    assert [line.split(":")[2] for line in err.splitlines()] == [
        " prompt 2 of 4",
        " prompt 3 of 4 is too long",
    ]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_stop_loses_nothing_that_was_drawn(run, tmp_path, monkeypatch, stop):
    begin, calls = draw.begin, []

    def second_time(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise stop
        return begin(*args, **kwargs)

    monkeypatch.setattr(draw, "begin", second_time)
    status = run(APPLE, "--n", "3", "--at-once", "2")
    assert status[0] in (1, 130) and status[1] == ""
    assert f"janus-jax: 2 pictures are in {tmp_path / 'out'}" in status[2]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a-red-apple-seed0-0.png", "a-red-apple-seed0-1.png"]
    monkeypatch.undo()
    assert len(run(APPLE, "--n", "3")[1].split()) == 3


def test_the_same_picture_keeps_its_file_and_another_never_takes_it(run):
    [first] = run(APPLE)[1].split()
    content = Path(first).read_bytes()
    assert run(APPLE)[1].split() == [first]
    [second] = run(APPLE, "--temperature", "0.3")[1].split()
    assert second == first.replace(".png", "-2.png")
    assert Path(first).read_bytes() == content


def test_a_long_prompt_makes_a_short_name(run):
    [path] = run("猫" * 100)[1].split()
    assert len(os.path.basename(path).encode()) < 160


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "PROMPT is missing"),
        ([""], "prompt 1 of 1: the prompt is empty"),
        ([APPLE, "--n", "0"], "--n is 0; allowed: a whole number from 1 to"),
        ([APPLE, "--n", "-2"], "--n is -2"),
        ([APPLE, "--n", "two"], "--n"),
        ([APPLE, "--cfg", "nan"], "--cfg is nan"),
        ([APPLE, "--temperature", "-1"], "--temperature is -1.0"),
        ([APPLE, "--top-k", "0"], "--top-k is 0"),
        ([APPLE, "--top-p", "1.5"], "--top-p is 1.5"),
        ([APPLE, "--seed", "-1"], "--seed is -1"),
        ([APPLE, "--dtype", "int4"], "int4"),
        ([APPLE, "--mesh", "rows=2"], "--mesh"),
        ([APPLE, "--mesh", "fsdp=3"], "--mesh"),
        ([APPLE, "--first", "-1"], "--first is -1"),
        ([APPLE, "--at-once", "0"], "--at-once is 0"),
        (["--again", "gone.png"], "'gone.png' does not exist"),
        ([APPLE, "--again", "gone.png"], "--again 'gone.png' and PROMPT are both given"),
        (["--again", "gone.png", "--n", "2"], "and --n are both given"),
        (["--again", "gone.png", "--top-k", "9"], "and --top-k are both given"),
        (["--again", "gone.png", "--dtype", "float32"], "and --dtype are both given"),
        (["word " * 600], "too long"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(run, arguments, named):
    assert named in refused(run(*arguments))


def test_an_unknown_model_is_refused_before_jax_loads(run):
    assert "--model: there is no model 'emojii'; allowed: emoji" in refused(
        run(APPLE, model="emojii")
    )
    program = (
        "import sys\nfrom janus_jax.cli import main\n"
        "assert main.run(['generate', 'x', '--n', '-1']) == 2\n"
        "assert main.run(['chat', 'x', '--model', 'emojii']) == 2\n"
        "assert not {'flax', 'orbax', 'janus_jax.api'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.DEVNULL)


def test_a_directory_that_is_none_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/deeper"):
        assert "--out" in refused(run(APPLE, out=str(tmp_path / out)))


def test_an_unwritable_directory_is_refused(run, tmp_path, monkeypatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    # The superuser may write anywhere; the answer of the system is what counts.
    monkeypatch.setattr(picture_file.os, "access", lambda *_: False)
    assert "is not writable" in refused(run(APPLE, out=str(folder)))


def test_a_damaged_model_exits_2(run, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    assert "--model" in refused(run(APPLE, model=str(tmp_path / "model")))


def test_the_shipped_model_is_the_default(tmp_path, capsys):
    assert main.run(["generate", "red apple", "--out", str(tmp_path), "--json"]) == 0
    [path] = json.loads(capsys.readouterr().out)["images"]
    assert Image.open(path).text["model"].startswith("emoji ")
