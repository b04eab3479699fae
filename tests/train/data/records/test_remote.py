"""Inputs on s3:// and gs://: real clients, and a store on this machine that speaks to them."""

import dataclasses
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from janus_jax.cli import main
from janus_jax.errors import InputError
from tests.train.data.records.files import (
    COUNT,
    captions_jsonl,
    captions_parquet,
    captions_tar,
    picture,
    write_jsonl,
)
from tests.train.data.records.object_store import Store, serve
from train import own_data
from train.data.records import remote, sources
from train.data.records.pack import PackSettings, pack
from train.data.records.shards import open_records
from train.presets import PRESETS

SCHEMES = ["s3", "gs"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Buckets: what is in bucket/in, each format twice, is what the tests pack."""
    root = tmp_path_factory.mktemp("buckets")
    folder = root / "bucket" / "in"
    (folder / "more").mkdir(parents=True)
    captions_jsonl(folder)
    for name in ("one.tar", "two.tar", "three.tar.gz"):
        captions_tar(folder / name)
    for name in ("one.parquet", "two.parquet"):
        captions_parquet(folder / name)
    # A name that addresses have to quote, a file of no bytes, and one of too many.
    (folder / "a b+ü#1%.png").write_bytes(picture(1))
    (folder / "empty.png").touch()
    (folder / "large.png").write_bytes(picture(1) + bytes(500))
    (folder / "more" / "0.png").write_bytes(picture(3))
    names = ["0.png", "empty.png", "large.png", "gone.png", "a b+ü#1%.png", "more/0.png"]
    lines = [{"image": f"../{name}", "caption": "x"} for name in names]
    write_jsonl(folder / "more" / "odd.jsonl", lines)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Store]:
    with serve(root) as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
            patch.delenv(name)
        for name in ("AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST"):
            patch.setenv(name, server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        # Nobody is asked who this machine is.
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("NO_GCE_CHECK", "true")
        remote._file_system.cache_clear()
        yield server
        remote._file_system.cache_clear()


@pytest.fixture
def store(server: Store) -> Store:
    server.refused, server.reason, server.lost, server.closed = {}, "", {}, False
    server.asked.clear()
    return server


@pytest.fixture
def new_clients(store: Store) -> Iterator[None]:
    """For tests that change what clients are made from."""
    remote._file_system.cache_clear()
    yield
    remote._file_system.cache_clear()


def packed(out: Path, *inputs: str, workers: int = 1, max_broken: float = 0.0) -> Path:
    pack(PackSettings(inputs, "both"), out, workers=workers, max_broken=max_broken)
    return out


def files(packed_set: Path) -> dict[str, bytes]:
    """What a set holds, without what the sources' names are in."""
    return {
        path.relative_to(packed_set).as_posix(): path.read_bytes()
        for path in packed_set.rglob("*")
        if path.is_file() and path.name not in ("plan.json", "manifest.json")
    }


INPUTS = [
    ["in/captions.jsonl"],
    ["in/one.tar"],
    ["in/one.parquet"],
    ["in/*.tar", "in/t?o.parquet"],
    ["in/[ot]*.parquet"],
    ["*/captions.jsonl"],
    ["in"],
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_packed_set_is_that_of_the_same_files_on_disk(
    store: Store, tmp_path: Path, monkeypatch, scheme
):
    monkeypatch.setattr(sources, "_LINES", 4)  # units of 4, 4 and 2 lines
    monkeypatch.setattr(remote, "_BLOCK", 4000)  # files of many blocks
    for i, names in enumerate(INPUTS):
        here = packed(tmp_path / f"here{i}", *(f"{store.root}/bucket/{n}" for n in names))
        there = packed(tmp_path / f"there{i}", *(f"{scheme}://bucket/{n}" for n in names))
        assert files(here) == files(there), names
        assert len(open_records(there).kinds["generation"]) >= COUNT


def test_two_processes_give_the_same_files_as_one(store: Store, tmp_path: Path):
    inputs = ["s3://bucket/in/captions.jsonl", "gs://bucket/in/one.tar"]
    one = packed(tmp_path / "one", *inputs)
    two = packed(tmp_path / "two", *inputs, workers=2)
    assert files(one) == files(two)
    assert len(open_records(two).kinds["generation"]) == 2 * COUNT


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pictures_are_found_beside_the_file_and_broken_ones_are_listed(
    store: Store, tmp_path: Path, monkeypatch, scheme
):
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", len(picture(1)))
    store.refused["bucket/in/more/0.png"] = 403
    out = packed(tmp_path / "out", f"{scheme}://bucket/in/more/odd.jsonl", max_broken=0.9)
    data = open_records(out)
    assert [r.images[0] for r in data.kinds["generation"]] == [picture(0), picture(1)]
    assert data.manifest["broken"]["reasons"] == {
        "image file cannot be read": 2,
        "image file is missing": 1,
        "picture cannot be decoded": 2,
    }
    # Nothing is asked first, such as how large it is.
    assert sum(path.endswith("in/0.png") for _, path in store.asked) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_picture_may_be_named_by_its_address(store: Store, tmp_path: Path, scheme):
    lines = [
        {"image": f"{scheme}://bucket/in/{name}", "caption": "x"} for name in ("3.png", "gone.png")
    ]
    lines.append({"image": "https://example.org/4.png", "caption": "x"})
    file = write_jsonl(tmp_path / "in.jsonl", lines)
    out = packed(tmp_path / "out", str(file), max_broken=0.9)
    data = open_records(out)
    assert [r.images for r in data.kinds["generation"]] == [(picture(3),)]
    reasons = {"image file cannot be read": 1, "image file is missing": 1}
    assert data.manifest["broken"]["reasons"] == reasons


REFUSALS = [
    (
        "s3",
        400,
        "ExpiredToken",
        "cannot be read: no credentials that s3:// takes .ExpiredToken: .*fix: aws ",
    ),
    (
        "s3",
        400,
        "InvalidToken",
        "cannot be read: no credentials that s3:// takes .InvalidToken: .*fix: aws ",
    ),
    (
        "s3",
        403,
        "InvalidAccessKeyId",
        "cannot be read: no credentials that s3:// .*fix: aws configure",
    ),
    (
        "s3",
        403,
        "SignatureDoesNotMatch",
        "cannot be read: no credentials that s3:// .*fix: aws configure",
    ),
    (
        "s3",
        403,
        "RequestTimeTooSkewed",
        "cannot be read: no credentials that s3:// .*fix: set this machine's clock",
    ),
]


@pytest.mark.parametrize(
    ("scheme", "status", "reason", "line"),
    [
        ("s3", 400, "", "cannot be read: .*fix: check the network"),
        ("gs", 400, "", "cannot be read: .*fix: check the network"),
        (
            "gs",
            403,
            "User Rate Limit Exceeded",
            "cannot be read now: .*fix: wait, then run the same",
        ),
        ("gs", 403, "The project exceeded the rate limit", "cannot be read now: .*fix: wait, then"),
        *REFUSALS,
    ],
)
def test_a_store_that_fails_ends_the_packing_and_the_same_call_goes_on(
    store: Store, tmp_path: Path, monkeypatch, scheme, status, reason, line
):
    monkeypatch.setattr(sources, "_LINES", 4)
    name = f"{scheme}://bucket/in/captions.jsonl"
    store.refused["bucket/in/5.png"] = status
    store.reason = reason
    with pytest.raises(InputError, match=f"'{scheme}://bucket/in/5.png' {line}"):
        packed(tmp_path / "out", name, max_broken=1.0)
    assert not (tmp_path / "out" / "manifest.json").exists()
    store.refused.clear()
    store.asked.clear()
    packed(tmp_path / "out", name, max_broken=1.0)
    assert not any(path.endswith("/1.png") for _, path in store.asked)  # of the unit that was done
    assert files(tmp_path / "out") == files(
        packed(tmp_path / "here", f"{store.root}/bucket/in/captions.jsonl")
    )


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        *(("s3", code) for code in ("AccessDenied", "AllAccessDisabled", "InvalidObjectState")),
        ("s3", "403"),
        ("gs", "a@b does not have storage.objects.get access"),
    ],
)
def test_a_picture_that_is_denied_is_a_broken_record(store: Store, tmp_path: Path, scheme, reason):
    store.refused["bucket/in/5.png"] = 403
    store.reason = reason
    out = packed(tmp_path / "out", f"{scheme}://bucket/in/captions.jsonl", max_broken=0.2)
    (broken,) = json.loads((out / "units" / "00000.json").read_text())["broken"]
    assert broken["reason"] == "image file cannot be read"
    assert "access is denied" in broken["detail"]


