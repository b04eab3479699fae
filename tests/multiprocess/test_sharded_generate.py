"""`examples/sharded_generate.py` in two real processes: together over a mesh, and each alone."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax import InputError, Janus
from tests.multiprocess.children import ROOT, free_port, run_together

SCRIPT = ROOT / "examples" / "sharded_generate.py"
PROMPTS = ["a red apple", "猫", "b"]
N, SEED = 2, 3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sharded_generate", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    # An empty line and a prompt that was there before count for nothing.
    path.write_text("a red apple\n\n猫\n a red apple \nb\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def want(debug_dir) -> dict[tuple[str, int], np.ndarray]:
    model = Janus.from_pretrained(debug_dir, dtype="float32")
    rows = model.generate_images(PROMPTS, N, seed=SEED)
    return {
        (prompt, i): np.asarray(image, np.int16)
        for prompt, row in zip(PROMPTS, rows, strict=True)
        for i, image in enumerate(row)
    }


def flags(prompts: Path, model: Path, out: Path, *more: str) -> list[str]:
    own = ["--model", str(model), "--n", str(N), "--seed", str(SEED), "--out", str(out)]
    return [str(SCRIPT), str(prompts), *own, *more]


def listed(out: str) -> list[str]:
    """Lines of stdout, less what gloo, JAX's transport between CPUs, says there by itself."""
    return [line for line in out.splitlines() if not line.startswith("[Gloo]")]


def pictures(*folders: Path) -> dict[tuple[str, int], np.ndarray]:
    found = {}
    for path in (path for folder in folders for path in folder.iterdir()):
        with Image.open(path) as image:
            key = image.info["prompt"], int(image.info["index"])
            assert key not in found, f"{key} was drawn twice"
            found[key] = np.asarray(image, np.int16)
    return found


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def differences(found: dict, want: dict) -> int:
    assert found.keys() == want.keys()
    return max(int(np.abs(found[key] - want[key]).max()) for key in want)


def test_two_hosts_draw_together_over_a_mesh(debug_dir, prompts, want, tmp_path):
    outs = [tmp_path / "first", tmp_path / "second"]

    def both(name: str):
        port = free_port()
        mesh = ["--mesh", "fsdp=2", "--coordinator", f"localhost:{port}", "--processes", "2"]
        ended = run_together(
            [
                flags(prompts, debug_dir, out, *mesh, "--process", str(i))
                for i, out in enumerate(outs)
            ],
            tmp_path / name,
        )
        assert [status for status, _, _ in ended] == [0, 0], ended
        return [listed(out) for _, out, _ in ended]

    printed = both("fresh")
    assert [len(paths) for paths in printed] == [4, 2]
    for paths, out in zip(printed, outs, strict=True):
        assert sorted(paths) == sorted(map(str, out.iterdir()))
    # The codes are equal; sums in another order can carry a pixel over a step of 8 bits.
    assert differences(pictures(*outs), want) <= 1

    # One file is lost, another is damaged: these are drawn again and the others are left alone.
    lost, damaged = Path(printed[0][0]), Path(printed[1][1])
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-20])
    before = [stamps(out) for out in outs]
    assert both("again") == [[str(lost)], [str(damaged)]]
    assert differences(pictures(*outs), want) <= 1
    for out, old in zip(outs, before, strict=True):
        new = stamps(out)
        assert {name for name in new if new[name] != old.get(name)} <= {lost.name, damaged.name}


def test_two_hosts_work_alone(debug_dir, prompts, want, tmp_path):
    out = tmp_path / "shared"

    def host(i: int) -> list[str]:
        return flags(prompts, debug_dir, out, "--processes", "2", "--process", str(i))

    ended = run_together([host(0), host(1)], tmp_path / "fresh")
    assert [status for status, _, _ in ended] == [0, 0], ended
    printed = [set(listed(text)) for _, text, _ in ended]
    assert not printed[0] & printed[1]
    assert printed[0] | printed[1] == set(map(str, out.iterdir()))
    assert differences(pictures(out), want) == 0
    before = stamps(out)
    [(status, text, note)] = run_together([host(0)], tmp_path / "again")
    assert (status, text) == (0, "")
    assert note == "process 0: 0 pictures drawn, 4 were there\n"
    assert stamps(out) == before


def test_one_host_spreads_its_pictures_over_its_devices(
    script, debug_dir, prompts, want, tmp_path, capsys
):
    options = script.Options(
        prompts, model=str(debug_dir), n=N, seed=SEED, out=tmp_path / "out", dtype="float32"
    )
    assert script.run(options) == 0
    assert differences(pictures(options.out), want) <= 1
    assert len(listed(capsys.readouterr().out)) == 6
    with Image.open(next(options.out.iterdir())) as image:
        assert json.loads(image.info["settings"])["cfg"] == 5.0


def test_a_bad_line_fails_alone_and_by_number(script, debug_dir, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("a red apple\n" + "word " * 600 + "\n")
    options = script.Options(path, model=str(debug_dir), out=tmp_path / "out")
    assert script.run(options) == 2
    err = capsys.readouterr().err
    assert f"{path}, line 2 is too long" in err
    assert len(list(options.out.iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"n": 0}, "--n is 0"),
        ({"mesh": "rows=2"}, "--mesh: mesh 'rows=2'"),
        ({"mesh": "fsdp=3"}, "--mesh: mesh {'fsdp': 3}"),
        ({"processes": 2, "process": 2}, "--process is 2; allowed: a whole number from 0 to 1"),
        ({"processes": 0}, "--processes is 0"),
        ({"processes": 2, "mesh": "fsdp=2"}, "--mesh over 2 processes needs --coordinator"),
        ({"coordinator": "localhost:1"}, "--coordinator without --mesh"),
        ({"launched": True, "processes": 2}, "--launched stands beside"),
        ({"prompts": Path("gone.txt")}, "'gone.txt' cannot be read"),
    ],
)
def test_bad_flags_are_named(script, prompts, tmp_path, given, named):
    options = {"prompts": prompts, "model": "debug", "out": tmp_path / "out", **given}
    with pytest.raises(InputError) as caught:
        script.run(script.Options(**options))
    assert named in str(caught.value)


def test_a_plan_draws_every_missing_picture_once(script):
    missing = np.random.default_rng(0).random((40, 23)) < 0.5
    lengths = [32 if p % 3 else 64 for p in range(40)]
    drawn = np.zeros_like(missing, int)
    for piece in script.plan(missing, lengths):
        assert len(piece.prompts) * piece.n <= script.AT_ONCE
        assert len({lengths[p] for p in piece.prompts}) == 1
        for p in piece.prompts:
            drawn[p, piece.first : piece.first + piece.n] += 1
    np.testing.assert_array_equal(drawn, missing)
