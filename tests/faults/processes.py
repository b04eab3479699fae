"""Processes for fault tests that are at work within milliseconds.

They are forked from one server that has imported everything and started no thread. Python has one
such server a process, so all modules that any test wants in it are named here.
"""

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = ["tests.faults.converting", "tests.faults.training"]


def forkserver() -> ForkServerContext:
    """Where `Process` forks from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