def test_a_name_with_the_words_of_a_rate_limit_is_denied_like_any_other(
    store: Store, tmp_path: Path
):
    store.refused["bucket/in/rate exceeded.png"] = 403
    names = ["rate exceeded.png", "1.png"]
    lines: list[object] = [{"image": f"gs://bucket/in/{n}", "caption": "x"} for n in names]
    packed(tmp_path / "out", str(write_jsonl(tmp_path / "in.jsonl", lines)), max_broken=0.5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_of_a_store_do_not_name_files_of_this_machine(store: Store, tmp_path: Path, scheme):
    mine = tmp_path / "mine.png"
    mine.write_bytes(picture(1))
    # However far up a relative path goes, it stays in its bucket.
    names = [str(mine), f"/{mine}", "../" * 9 + str(mine)[1:], "../" * 9 + "in/2.png"]
    (store.root / "bucket" / "odd").mkdir(exist_ok=True)
    lines: list[object] = [{"image": name, "caption": "x"} for name in names]
    write_jsonl(store.root / "bucket" / "odd" / "mine.jsonl", lines)
    out = packed(tmp_path / "out", f"{scheme}://bucket/odd/mine.jsonl", max_broken=0.9)
    data = open_records(out)
    assert [r.images for r in data.kinds["generation"]] == [(picture(2),)]
    reasons = {"image file cannot be read": 2, "image file is missing": 1}
    assert data.manifest["broken"]["reasons"] == reasons
    (first, *_) = json.loads((out / "units" / "00000.json").read_text())["broken"]
    assert first["detail"].startswith(
        f"{mine} is of this machine, {scheme}://bucket/odd/mine.jsonl"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize("name", ["captions.jsonl", "one.tar", "one.parquet"])
def test_an_object_that_becomes_shorter_while_it_is_read_is_one_line(
    store: Store, tmp_path: Path, capfd, scheme, name, all_of_it
):
    size = (store.root / "bucket" / "in" / name).stat().st_size
    store.lost[f"bucket/in/{name}"] = size if all_of_it else 1
    found = one_line(capfd, [f"{scheme}://bucket/in/{name}", "--out", str(tmp_path / "out")])
    assert found.startswith(f"'{scheme}://bucket/in/{name}' has changed while it was read (")
    assert found.endswith("; fix: run the same command again\n")


def one_line(capfd: pytest.CaptureFixture[str], argv: list[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        # Without pytest's own, what a client logs would go to stderr, as it does for a user.
        patch.setattr(logging.getLogger(), "handlers", [])
        assert main.run(["data", "pack", *argv]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    return err.removeprefix("janus-jax: error: ")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "bucket/in/gone.jsonl",
            "'{0}://bucket/in/gone.jsonl' does not exist; fix: check the path",
        ),
        ("bucket/in/*.gone", "no file matches '{0}://bucket/in/*.gone'; fix: check the pattern"),
        ("bucket/in/**", "'{0}://bucket/in/**' holds **; allowed: *, ? and"),
        ("bucket/in/more/../x?.tar", "no file matches"),
        ("gone/a.jsonl", "there is no bucket '{0}://gone'; fix: check its name"),
        ("gone/in/*.tar", "there is no bucket '{0}://gone'; fix: check its name"),
        ("bucket/in/0.png", "'{0}://bucket/in/0.png' has an unknown suffix; allowed: .jsonl"),
        ("/in/a.jsonl", "'{0}:///in/a.jsonl' is no address that can be read; allowed: a path"),
        ("bucket/in/two.parquet", "'{0}://bucket/in/two.parquet' cannot be read (access is"),
    ],
)
def test_an_input_that_is_not_there_is_one_line(
    store: Store, tmp_path: Path, capfd, scheme, name, line
):
    store.refused["bucket/in/two.parquet"] = 403
    found = one_line(capfd, [f"{scheme}://{name}", "--out", str(tmp_path / "out")])
    assert found.startswith(line.format(scheme))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("scheme", "status", "reason", "line"), REFUSALS)
@pytest.mark.parametrize(
    ("name", "refused"), [("in/one.tar", "in/one.tar"), ("in/*.tar", "in"), ("*.tar", "")]
)
def test_an_input_refused_for_the_credentials_says_so(
    store: Store, tmp_path: Path, capfd, scheme, status, reason, line, name, refused
):
    store.refused[f"bucket/{refused}"] = status
    store.reason = reason
    found = one_line(capfd, [f"{scheme}://bucket/{name}", "--out", str(tmp_path / "out")])
    assert re.search(line, found), found


def test_without_credentials_it_says_where_to_get_them(
    store: Store, new_clients, tmp_path: Path, monkeypatch, capfd
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    store.closed = True
    out = str(tmp_path / "out")
    found = one_line(capfd, ["s3://bucket/in/one.tar", "--out", out])
    assert "no credentials that s3:// takes" in found and "fix: aws configure" in found
    found = one_line(capfd, ["gs://bucket/in/one.tar", "--out", out])
    assert "no credentials that gs:// takes" in found and "fix: gcloud auth" in found
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    remote._file_system.cache_clear()
    found = one_line(capfd, ["gs://bucket/in/one.tar", "--out", out])
    assert "key.json was not found" in found and "fix: gcloud auth" in found


@pytest.mark.parametrize(
    "profile",
    [
        "sso_start_url = http://127.0.0.1:9\nsso_region = x\nsso_account_id = 1\nsso_role_name = r",
        "sso_session = s\nsso_account_id = 1\nsso_role_name = r\n"
        "[sso-session s]\nsso_start_url = http://127.0.0.1:9\nsso_region = x",
        "credential_process = false",
    ],
)
def test_a_sign_in_that_is_over_is_no_credentials(
    store: Store, new_clients, tmp_path: Path, monkeypatch, capfd, profile
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config").write_text(f"[default]\nregion = x\n{profile}\n")
    found = one_line(capfd, ["s3://bucket/in/one.tar", "--out", str(tmp_path / "out")])
    assert "no credentials that s3:// takes" in found and "or aws sso login" in found


def test_credentials_are_found_where_the_vendors_tools_find_them(
    store: Store, new_clients, tmp_path: Path, monkeypatch
):
    store.closed = True
    packed(tmp_path / "s3", "s3://bucket/in/one.tar")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {"type": "service_account", "client_email": "a@b.iam.gserviceaccount.com"}
    account |= {"private_key": pem, "token_uri": f"{store.url}/token"}
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    # Where an emulator is named no credentials are sent, so this one must pass for Google's own.
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setattr("gcsfs.core._location", lambda *_: store.url)
    packed(tmp_path / "gs", "gs://bucket/in/one.tar")
    assert files(tmp_path / "gs") == files(tmp_path / "s3")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_is_not_there_is_said_in_seconds(
    new_clients, tmp_path: Path, monkeypatch, capfd, scheme
):
    for name in ("AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    start = time.monotonic()
    found = one_line(capfd, [f"{scheme}://bucket/in/*.tar", "--out", str(tmp_path / "out")])
    assert time.monotonic() - start < 15
    assert f"'{scheme}://bucket/in' cannot be read: " in found and "127.0.0.1:9" in found
    assert "fix: check the network and the address of the server" in found


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_without_its_package_it_says_what_to_install(
    new_clients, tmp_path: Path, monkeypatch, capfd, scheme, package
):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    found = one_line(capfd, [f"{scheme}://bucket/in/one.tar", "--out", str(tmp_path / "out")])
    assert f"needs {package}, which is not installed" in found
    assert 'fix: pip install "janus-jax[remote]"' in found


@pytest.mark.parametrize("scheme", ["http", "hf", "az", "file"])
def test_other_schemes_are_refused(tmp_path: Path, capfd, scheme):
    found = one_line(capfd, [f"{scheme}://host/a.tar", "--out", str(tmp_path / "out")])
    assert "allowed: a path of this machine, s3://BUCKET/OBJECT, gs://BUCKET/OBJECT" in found


def test_a_run_packs_files_of_a_store(store: Store, debug_dir: Path, tmp_path: Path):
    config = dataclasses.replace(
        PRESETS["finetune"],
        init=(str(debug_dir),),
        data=("s3://bucket/in/captions.jsonl", "gs://bucket/in/*.tar"),
        captions="understanding",
        heldout_share=0.0,
    )
    (tmp_path / "config.json").write_text("{}")  # of a run that begins
    config = own_data.resolve(config, tmp_path)
    (packed_set,) = config.data
    assert len(open_records(packed_set).kinds["understanding"]) == 3 * COUNT
