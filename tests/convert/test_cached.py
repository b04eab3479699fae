"""Checkpoints of the hub, and PyTorch weights named as a model; all without a network."""

import io
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors

from convert import cached, hub
from janus_jax.api import Janus
from janus_jax.checkpoint import load_model
from janus_jax.cli.main import run
from janus_jax.errors import InputError
from janus_jax.locate import find_model, is_model
from tests.convert import peers
from tests.convert.whole import save_deepseek

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "someone/Janus-Tiny"


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources") / "janus-tiny"
    save_deepseek(path, torch.float32)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JANUS_JAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub_cache(deepseek: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as huggingface_hub lays it out: blobs, and snapshots of links to them."""
    root = tmp_path / "hub"
    repository = root / f"models--{ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(deepseek.iterdir())):
        shutil.copy(path, repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return root


def test_a_model_of_the_hub_is_converted_once(hub_cache, cache, capsys):
    first = load_model(ID, dtype="float32")
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1 and f"converting {ID}@{COMMIT} once" in notice
    assert first.source == f"{ID}@{COMMIT} (deepseek layout)"
    (made,) = cache.iterdir()
    assert made.name.startswith("someone--Janus-Tiny-") and is_model(made)
    for name in (ID, f"{ID}@main", f"{ID}@{COMMIT}"):
        assert find_model(name) == made
    assert capsys.readouterr().err == ""


def test_a_link_out_of_the_hubs_cache_is_refused(hub_cache, cache, tmp_path):
    (weights,) = hub_cache.rglob("pytorch_model.bin")
    shutil.move(weights.resolve(), tmp_path / "elsewhere.bin")
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        find_model(ID)
    assert not cache.exists()


@pytest.mark.parametrize("name", [f"{ID}@v2", "someone/else"])
def test_what_is_not_there_is_said_in_one_line(name, hub_cache, cache, capsys):
    assert run(["convert", name, str(cache / "x")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is not in the Hugging Face cache" in error
    assert run(["chat", "hi", "--model", name]) == 2
    assert f"--model: {name!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (errors.GatedRepoError, "asks for its terms to be accepted.*hf auth login"),
        (errors.RepositoryNotFoundError, "there is no model 'a/b@v1' on the Hugging Face hub"),
        (errors.RevisionNotFoundError, "'a/b' has no revision 'v1'"),
        (errors.HfHubHTTPError, r"'a/b@v1' cannot be fetched \(too many requests\)"),
        (OSError, r"'a/b@v1' cannot be fetched \(too many requests\)"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(error, match, monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        failure = error.__new__(error)
        Exception.__init__(failure, "too many requests\nand a page about it")
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=match) as caught:
        hub.fetch("a/b@v1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.py"], ["model.safetensors"]),
        (["pytorch_model.bin", "model.py", "training_args.bin"], ["pytorch_model.bin"]),
    ],
)
def test_weights_are_fetched_once_and_no_code(files, fetched, tmp_path, monkeypatch):
    import huggingface_hub

    def download(repo, *, revision, allow_patterns):
        assert repo == "a/b" and revision in (None, COMMIT)
        (tmp_path / COMMIT).mkdir(exist_ok=True)
        for name in (*files, "config.json"):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / COMMIT / name).touch()
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    snapshot = hub.fetch("a/b")
    assert snapshot == hub.Snapshot(tmp_path / COMMIT, COMMIT)
    assert sorted(path.name for path in snapshot.path.iterdir()) == ["config.json", *fetched]


@pytest.mark.parametrize("name", ["a", "a/b/c", "../b", "a b/c", "a/b@", "~/b", "a/.b", "a/b@x y"])
def test_what_is_no_id_is_not_looked_for(name):
    assert not hub.is_id(name)


def test_a_directory_is_converted_anew_when_it_changes(deepseek, cache, tmp_path, capsys):
    source = tmp_path / "mine"
    shutil.copytree(deepseek, source)
    first = find_model(source)
    assert find_model(source) == first and list(cache.iterdir()) == [first]
    state = peers.deepseek_state(peers.hf_state(torch.float32))
    state["gen_embed.weight"] += 1
    torch.save(state, source / "pytorch_model.bin")
    second = find_model(str(source))
    assert second != first
    assert capsys.readouterr().err.count("\n") == 2
    model = Janus.from_pretrained(source)
    assert model.fingerprint == load_model(second).fingerprint != load_model(first).fingerprint


def test_processes_that_ask_at_the_same_time_convert_once(deepseek, cache, monkeypatch):
    """Threads stand for them: each opens the lock for itself."""
    begun, calls = threading.Event(), []

    def slow(source, target):
        calls.append(target)
        begun.set()
        end = time.monotonic() + 10
        while "waiting for another" not in err.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        convert(source, target)

    convert, err = cached.convert, io.StringIO()
    monkeypatch.setattr(cached, "convert", slow)
    monkeypatch.setattr(sys, "stderr", err)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(find_model, deepseek)
        assert begun.wait(60)
        second = threads.submit(find_model, deepseek)
        assert first.result() == second.result() == calls[0]
    assert len(calls) == 1
    assert f"waiting for another process to convert {deepseek}\n" in err.getvalue()


def test_a_checkpoint_that_cannot_be_converted_leaves_nothing(cache, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        find_model(tmp_path)
    assert not cache.exists()
