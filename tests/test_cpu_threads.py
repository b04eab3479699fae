"""How many threads XLA is told to make."""

import os

import pytest

from janus_jax import cpu_threads, hosts
from janus_jax.cli import main
from janus_jax.cpu_threads import enough_cpu_threads
from janus_jax.hosts import HostsConfig


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({}, None),
        ({"JAX_NUM_CPU_DEVICES": "1"}, None),
        ({"JAX_NUM_CPU_DEVICES": "nonsense"}, None),
        ({"JAX_NUM_CPU_DEVICES": "2"}, 8),
        ({"JAX_NUM_CPU_DEVICES": "8"}, 32),
        ({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=4 --b"}, 16),
        ({"JAX_NUM_CPU_DEVICES": "2", "PJRT_NPROC": "3"}, 3),
    ],
)
def test_devices_that_share_a_processor_get_threads(monkeypatch, environ, threads):
    monkeypatch.setattr(cpu_threads, "cores", lambda: 2)
    enough_cpu_threads(environ=environ)
    assert environ.get("PJRT_NPROC") == (None if threads is None else str(threads))


def test_a_large_processor_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(cpu_threads, "cores", lambda: 96)
    environ: dict[str, str] = {}
    enough_cpu_threads(2, environ)
    assert environ == {"PJRT_NPROC": "96"}


def test_more_devices_than_were_expected_get_theirs(monkeypatch):
    monkeypatch.setattr(cpu_threads, "cores", lambda: 2)
    environ = {"JAX_NUM_CPU_DEVICES": "8"}
    enough_cpu_threads(2, environ)
    assert environ["PJRT_NPROC"] == "32"


def test_the_command_line_and_processes_that_meet_make_threads(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    assert main.run(["nonsense"]) == 2
    assert int(os.environ["PJRT_NPROC"]) >= 32
    monkeypatch.delenv("PJRT_NPROC")
    monkeypatch.setattr(hosts, "_check_port", lambda *args: 1 / 0)  # no further
    with pytest.raises(ZeroDivisionError):
        hosts.connect(HostsConfig("localhost:1", 2, 0))
    assert int(os.environ["PJRT_NPROC"]) >= 32
