"""Batches made ahead of time, by threads or by Grain's worker processes, in the steps' order.

A batch is a function of its step, so no worker has a state: whichever makes it, and whenever a run
begins, it is the same.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from janus_jax.errors import RunFailed
from train.data.bad_samples import BadSample, BadSamples
from train.data.workers import end_with_parent

Batch = TypeVar("Batch")

TIMEOUT = 600.0
"""Seconds without a new batch after which a run gives up waiting."""


class WorkerFailed(RunFailed):
    """A worker that makes batches died or hangs."""


class Checked(Protocol):
    """A source that writes down which samples are broken (`RecordSource`)."""

    bad: BadSamples

    def found(self, step: int) -> list[BadSample]:
        """Those met in a step."""
        ...


def prefetch(
    read: Callable[[int], Batch],
    start: int,
    stop: int,
    *,
    source: Checked | None = None,
    threads: int = 1,
    processes: int = 0,
    timeout: float = TIMEOUT,
) -> Iterator[Batch]:
    """The batches of steps `start` to `stop`.

    Decoding and resizing pictures leave Python's lock alone, so threads go a long way; processes go
    further, where a host has many cores for one accelerator, and each holds the source once more.

    Args:
      read: makes the batch of a step.
      start: first step.
      stop: one past the last step.
      source: where `read` takes its samples; the broken ones of a step are counted as it is taken.
      threads: threads of this process that make batches, each one at a time.
      processes: processes that make them instead; `read` and `source` are sent there by
        cloudpickle.
      timeout: seconds to wait for a batch.

    Raises:
      TooManyBadSamples: see `BadSamples`.
      WorkerFailed: a worker died, or no batch came in time.
      Exception: whatever `read` raises.
    """

    def make(step: int) -> tuple[Batch, list[BadSample]]:
        return read(step), source.found(step) if source is not None else []

    if processes:
        made = [_in_processes(make, start, stop, processes)]
    else:
        # Steps are dealt out in turn, so that their order needs no other care.
        made = [map(make, range(start + i, stop, threads)) for i in range(threads)]
    for batch, found in _watched(made, start, stop, timeout):
        if source is not None:
            source.bad.settle(found)
        yield batch


class _Steps(Sequence[int]):
    """The step numbers [start, stop), as a source for Grain."""

    def __init__(self, start: int, stop: int):
        self._range = range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: Any) -> int:
        return self._range[index]


def _in_processes(make: Callable[[int], Any], start: int, stop: int, processes: int) -> Any:
    import grain.python as grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks for its own, which have their defaults here
    steps = grain.MapDataset.source(_Steps(start, stop)).map(make)
    # One batch is being made and one is waiting in each worker: memory for two batches each.
    ahead = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=1)
    return iter(ahead.mp_prefetch(options, worker_init_fn=_begin_worker))


def _begin_worker(index: int, count: int) -> None:
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerators belong to the parent
    # Ctrl-C, and SIGTERM on a cluster, go to all processes; the parent stops its workers itself
    # once it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()


def _watched(made: Sequence[Iterator[Any]], start: int, stop: int, timeout: float) -> Iterator[Any]:
    """Takes from the iterators in turn, each drawn from by a thread of its own.

    The threads are daemons: a read that hangs for good must not keep the process from ending.
    """
    closed = threading.Event()
    queues: list[queue.Queue[tuple[Any, BaseException | None]]] = []
    for items in made:
        queues.append(queue.Queue(maxsize=1))
        drawn = (items, queues[-1], closed)
        threading.Thread(target=_draw, args=drawn, name="prefetch", daemon=True).start()
    try:
        for step in range(start, stop):
            try:
                batch, error = queues[(step - start) % len(queues)].get(timeout=timeout)
            except queue.Empty:
                raise WorkerFailed(
                    f"no batch for step {step} within {timeout:g} s: a loader worker hangs, or "
                    "storage is too slow; the run can be resumed"
                ) from None
            if error is not None:
                raise _explained(error, step)
            yield batch
            del batch  # the next one should not find this one in memory
    finally:
        closed.set()


def _draw(items: Any, ready: queue.Queue[Any], closed: threading.Event) -> None:
    def put(batch: Any, error: BaseException | None) -> None:
        while not closed.is_set():
            try:
                ready.put((batch, error), timeout=0.2)
                return
            except queue.Full:
                continue

    try:
        for batch in items:
            put(batch, None)
            del batch
            if closed.is_set():
                break
    except BaseException as error:  # goes on in the thread that waits
        put(None, error)
    finally:
        # As the process ends Grain stops its workers too, and one of both finds them gone.
        with contextlib.suppress(Exception):
            if hasattr(items, "close"):
                items.close()


def _explained(error: BaseException, step: int) -> BaseException:
    # Grain has no type of its own for this.
    if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
        failed = WorkerFailed(
            f"a loader worker died before the batch of step {step} was there ({error}); if memory "
            "was short, fewer loader processes need less; the run can be resumed"
        )
        failed.__cause__ = error
        return failed
    return error
