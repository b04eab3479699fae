"""The data benchmark runs whole on few pictures and records; its times are not looked at."""

import json

import pytest

from bench import data as script


def test_every_figure_is_there(monkeypatch, capsys):
    argv = ["data.py", "--json", "--pictures", "2", "--rounds", "1", "--records", "400"]
    monkeypatch.setattr("sys.argv", [*argv, "--steps", "30", "--batches", "30"])
    script.main()
    report = json.loads(capsys.readouterr().out)
    assert report["pixels_equal_peer"] is True
    assert 0 <= report["fast_path_mean_abs_error"] < 2
    times = report["picture_cpu_seconds"]
    assert set(times) == {"exact", "fast", "peer", "peer_one_by_one"}
    for path in ("exact", "fast"):
        for suffix in ("", "_one_by_one"):
            ratio = times[f"peer{suffix}"]["median"] / times[path]["median"]
            assert report[f"{path}_path_ratio{suffix}"] == ratio
    assert report["images_per_second_per_core"] == 2 / times["exact"]["median"]
    assert (report["records"], report["mixture_steps"], report["batches"]) == (400, 30, 30)
    # 2 of 4 samples of a step are from either set.
    assert report["mixture_max_error"] == 0
    assert report["first_startup_seconds"] > 0
    assert report["startup_seconds"] > report["startup_open_seconds"] > 0
    # All there are, at 5 : 1 : 4.
    assert report["startup_samples_a_step"] == 10 * min(160 // 5, 40, 200 // 4)
    assert report["startup_rows_a_group"] == 2
    assert report["rss_growth"] == pytest.approx(0, abs=0.2) and report["rss_bytes"] > 10**7
    assert len(report["load_average"]) == len(report["load_average_after"]) == 3
