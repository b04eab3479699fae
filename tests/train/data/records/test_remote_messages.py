"""What is said where an input on s3:// or gs:// cannot be read; see `remote_store`."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.train.data.records.object_store import Store
from tests.train.data.records.remote_store import REFUSALS, SCHEMES, files, one_line, packed
from train.data.records import remote


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
