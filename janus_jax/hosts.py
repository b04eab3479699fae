"""Several processes that work as one: how they find one another, and end together.

JAX's own rule is that all processes of a job die together, but by itself it only notices a process
that falls silent, after a while. Here a process that fails tells the others (`janus_jax.team`), so
that all of them end at once with the same exit status and the reason is printed once.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from janus_jax.cpu_threads import enough_cpu_threads
from janus_jax.errors import InputError
from janus_jax.team import Team

Result = TypeVar("Result")

# Seconds. Between two words of a process that is at work for the others.
_BUSY = 60.0
# Seconds by which JAX is given longer than this module.
_GRACE = 10


@dataclass(frozen=True)
class HostsConfig:
    """Which processes work together. TPU pods, SLURM, Open MPI and Kubernetes need none of it.

    Attributes:
      coordinator: address of process 0, HOST:PORT with a port that is free there; empty: the
        launcher is asked, and where there is none, this process works alone.
      processes: how many processes there are; with `coordinator`.
      process: which of them this one is, from 0; with `coordinator`.
      alone: ask no launcher, and use the devices of this process only.
      start_seconds: how long to wait for the others at the start.
      heartbeat_seconds: a process that has been silent for so long is dead, and the others end.
    """

    coordinator: str = ""
    processes: int = 0
    process: int = -1
    alone: bool = False
    start_seconds: int = 300
    heartbeat_seconds: int = 100

    def __post_init__(self) -> None:
        """Refuses settings that do not belong together.

        Raises:
          InputError: naming the flag, its value and what is allowed.
        """
        for name in ("start_seconds", "heartbeat_seconds"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"--hosts.{name.replace('_', '-')} {value}", "at least 1")
        if not self.coordinator:
            if self.processes or self.process != -1:
                raise InputError(
                    "--hosts.processes and --hosts.process need --hosts.coordinator",
                    fix="add --hosts.coordinator HOST:PORT, the same for every process",
                )
            return
        if self.alone:
            raise InputError("--hosts.alone and --hosts.coordinator exclude each other")
        if not re.fullmatch(r"(.+):(\d{1,5})", self.coordinator):
            raise InputError(
                f"--hosts.coordinator {self.coordinator}", "HOST:PORT, such as 10.0.0.2:1234"
            )
        if self.processes < 1:
            raise InputError(
                f"--hosts.processes {self.processes}", "the number of processes, at least 1"
            )
        if not 0 <= self.process < self.processes:
            raise InputError(
                f"--hosts.process {self.process}",
                f"0 to {self.processes - 1}, another one for every process",
            )


_team: Team | None = None


def team() -> Team | None:
    """The processes that this one works with; None where it works alone."""
    return _team


def is_first() -> bool:
    """Whether this process does what only one may do: write files that all share, and print."""
    return _team is None or _team.index == 0


def own_file(path: Path) -> Path:
    """A file that every process has for itself: of process 3, `stacks.txt` is `stacks-3.txt`."""
    index = 0 if _team is None else _team.index
    return path if index == 0 else path.with_stem(f"{path.stem}-{index}")


def wait(name: str) -> None:
    """Waits for the other processes, if there are any; see `Team.wait`."""
    if _team is not None:
        _team.wait(name)


def by_first(work: Callable[[], Result]) -> Result | None:
    """Has process 0 do what may take any time, while the others wait. All have to ask.

    Args:
      work: what is done; must not ask the others.

    Returns:
      What `work` returned, on process 0; None on the others.

    Raises:
      RuntimeError: one of the processes died.
    """
    others = team()
    if others is None:
        return work()
    if others.index:
        while others.any(False):
            pass
        return None
    over = threading.Event()

    def say_so() -> None:
        # No wait of the others is longer than this, however long the work takes.
        with contextlib.suppress(RuntimeError):  # one has died: `any` below says so
            while not over.wait(_BUSY):
                others.any(True)

    busy = threading.Thread(target=say_so, name="busy", daemon=True)
    busy.start()
    try:
        result = work()
    finally:
        over.set()
        busy.join()
    others.any(False)
    return result


def connect(hosts: HostsConfig, *, shutdown_seconds: int = 300) -> None:
    """Meets the other processes, before anything uses a device; once met, they stay together.

    Args:
      hosts: who they are, or where to ask.
      shutdown_seconds: how long a process that is done waits for the others.

    Raises:
      InputError: they cannot be found, or do not come in time.
    """
    global _team
    if _team is not None or hosts.alone or not (hosts.coordinator or _may_be_launched()):
        return
    import jax

    enough_cpu_threads(2)  # on a CPU its collectives wait for those of other processes
    # It would take SIGTERM away from us; `Team.stop` does its work, for SIGINT too.
    jax.config.update("jax_enable_preemption_service", False)
    given: dict[str, Any] = {}
    if hosts.coordinator:
        given = {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.processes,
            "process_id": hosts.process,
        }
    if hosts.coordinator and hosts.process == 0:
        _check_port(hosts)
    # JAX would abort the process, with pages of addresses in its own program.
    late = threading.Timer(hosts.start_seconds, _give_up, [hosts])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=hosts.start_seconds + _GRACE,
            heartbeat_timeout_seconds=hosts.heartbeat_seconds,
            shutdown_timeout_seconds=shutdown_seconds,
        )
    except Exception as error:
        # Nobody was launched, or this is a notebook that has used its devices already.
        if not given and ("should be defined" in str(error) or "before any JAX" in str(error)):
            return
        raise _not_met(hosts, error) from error
    finally:
        late.cancel()
    if jax.default_backend() == "cpu":
        # Programs over several CPU processes that are read back from the compile cache fail: their
        # collectives are out of step (jax 0.10.1 with gloo; freshly compiled ones never were).
        jax.config.update("jax_enable_compilation_cache", False)
    # Not public, but there is no other way to it; Orbax, which every run needs, takes the same one.
    from jax._src import distributed

    _team = Team(distributed.global_state.client, jax.process_index(), jax.process_count())


def part() -> None:
    """Waits until the other processes, if there are any, are done as well, and leaves them."""
    if _team is not None:
        _team.part()


def leave(status: int) -> bool:
    """Tells the other processes, if there are any, that this one fails; then `end` is to be called.

    Returns:
      Whether it is up to this process to say why.
    """
    return _team is None or _team.leave(status)


def end(status: int) -> None:
    """Ends this process at once, if it is one of several; else returns.

    An orderly end would wait for the other processes, which may be waiting for this one.
    """
    if _team is not None:
        _team.end(status)


def _check_port(hosts: HostsConfig) -> None:
    """Refuses a port that is taken: JAX would crash."""
    port = int(hosts.coordinator.rpartition(":")[2])
    try:
        with socket.socket() as box:
            box.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            box.bind(("", port))
    except (OSError, OverflowError) as error:
        raise _not_met(hosts, f"port {port}: {error}") from error


def _give_up(hosts: HostsConfig) -> None:
    error = _not_met(hosts, f"not all of them came within {hosts.start_seconds} s")
    print(f"janus-jax: error: {error}", file=sys.stderr, flush=True)
    os._exit(2)


def _not_met(hosts: HostsConfig, error: object) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if not hosts.coordinator:
        return InputError(
            f"the processes of this job did not meet ({reason})",
            fix="see that all of them were started; or name them with --hosts.coordinator, "
            "--hosts.processes and --hosts.process; or add --hosts.alone to work without them",
        )
    return InputError(
        f"process {hosts.process} of {hosts.processes} did not meet the others at "
        f"{hosts.coordinator} ({reason})",
        fix="see that process 0 runs there, that its port is free and open between the hosts, and "
        "that every process has a number of its own",
    )


def _may_be_launched() -> bool:
    """Whether a launcher may have started other processes beside this one.

    JAX knows the launchers. But it gives a lone task of SLURM one GPU of all that it has, and takes
    every pod of Kubernetes for a part of a job.
    """
    environ = os.environ
    if "1" in (environ.get("SLURM_NTASKS"), environ.get("OMPI_COMM_WORLD_SIZE")):
        return False
    lone_pod = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" not in environ
    return not lone_pod or "TPU_WORKER_HOSTNAMES" in environ
