"""The TPU compiler where there is no TPU.

libtpu has an environment of its own (`INSTALL`), because wherever it is installed JAX looks for a
TPU. Nothing heavy is imported here: its variables are read when JAX is.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from janus_jax.errors import InputError
from train.plan.chips import Topology

# Keeps libtpu from asking a cloud where it runs, and from locking out its like on this machine.
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
INSTALL = 'python -m venv .venv-tpu && .venv-tpu/bin/pip install -e ".[tpu]"'


def installed() -> bool:
    """Whether the TPU compiler is in this environment."""
    return importlib.util.find_spec("libtpu") is not None


def prepare(command: str) -> None:
    """Makes ready to compile for TPUs.

    Args:
      command: what to run again where it is not installed, without the program's name.

    Raises:
      InputError: it is not installed, with the commands that make an environment with it.
    """
    if not installed():
        raise InputError(
            "the TPU compiler (libtpu) is not in this environment",
            fix=f"{INSTALL} && .venv-tpu/bin/janus-jax {command} (Linux x86-64)",
        )
    import jax

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # JAX may have read its variable already.
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a slice, as the compiler describes them.

    Raises:
      InputError: it knows no such slice.
    """
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **dict(topology.chip.description)
        ).devices
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--topology {topology.name}: the TPU compiler says: {reason}") from error
    if len(devices) != topology.devices:
        raise InputError(
            f"--topology {topology.name} has {len(devices)} devices", f"{topology.devices}"
        )
    return list(devices)
