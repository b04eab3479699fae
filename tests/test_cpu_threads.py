"""How many threads XLA is told to make."""

import os

import pytest

from janus_jax.cpu_threads import enough_cpu_threads


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
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    enough_cpu_threads(environ=environ)
    assert environ.get("PJRT_NPROC") == (None if threads is None else str(threads))


def test_a_large_processor_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    environ: dict[str, str] = {}
    enough_cpu_threads(2, environ)
    assert environ == {"PJRT_NPROC": "96"}
