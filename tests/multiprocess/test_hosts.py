"""How processes meet, agree and end: real ones, which do nothing else."""

import os
import socket
import sys
import time

import jax
import pytest

from janus_jax import InputError, hosts
from janus_jax.hosts import HostsConfig
from tests.faults.processes import forkserver
from tests.multiprocess.children import free_port
from tests.multiprocess.programs import child

COUNT = 3


def start(work, logs, *args, count=COUNT, started=None, port=None, **settings):
    """Starts so many of `count` processes; see `ended`."""
    logs.mkdir(exist_ok=True)
    port = port or free_port()
    children = []
    for i in started if started is not None else range(count):
        config = HostsConfig(f"localhost:{port}", count, i, heartbeat_seconds=10, **settings)
        given = (work, logs / str(i), config, 1, *args)
        children.append(forkserver().Process(target=child, args=given))
        children[-1].start()
    return children


def ended(children, logs, within=60.0):
    """Exit statuses, and the lines of each."""
    end = time.monotonic() + within
    for process in children:
        process.join(max(0.0, end - time.monotonic()))
    statuses = [process.exitcode for process in children]
    for process in children:
        process.kill()
        process.join()
    return statuses, [path.read_text().splitlines() for path in sorted(logs.iterdir())]


def agree():
    team = hosts.team()
    assert team is not None and hosts.is_first() == (team.index == 0)
    assert not team.any(False)
    assert team.any(team.index == 2)
    # The answer before is no answer to this question.
    assert not team.any(False)
    assert team.of_first(f"of {team.index}") == "of 0"
    hosts._BUSY = 0.05

    def work() -> str:
        time.sleep(0.3)
        return "done"

    asked = team._asked
    assert hosts.by_first(work) == ("done" if team.index == 0 else None)
    assert team._asked - asked >= 3  # nobody waits for as long as the work takes
    assert team.any(team.index == 1)
    team.add("sum", team.index)
    hosts.wait("added")
    assert team.add("sum", 0) == 3
    heard = []
    team.when_stopped = lambda: heard.append(team.index)
    hosts.wait("listening")
    if team.index == 1:
        team.stop()
    end = time.monotonic() + 20
    while not heard and team.index != 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert bool(heard) == (team.index != 1)
    print("agreed", file=sys.stderr)
    hosts.part()


def test_processes_agree_and_part(tmp_path):
    statuses, said = ended(start(agree, tmp_path / "logs"), tmp_path / "logs")
    assert statuses == [0] * COUNT, said
    assert said == [["agreed"]] * COUNT


def fail(failing):
    team = hosts.team()
    assert team is not None
    if team.index in failing:
        if hosts.leave(2):
            print("why", file=sys.stderr)
        hosts.end(2)
    # What would never end by itself.
    time.sleep(600)


@pytest.mark.parametrize("failing", [(0,), (2,), (0, 1, 2)], ids=["first", "last", "all"])
def test_a_failure_ends_all_and_is_said_once(tmp_path, failing):
    statuses, said = ended(start(fail, tmp_path / "logs", failing), tmp_path / "logs", 30)
    assert statuses == [2] * COUNT, said
    assert [line for lines in said for line in lines] == ["why"]


def fail_at_work():
    """What the first one does for all fails: nobody waits for its end."""

    def work():
        raise InputError("why")

    try:
        hosts.by_first(work)
    except InputError as error:
        if hosts.leave(2):
            print(error, file=sys.stderr)
        hosts.end(2)


def test_a_failure_of_the_one_that_works_for_all_ends_all(tmp_path):
    statuses, said = ended(start(fail_at_work, tmp_path / "logs"), tmp_path / "logs", 30)
    assert statuses == [2] * COUNT, said
    assert [line for lines in said for line in lines] == ["why"]


@pytest.mark.parametrize("started", [0, 1])
def test_a_process_that_waits_for_others_in_vain_says_so(tmp_path, started):
    logs = tmp_path / "logs"
    children = start(agree, logs, count=2, started=[started], start_seconds=2)
    [status], [[line]] = ended(children, logs, 30)
    assert status == 2
    assert line.startswith(f"janus-jax: error: process {started} of 2 did not meet the others at ")
    assert "(not all of them came within 2 s); fix: see that process 0 runs there" in line


def test_a_port_that_is_taken_is_named():
    with socket.socket() as box:
        box.bind(("", 0))
        box.listen()
        port = box.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: .*in use"):
            hosts.connect(HostsConfig(f"localhost:{port}", 2, 0))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"processes": 2, "process": 0}, "need --hosts.coordinator"),
        ({"coordinator": "here", "processes": 2, "process": 0}, "allowed: HOST:PORT"),
        ({"coordinator": "a:1"}, "--hosts.processes 0"),
        ({"coordinator": "a:1", "processes": 2}, "--hosts.process -1; allowed: 0 to 1"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--hosts.process 2"),
        ({"coordinator": "a:1", "alone": True}, "exclude each other"),
        ({"start_seconds": 0}, "--hosts.start-seconds 0; allowed: at least 1"),
        ({"heartbeat_seconds": 0}, "--hosts.heartbeat-seconds 0"),
    ],
)
def test_bad_flags_are_named(given, named):
    with pytest.raises(InputError) as caught:
        HostsConfig(**given)
    assert named in str(caught.value)


def launched(job, task):
    """As a task of SLURM, which is told by nothing else that there is another one."""
    os.environ |= {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
    }
    hosts.connect(HostsConfig(heartbeat_seconds=10))
    team = hosts.team()
    assert team is not None and (team.index, team.count) == (task, 2)
    assert jax.device_count() == 2 and team.any(team.index == 1)
    hosts.part()


def test_tasks_of_slurm_find_one_another(tmp_path):
    def is_free(job):  # JAX takes the port from the job's number
        with socket.socket() as box:
            return box.connect_ex(("localhost", 65535 - 2**12 + 1 + job)) != 0

    job = next(filter(is_free, range(os.getpid() % 2**11, 2**12)))
    logs = [tmp_path / str(task) for task in range(2)]
    alone = HostsConfig(alone=True)  # `launched` connects by itself
    children = [
        forkserver().Process(target=child, args=(launched, logs[task], alone, 1, job, task))
        for task in range(2)
    ]
    for process in children:
        process.start()
    statuses, said = ended(children, tmp_path)
    assert statuses == [0, 0], said


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, True),
        ({"SLURM_NTASKS": "16"}, True),
        ({"SLURM_NTASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_launchers_are_asked_where_they_may_have_started_others(monkeypatch, environ, asked):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name in ("JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert hosts._may_be_launched() == asked


def test_a_process_alone_is_the_first_and_waits_for_nobody(tmp_path):
    assert hosts.by_first(lambda: "done") == "done"
    hosts.connect(HostsConfig(alone=True))
    hosts.connect(HostsConfig())  # no launcher here
    assert hosts.team() is None and hosts.is_first()
    hosts.wait("nobody")
    hosts.end(3)
    hosts.part()
    assert hosts.leave(3)
    assert hosts.own_file(tmp_path / "stacks.txt") == tmp_path / "stacks.txt"
