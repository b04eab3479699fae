"""What the tests of inputs on s3:// and gs:// share, beside their fixtures."""

import logging
from pathlib import Path

import pytest

from janus_jax.cli import main
from train.data.records.pack import PackSettings, pack

SCHEMES = ["s3", "gs"]

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


def one_line(capfd: pytest.CaptureFixture[str], argv: list[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        # Without pytest's own, what a client logs would go to stderr, as it does for a user.
        patch.setattr(logging.getLogger(), "handlers", [])
        assert main.run(["data", "pack", *argv]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    return err.removeprefix("janus-jax: error: ")
