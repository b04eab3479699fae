"""Measures `janus-jax convert`: memory, and time beside copying and beside torch.

    python bench/convert.py --json
    python bench/convert.py --size debug --json
    python bench/convert.py --size 1b --rounds 3 --directory /mnt/fast

A bfloat16 checkpoint in DeepSeek's layout is generated (7b: two .bin shards, 14.8 GB), converted by
the real command, restored in bfloat16, and compared in samples with what was generated. 7b needs
50 GB of disk, and memory for the restored model (the conversion itself does not); all files are
removed at the end. Linux only.

- `peak_anon_rss_gb`: highest RssAnon of the converting process, read 50 times a second. Pages of
  mapped files do not count: the system takes them back when memory is short.
- The converting process runs under RLIMIT_DATA of 3 GB: all private writable memory that it maps,
  touched or not, which is stricter than a limit on what it uses. An allocation above it fails.
- `seconds`: until the process ended and everything was on disk (`sync`), start of Python included.
- `seconds_over_cp`: over `cp -r` of the source. `seconds_over_torch`: over `torch.load` of each
  shard and safetensors' `save_file`, in a process of its own. Both with `sync`.
- Each of `--rounds` rounds runs the three in turn, so that a slow moment of the disk meets all of
  them; seconds are medians. The source is dropped from the page cache before each run (cold).
- `bytes`: of all tensors. `restore_seconds`, `restore_peak_rss_gb`: `load_model` in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HELPER = Path(__file__).resolve().parent / "convert_checkpoint.py"
LIMIT = 3 * 10**9
LIMITED = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT})); "
COMMAND = f"{LIMITED}from janus_jax.cli.main import main; main()"
SIZES = ("debug", "1b", "7b")


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory of a process; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line for line in lines if line.startswith("RssAnon:")]
    return int(found[0].split()[1]) * 1024 if found else 0


def drop_from_cache(directory: Path) -> None:
    """Drops the files' clean pages from the page cache."""
    os.sync()
    for path in filter(Path.is_file, directory.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def convert(source: Path, destination: Path) -> tuple[dict[str, Any], float, int]:
    """Runs the command under the limit.

    Returns:
        What it printed, seconds, and its peak anonymous memory in bytes.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "convert", str(source), str(destination), "--json"],
        stdout=subprocess.PIPE,
        cwd=HELPER.parent.parent,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.02)
    os.sync()
    seconds = time.perf_counter() - started
    assert process.stdout is not None
    printed = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"janus-jax convert ended with status {process.returncode}")
    return json.loads(printed), seconds, peak


def timed(*command: str) -> float:
    """Seconds that a command takes, until everything is on disk."""
    started = time.perf_counter()
    subprocess.run(command, check=True)
    os.sync()
    return time.perf_counter() - started


def helper(*arguments: str) -> str:
    """Runs `convert_checkpoint.py` and returns what it prints."""
    command = [sys.executable, str(HELPER), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(size: str, rounds: int, work: Path) -> dict[str, Any]:
    """Generates, converts, compares.

    Args:
        size: one of `SIZES`.
        rounds: how often each of the three is timed.
        work: an empty directory on the disk to be measured.

    Returns:
        The figures of the module's docstring.
    """
    source, model, other = work / "source", work / "model", work / "other"
    helper("write", str(source), "--size", size)
    seconds: dict[str, list[float]] = {"convert": [], "cp": [], "torch": []}
    peaks: list[int] = []
    report: dict[str, Any] = {}
    for _ in range(rounds):
        shutil.rmtree(model, ignore_errors=True)
        drop_from_cache(source)
        report, taken, peak = convert(source, model)
        seconds["convert"].append(taken)
        peaks.append(peak)
        for name, command in (
            ("cp", ("cp", "-r", str(source), str(other))),
            ("torch", (sys.executable, str(HELPER), "torch", str(source), str(other))),
        ):
            drop_from_cache(source)
            seconds[name].append(timed(*command))
            shutil.rmtree(other)
        print({name: round(taken[-1], 1) for name, taken in seconds.items()}, file=sys.stderr)
    shutil.rmtree(source)
    drop_from_cache(model / "params")
    restored = json.loads(helper("check", str(model), "--size", size))
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {
        "size": size,
        "peak_anon_rss_gb": round(max(peaks) / 1e9, 3),
        "seconds": round(middle["convert"], 2),
        "seconds_over_cp": round(middle["convert"] / middle["cp"], 3),
        "seconds_over_torch": round(middle["convert"] / middle["torch"], 3),
        "bytes": report["bytes"],
        "tensors": report["tensors"],
        "rounds": rounds,
        **restored,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="where to work; default: the temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=args.directory) as work:
        figures = measure(args.size, args.rounds, Path(work))
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22s} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
