import json

import pytest

from bench import start


def test_a_start_times_the_programs_of_chat_and_drawing_and_keeps_them(tmp_path):
    found = start._child("debug", str(tmp_path))
    assert list(found) == ["read", "answer", "start_drawing", "draw", "decode"]
    assert min(found.values()) > 0
    kept = [path.name for path in tmp_path.rglob("*-cache")]
    for function in ("extend", "begin", "pictures"):
        assert any(function in name for name in kept), kept


def test_the_ratio_is_that_of_the_medians_of_whole_starts(monkeypatch, capsys):
    seconds = iter([10, 1, 20, 4, 30, 2])
    folders = []

    def child(model, folder):
        folders.append(folder)
        return {"read": next(seconds) / 2, "draw": 0.0}

    monkeypatch.setattr(start, "_child", child)
    monkeypatch.setattr("sys.argv", ["start.py", "--json", "--model", "debug", "--rounds", "3"])
    start.main()
    report = json.loads(capsys.readouterr().out)
    assert report["cold_seconds"] == {"median": 10, "min": 5, "max": 15}
    assert report["warm_over_cold"] == pytest.approx(1 / 10)
    assert report["warm_programs"] == {"read": 1, "draw": 0}
    # A cold start has a folder of its own; the warm one after it has the same.
    assert folders[::2] == folders[1::2] and len(set(folders)) == 3
