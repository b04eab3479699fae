import json

import pytest
from PIL import Image

from janus_jax import Janus
from janus_jax.cli import main
from janus_jax.processing import image as images

QUESTION = "What is this?"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 30), (255, 0, 0)).save(path)
    return path


@pytest.fixture
def run(debug_dir, capsys):
    def call(*arguments: str, model: str = str(debug_dir)):
        status = main.run(["chat", *map(str, arguments), "--model", model, "--max-tokens", "12"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def refused(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("janus-jax: error: ") and err.count("\n") == 1, err
    return err


def test_the_answer_is_that_of_the_library(run, debug_dir, picture):
    want = Janus.from_pretrained(debug_dir).chat(QUESTION, [picture], max_tokens=12)
    status, out, err = run(QUESTION, "--image", picture)
    assert (status, out.strip(), err) == (0, want, "")
    status, out, err = run(QUESTION, "--image", picture, "--json")
    assert (status, json.loads(out), err) == (0, {"text": want}, "")
    assert out.count("\n") == 1


def test_several_pictures_in_either_spelling(run, picture, tmp_path):
    blue = tmp_path / "blue.png"
    Image.new("RGB", (10, 30), (0, 0, 255)).save(blue)
    together = run(QUESTION, "--image", picture, blue)
    assert together[0] == 0
    assert run(QUESTION, "--image", picture, "--image", blue) == together
    assert run(QUESTION, "--image", blue)[1] != together[1]


def test_no_picture_and_sampling(run):
    first = run("hello", "--temperature", "1", "--seed", "4")
    assert first[0] == 0
    assert run("hello", "--temperature", "1", "--seed", "4") == first
    assert run("hello", "--temperature", "1", "--seed", "5")[1] != first[1]


def test_the_other_settings_are_those_of_the_library(run, debug_dir):
    chat = Janus.from_pretrained(debug_dir, dtype="int8").start_chat(
        "S" * 40, temperature=1.0, top_k=20, top_p=0.9, seed=2
    )
    want = chat.ask("hello", max_tokens=12)
    flags = [
        "--temperature",
        "1",
        "--top-k",
        "20",
        "--top-p",
        "0.9",
        "--seed",
        "2",
        "--dtype",
        "int8",
    ]
    status, out, err = run("hello", "--system", "S" * 40, *flags, "--json")
    assert (status, json.loads(out), err) == (0, {"text": want}, "")


def test_broken_pictures_exit_2_with_one_line(run, picture, tmp_path, monkeypatch):
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    half = tmp_path / "half.png"
    half.write_bytes(picture.read_bytes()[:60])
    for path, why in [
        (tmp_path / "gone.png", "does not exist"),
        (tmp_path, "not a regular file"),
        (text, "not an image"),
        (half, "broken"),
    ]:
        line = refused(run(QUESTION, "--image", picture, path))
        assert "--image" in line and str(path) in line and why in line
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    monkeypatch.setattr(images.load_image, "__defaults__", (100,))
    assert "too big: 40x30" in refused(run(QUESTION, "--image", picture))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["  "], "QUESTION is ' '"),
        ([QUESTION, "--image"], "--image"),
        ([QUESTION, "--temperature", "-1"], "--temperature is -1.0"),
        ([QUESTION, "--seed", str(2**32)], "--seed is"),
        ([QUESTION, "--top-k", "0"], "--top-k is 0"),
        ([QUESTION, "--top-p", "1.5"], "--top-p is 1.5"),
        ([QUESTION, "--mesh", "rows=2"], "--mesh: mesh 'rows=2'"),
        (["word " * 600], "too long"),
        ([QUESTION, "--mesh", "fsdp=3"], "--mesh: mesh {'fsdp': 3}"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(run, arguments, named):
    assert named in refused(run(*arguments))


def test_a_question_after_the_pictures_is_explained(run, picture):
    line = refused(run("--image", picture, QUESTION))
    assert "QUESTION" in line and "before --image" in line


def test_an_unknown_model_is_refused(run):
    assert "--model: there is no model 'gpt'" in refused(run(QUESTION, model="gpt"))


def test_the_shipped_model_is_the_default(capsys, picture):
    assert main.run(["chat", QUESTION, "--image", str(picture), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]
