"""Janus-JAX: an open, trainable Janus-Pro in JAX.

The public names load on first use, so that ``import janus_jax`` costs milliseconds and a process
can still set ``JAX_PLATFORMS`` or ``XLA_FLAGS`` afterwards::

    from janus_jax import Janus
    model = Janus.from_pretrained("emoji")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_jax.api import Janus
    from janus_jax.config import JanusConfig
    from janus_jax.errors import BadPrompts, InputError
    from janus_jax.generate.batch import ChatRequest

__version__ = "0.1.0"

__all__ = ["BadPrompts", "ChatRequest", "InputError", "Janus", "JanusConfig", "__version__"]

_HOME = {
    "BadPrompts": "janus_jax.errors",
    "ChatRequest": "janus_jax.generate.batch",
    "InputError": "janus_jax.errors",
    "Janus": "janus_jax.api",
    "JanusConfig": "janus_jax.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'janus_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
