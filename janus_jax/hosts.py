"""Several processes that work as one: how they find one another, agree, and end together.

JAX's own rule is that all processes of a job die together, but by itself it only notices a process
that falls silent, after a while. Here a process that fails tells the others, so that all of them
end at once with the same exit status and the reason is printed once. What the processes tell one
another goes through the service that JAX starts on process 0, not through the devices: it works
while a device computes, or waits for a process that will never come.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from janus_jax.errors import InputError

# Seconds. What all processes wait for together may be the writing of a large file.
_LONGEST_WAIT = 3600
# A process that leaves gives the others so long to hear of it.
_GRACE = 10
# Seconds that process 0 stays after the others have said that they end.
_LAST = 1.0


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


class Team:
    """The processes that this one works with.

    Args:
      client: of the service on process 0.
      index: of this process.
      count: of all.
    """

    def __init__(self, client: Any, index: int, count: int):
        self.index, self.count = index, count
        self._client, self._leaving = client, False
        self._asked = 0  # questions; all processes ask the same ones in the same order
        # What is done when another process was asked to stop; in a thread.
        self.when_stopped: Callable[[], None] = lambda: None
        self._listener = threading.Thread(target=self._listen, name="team", daemon=True)
        self._listener.start()
        atexit.register(self.part)

    def wait(self, name: str) -> None:
        """Waits until all processes have come to the same place.

        Raises:
          RuntimeError: one of them died, or did not come within an hour.
        """
        self._client.wait_at_barrier(f"janus_jax/wait/{name}", _LONGEST_WAIT * 1000)

    def any(self, mine: bool) -> bool:
        """Whether the answer of any process is yes; the same everywhere. All have to ask.

        Args:
          mine: the answer of this process.

        Raises:
          RuntimeError: one of them died, or did not ask within an hour.
        """
        return bool(self.any_of("yes" if mine else ""))

    def any_of(self, mine: str) -> str:
        """What any of the processes has to say (empty: nothing); the same everywhere, as of `any`.

        Args:
          mine: what this process has to say; empty for nothing.
        """
        self._asked += 1
        key = f"janus_jax/any/{self._asked}"
        if mine:
            self._client.key_value_set(key, mine, allow_overwrite=True)
        self.wait("any")
        return self._try_get(key) or ""

    def of_first(self, value: str) -> str:
        """The value that process 0 has. All have to ask.

        Raises:
          RuntimeError: process 0 died, or did not ask within an hour.
        """
        self._asked += 1
        key = f"janus_jax/value/{self._asked}"
        if self.index == 0:
            self._client.key_value_set(key, value)
            return value
        return self._client.blocking_key_value_get(key, _LONGEST_WAIT * 1000)

    def add(self, name: str, number: int) -> int:
        """Adds to a sum over all processes, and returns it; nobody waits."""
        return self._client.key_value_increment(f"janus_jax/sum/{name}", number)

    def stop(self) -> None:
        """Tells the others that this process was asked to stop."""
        self._post(f"stop {self.index}")

    def leave(self, status: int) -> bool:
        """Tells the others to end, and waits until they have heard it; then `end` is to be called.

        Args:
          status: the exit status of all.

        Returns:
          Whether this process is the first to leave; if so, it has to say why.
        """
        try:
            self._client.key_value_set("janus_jax/leaving", str(self.index))
        except RuntimeError:  # another one leaves, or the service is gone
            return False
        self._leaving = True
        self._post(f"end {self.index} {status}")
        self._until_gone(range(1, self.count))
        return True

    def end(self, status: int) -> NoReturn:
        """Ends this process at once; process 0 has to end last."""
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"janus_jax/gone/{self.index}", "", allow_overwrite=True)
        if self.index == 0:
            self._until_gone(range(1, self.count))
            # They have said so just before they end, and JAX aborts who outlives process 0.
            time.sleep(_LAST)
        os._exit(status)

    def part(self) -> None:
        """An orderly end: waits for the others to be done as well.

        Also because the listener must not be in the midst of a call when Python ends.
        """
        import jax

        jax.distributed.shutdown()
        self._listener.join(_GRACE)

    def _until_gone(self, others: range) -> None:
        end = time.monotonic() + _GRACE
        for other in others:
            left = end - time.monotonic()
            if other != self.index and left > 0:
                try:
                    key = f"janus_jax/gone/{other}"
                    self._client.blocking_key_value_get(key, int(1000 * left) + 1)
                except RuntimeError:
                    return

    def _try_get(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(key)
        except RuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _post(self, event: str) -> None:
        """Adds to what all processes hear, each event once and in the same order."""
        for number in itertools.count():
            try:
                self._client.key_value_set(f"janus_jax/event/{number}", event)
                return
            except RuntimeError as error:
                if "ALREADY_EXISTS" not in str(error):
                    return  # the service is gone, and with it everybody else

    def _listen(self) -> None:
        number = 0
        while True:
            try:
                key = f"janus_jax/event/{number}"
                event, by, *rest = self._client.blocking_key_value_get(key, 600_000).split()
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                return  # an orderly end; and where process 0 has died, JAX ends this one
            number += 1
            if int(by) == self.index:
                continue
            if event == "stop":
                self.when_stopped()
            elif not self._leaving:
                self.end(int(rest[0]))


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
