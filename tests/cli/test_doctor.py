import json
from pathlib import Path

import pytest

from janus_jax.cli import doctor
from janus_jax.cli.main import run


def test_a_fit_machine(capsys, tmp_path: Path):
    assert run(["doctor", "--json", "--run-dir", str(tmp_path / "not" / "yet")]) == 0
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert list(findings) == [
        "python",
        "packages",
        "jax release",
        "devices",
        "arithmetic",
        "memory",
        "disk",
        "compile cache",
        "shipped model",
    ]
    assert not [f for f in findings.values() if f["status"] == "failed"]
    assert findings["devices"]["text"].startswith("8 x cpu")
    assert "every tensor as its manifest says" in findings["shipped model"]["text"]


@pytest.fixture
def failing(monkeypatch):
    def refuse():
        raise RuntimeError("no\ndevice")

    monkeypatch.setattr(doctor, "_devices", refuse)


def test_a_failed_check_is_a_line_and_the_rest_goes_on(capsys, failing, tmp_path: Path):
    assert run(["doctor", "--run-dir", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "failed   devices        RuntimeError: no device"
    assert lines[4].startswith("ok       arithmetic")
    assert len(lines) == 9


def test_the_broken_release_is_known():
    assert doctor.jax_release("0.10.1")[0] == "ok"
    status, text = doctor.jax_release("0.10.2")
    assert status == "failed"
    assert 'pip install "jax==0.10.1"' in text


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(doctor, "_LOW_DISK", 2**60)
    assert doctor.disk(tmp_path)[0] == "warning"
