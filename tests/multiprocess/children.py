"""Real processes for tests: started together, each with its log, none left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as box:
        box.bind(("localhost", 0))
        return box.getsockname()[1]


def run_together(
    commands: Sequence[Sequence[str]], logs: Path, *, devices: int = 1, seconds: float = 120
) -> list[tuple[int, str, str]]:
    """Runs Python programs at the same time.

    Args:
      commands: arguments of Python, one list a process.
      logs: directory for what they print.
      devices: fake CPU devices of each.
      seconds: limit for all of them; whatever still runs is terminated, then killed.

    Returns:
      Exit status, stdout and stderr of each; a status below 0 is a process that was stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    children = []
    for i, command in enumerate(commands):
        with (logs / f"{i}.out").open("w") as out, (logs / f"{i}.err").open("w") as err:
            children.append(
                subprocess.Popen(
                    [sys.executable, *command], cwd=ROOT, env=environ, stdout=out, stderr=err
                )
            )
    end = time.monotonic() + seconds
    try:
        for child in children:
            child.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    return [
        (child.returncode, (logs / f"{i}.out").read_text(), (logs / f"{i}.err").read_text())
        for i, child in enumerate(children)
    ]
