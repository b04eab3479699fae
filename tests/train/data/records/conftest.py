"""A store on this machine, which the real clients of s3:// and gs:// are told to ask."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.data.records.files import (
    captions_jsonl,
    captions_parquet,
    captions_tar,
    picture,
    write_jsonl,
)
from tests.train.data.records.object_store import Store, serve
from train.data.records import remote


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
