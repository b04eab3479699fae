import signal
import subprocess
import sys

import pytest

from janus_jax import InputError, __version__
from janus_jax.cli import generate, main, parsing, train

FULL_OPTION_BOX = """╭─ Unrecognized options ───────────────────╮
│ Unrecognized options: --dtpe, b          │
│ ──────────────────────────────────────── │
│ Perhaps you meant:                       │
│     --dtype {float32,bfloat16}           │
│         Compute type. (default: float32) │
│         in janus-jax generate --help     │
│ ──────────────────────────────────────── │
│ For full helptext, run janus-jax --help  │
╰──────────────────────────────────────────╯
"""


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("janus-jax: error: ")
    return err


def test_a_framed_report_becomes_one_line():
    assert parsing.flatten_parse_error(FULL_OPTION_BOX) == (
        "Unrecognized options: --dtpe, b; did you mean --dtype?; see janus-jax --help"
    )


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "generate"),
        (["genrate", "a cat"], "genrate"),
        (["generate", "a cat", "--seed", "one"], "--seed"),
        (["generate", "a cat", "--sede", "1"], "--seed"),
        (["chat", "hello", "--image"], "--image"),
    ],
)
def test_unusable_arguments_exit_2_with_one_line_that_names_them(argv, named, capsys):
    assert main.run(argv) == 2
    assert named in one_line(capsys)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_shows_every_flag_and_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main.run([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--model", "--seed", "--json", "--debug"):
        assert flag in text
    assert f"janus-jax {command} " in text.split("╭")[0].split("\n", 1)[1]


def test_top_level_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main.run(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in ("generate", "chat", "train", "--version"):
        assert command in text


def test_the_version_is_printed(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr() == (f"janus-jax {__version__}\n", "")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("generate cat --out gs://b/x", "--out 'gs://b/x'"),
        ("generate cat --model gs://b/x", "'gs://b/x'"),
        ("chat hello --image s3://b/a.png", "--image 's3://b/a.png'"),
        ("convert source gs://b/x", "DESTINATION 'gs://b/x'"),
        ("doctor --run-dir gs://b/x", "--run-dir 'gs://b/x'"),
        ("doctor --run_dir gs://b/x", "--run-dir 'gs://b/x'"),
        ("doctor --run_dir=gs://b/x", "--run-dir 'gs://b/x'"),
        ("plan janus-pro-1b-stage3 --compile --dump-hlo gs://b/x", "--dump-hlo 'gs://b/x'"),
        ("data pack a.jsonl --out gs://b/x", "--out 'gs://b/x'"),
        ("data pack a.jsonl --out=gs://b/x", "--out 'gs://b/x'"),
        ("data encode s3://b/x --out y", "SOURCE 's3://b/x'"),
        ("data encode x --out s3://b/y", "--out 's3://b/y'"),
        ("data inspect gs://b/x", "SOURCE 'gs://b/x'"),
        ("data ids file:///b/x --step 1", "RUN 'file://b/x'"),
        ("train emoji --run-dir gs://b/x", "--run-dir 'gs://b/x'"),
        ("train emoji-vq --run-dir gs://b/x", "--run-dir 'gs://b/x'"),
        ("train finetune --data gs://b/set:2", "--data 'gs://b/set:2'"),
        ("train finetune --data a.jsonl --heldout s3://b/c.jsonl", "--heldout 's3://b/c.jsonl'"),
        ("train finetune --data a.jsonl --init s3://b/model", "--init 's3://b/model'"),
        ("train finetune --data a.jsonl --init vq=s3://b/model", "--init 's3://b/model'"),
    ],
)
def test_an_address_is_refused_where_a_path_is_meant(command, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(command.split()) == 2
    line = one_line(capsys)
    assert f"{named} is no path of this machine; allowed: a local path; fix: copy" in line
    assert not list(tmp_path.iterdir())


def test_a_path_may_hold_a_colon(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.run(["data", "inspect", "C:/a:b/c"]) == 2
    assert "'C:/a:b/c' is no packed data set" in one_line(capsys)


def failing(error):
    def run(_):
        raise error

    return run


def test_an_input_error_exits_2_with_its_own_line(monkeypatch, capsys):
    monkeypatch.setattr(generate, "run", failing(InputError("--n is 0", "1 or more")))
    assert main.run(["generate", "a cat"]) == 2
    assert one_line(capsys) == "janus-jax: error: --n is 0; allowed: 1 or more\n"


def test_a_failed_run_exits_1_and_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(generate, "run", failing(RuntimeError("disk\non fire")))
    assert main.run(["generate", "a cat"]) == 1
    line = one_line(capsys)
    assert "RuntimeError: disk on fire" in line
    assert "--debug" in line
    assert main.run(["generate", "a cat", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


STOPPED = """
import asyncio, os, signal, sys
from janus_jax.cli import generate, main
from janus_jax.cli.common import terminable

class Loud:
    def __del__(self):
        raise RuntimeError("freed too early")

async def never():
    pass

def run(*_):
    cut_short = Loud(), never()
    with terminable():
        os.kill(os.getpid(), int(sys.argv[1]))
        signal.pause()

generate.run = run
main.main(["generate", "a cat"])
"""


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_what_a_signal_cuts_short_is_freed_quietly(number, status, word):
    command = [sys.executable, "-c", STOPPED, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, f"janus-jax: {word}\n")


def test_an_interrupt_is_not_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back afterwards
    monkeypatch.setattr(generate, "run", failing(KeyboardInterrupt()))
    assert main.run(["generate", "a cat"]) == 130
    assert capsys.readouterr().err == "janus-jax: interrupted\n"


@pytest.mark.parametrize(
    "argv", [["train", "x", "--a.b", "1"], ["--debug", "train", "x", "--a.b", "1"]]
)
def test_train_gets_its_arguments_untouched(monkeypatch, argv):
    seen = []
    monkeypatch.setattr(train, "run", lambda rest: seen.append(rest) or 75)
    assert main.run(argv) == 75
    assert seen == [["x", "--a.b", "1"]]


def test_the_trainer_lists_its_presets_and_refuses_others(capsys):
    assert main.run(["train", "--help"]) == 0
    assert "emoji-stage1" in capsys.readouterr().out
    assert main.run(["train", "emoji-stage9"]) == 2
    assert "emoji-stage9" in one_line(capsys)


def test_the_exit_status_of_a_command_is_passed_on(monkeypatch):
    monkeypatch.setattr(generate, "run", lambda _: None)
    with pytest.raises(SystemExit) as stop:
        main.main(["generate", "a cat"])
    assert stop.value.code == 0


def test_help_starts_without_loading_jax():
    program = (
        "import sys\nfrom janus_jax.cli import main\n"
        "try: main.run(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'torch', 'train', 'convert'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


COMPILING = """
import sys
from janus_jax.cli import generate, main, train

def run(*_):
    import jax

    jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready()

generate.run = train.run = run
main.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (["generate", "a cat"], True),
        (["generate", "a cat", "--no-compile-cache"], False),
        (["--no-compile-cache", "train", "x"], False),
    ],
)
@pytest.mark.parametrize("variable", ["JANUS_JAX_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR"])
def test_compiled_programs_are_kept_unless_the_flag_says_no(tmp_path, argv, kept, variable):
    # In a folder that the user chose, the user says how slow a program must be to be kept.
    own = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", variable: str(tmp_path / "programs")}
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", COMPILING, *argv], check=True, env=home | own)
    assert any(tmp_path.rglob("*-cache")) == kept
