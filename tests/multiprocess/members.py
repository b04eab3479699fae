"""`janus-jax train` in several processes at once, forked from the server of the fault tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import jax

from tests.faults.processes import forkserver
from tests.faults.training import training
from tests.multiprocess.children import free_port

WITHIN = 180  # seconds after which a process is taken to hang


def member(argv: list[str], log: Path, devices: int, **kwargs) -> None:
    """Runs `janus-jax train` with so many fake devices; see `training`."""
    jax.config.update("jax_num_cpu_devices", devices)
    # gloo, JAX's transport between CPUs, talks there, in the midst of other lines.
    training(argv, log, stdout=log.with_name("stdout"), **kwargs)


def arguments(
    run_dir: Path, parts: Path | None, *flags: str, name: str = "emoji-stage3"
) -> list[str]:
    """A short run on the debug model.

    Args:
      run_dir: the run directory.
      parts: the model directory that all parts come from; None: random weights.
      flags: more of them; the last one of a kind counts.
      name: the preset.
    """
    return [
        *(name, "--run-dir", str(run_dir), "--model", "debug"),
        *(() if parts is None else ("--init", str(parts))),
        *("--batch-size", "40", "--steps", "4", "--log-every", "1", "--length", "128"),
        *("--checkpoint-every", "2", "--preview-every", "0", *flags),
    ]


class Members:
    """Processes that train in one run directory.

    Args:
      argv: what follows `janus-jax train`, without `--hosts`.
      logs: directory for what they print and mark.
      processes: how many.
      devices: fake devices of each.
      at: where which of them waits, see `tests.faults.training.FAULTS`.
      flags: for each process more flags.
    """

    def __init__(
        self,
        argv: list[str],
        logs: Path,
        processes: int,
        devices: int,
        *,
        at: dict[int, str] | None = None,
        flags: dict[int, list[str]] | None = None,
    ):
        logs.mkdir(parents=True)
        self._folders = [logs / str(i) for i in range(processes)]
        self._at = at or {}
        port = free_port()
        self.processes = []
        for i, folder in enumerate(self._folders):
            folder.mkdir()
            hosts = ["--hosts.alone"]
            if processes > 1:
                hosts = [
                    *("--hosts.coordinator", f"localhost:{port}", "--hosts.process", str(i)),
                    *("--hosts.processes", str(processes), "--hosts.heartbeat-seconds", "10"),
                ]
            kwargs = {"marks": folder, "at": self._at.get(i, "")}
            more = (flags or {}).get(i, [])
            process = forkserver().Process(
                target=member, args=([*argv, *hosts, *more], folder / "log", devices), kwargs=kwargs
            )
            process.start()
            self.processes.append(process)

    def come_there(self) -> Members:
        """Waits until those that shall wait somewhere do."""
        end = time.monotonic() + WITHIN
        for i, at in self._at.items():
            while not (self._folders[i] / at).exists():
                assert self.processes[i].is_alive() and time.monotonic() < end, self.said()
                time.sleep(0.01)
        return self

    def let_go(self) -> None:
        """Has none of them wait any longer."""
        for folder in self._folders:
            (folder / "go").touch()

    def send(self, i: int, number: signal.Signals) -> None:
        """Sends one of them a signal."""
        os.kill(self.processes[i].pid or 0, number)

    def running(self) -> bool:
        """Whether none has ended."""
        return all(process.is_alive() for process in self.processes)

    def ended(self, within: float = WITHIN) -> list[int | None]:
        """The exit statuses; None of those that still run, which are then killed."""
        end = time.monotonic() + within
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return statuses

    def said(self) -> list[str]:
        """What each of them printed on stderr."""
        logs = [folder / "log" for folder in self._folders]
        return [log.read_text().rstrip("\n") if log.exists() else "" for log in logs]

    def samples(self) -> list[str]:
        """`ids.jsonl` of each: the samples of every batch that was read."""
        return [(folder / "ids.jsonl").read_text() for folder in self._folders]
