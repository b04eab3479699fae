"""The drawing and decoding benchmarks run whole at the size of the debug model."""

import json
import sys

import numpy as np
import pytest

from bench import generate, vq


def run(script, monkeypatch, capsys, *options):
    arguments = [script.__file__, "--json", "--model", "debug", "--rounds", "1", *options]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_all_figures_of_drawing(monkeypatch, capsys):
    figures = run(generate, monkeypatch, capsys)
    ratios = [
        "step_ratio_f32",
        "step_ratio_best",
        "image_ratio_f32",
        "image_ratio_best",
        "four_images_ratio",
        "loop_overhead",
        "read_bandwidth_fraction",
    ]
    assert all(np.isfinite(figures[name]) for name in ratios)
    assert figures["image_measured_steps"] == generate.STEPS
    image = figures["image_seconds"]
    assert figures["image_ratio_f32"] == image["peer"] / image["ours"]


def test_best_is_each_sides_own():
    assert generate._best_ratio({"ours": 2.0, "peer": 3.0}, {"ours": 1.0, "peer": 5.0}) == 3.0


def test_both_decoders_give_the_same_picture(monkeypatch, capsys):
    figures = run(vq, monkeypatch, capsys)
    assert figures["largest_difference"] < 1e-4
    assert figures["decode_ratio"] > 0
