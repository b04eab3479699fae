"""Worker processes that do not outlive their parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def end_with_parent() -> None:
    """Ends the process that calls this within a second or so of its parent, however that ends."""
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def worker_pool(
    workers: int, prepare: Callable[..., None] | None = None, *args: Any
) -> ProcessPoolExecutor:
    """A pool of processes, each of which calls `prepare(*args)` before its first task.

    They are spawned, not forked: the parent may have threads of JAX or gRPC. Without
    `end_with_parent` they would wait for tasks for ever once the parent is killed.
    """
    return ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(prepare, args)
    )


def _begin(prepare: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    end_with_parent()
    if prepare is not None:
        prepare(*args)
