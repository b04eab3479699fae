"""The benchmark runs whole at the size of the debug model; its times are not looked at."""

import json

from bench import chat as script


def test_both_sides_answer_alike_and_every_figure_is_there(monkeypatch, capsys):
    argv = ["chat.py", "--json", "--model", "debug", "--layers", "1", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", argv)
    script.main()
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "debug, 1 layers"
    assert report["first_token_equal"] is True
    assert report["prompt_tokens"] == 3 + 16 + script.QUESTION_LENGTH
    for name in ("ttft", "decode"):
        times = report[f"{name}_seconds"]
        assert set(times) == {"ours", "peer"}
        ratio = times["peer"]["median"] / times["ours"]["median"]
        assert report[f"{name}_ratio"] == ratio
    assert {"device", "cpus", "load_average", "load_average_after"} <= set(report)
    assert report["ttft_seconds"]["ours"]["min"] > 0
