"""From steps of data to arrays on the mesh."""

from __future__ import annotations

import functools
from typing import Any, Protocol

from jax.sharding import Mesh

from train.data.batches import PackedBatches
from train.data.pipeline import Batches
from train.data.prefetch import Checked
from train.mesh import own_groups, place, place_whole


class Feed(Protocol):
    """The batches of a run.

    Attributes:
      steps: of held-out samples, how many steps hold each of them once.
      checked: the source that counts broken samples, if there can be any.
    """

    steps: int
    checked: Checked | None

    def read(self, step: int) -> Any:
        """What this process has to do with a step's data, in any thread."""
        ...

    def place(self, read: Any) -> Any:
        """Puts what was read on the mesh; the same call on every process."""
        ...

    def ids(self, step: int) -> list[str]:
        """Names of the samples of a step, without reading them."""
        ...


class PackedFeed:
    """Packed rows: every process reads the groups on its own devices.

    Args:
      batches: the steps.
      mesh: the mesh, over whose batch axes the groups lie.
      steps: see `Feed`.
      checked: see `Feed`.
    """

    def __init__(
        self,
        batches: PackedBatches,
        mesh: Mesh,
        steps: int = 1,
        checked: Checked | None = None,
    ):
        self.batches, self._mesh, self.steps, self.checked = batches, mesh, steps, checked
        own = own_groups(mesh, batches.groups)
        numbers = [a * batches.groups + g for a in range(batches.accumulate) for g in own]
        # No method: a loader process that is sent it must not be sent the mesh.
        self.read = functools.partial(batches.groups_of, numbers=numbers)

    def place(self, read: dict[int, Any]) -> Any:
        """See `Feed`."""
        batches = self.batches
        return place(read, self._mesh, each=batches.groups, accumulate=batches.accumulate)

    def ids(self, step: int) -> list[str]:
        """See `Feed`."""
        return [self.batches.source.name(entry) for entry in self.batches.layout(step)[0]]


class WholeFeed:
    """Batches that every process makes whole: small ones, of pictures that are all in memory.

    Args:
      batches: the batch of a step.
      mesh: the mesh.
    """

    def __init__(self, batches: Batches, mesh: Mesh):
        self._batches, self._mesh, self.steps = batches, mesh, 1
        self.checked: Checked | None = None

    def read(self, step: int) -> Any:
        """See `Feed`."""
        return self._batches(step)

    def place(self, read: Any) -> Any:
        """See `Feed`."""
        return place_whole(read, self._mesh)

    def ids(self, step: int) -> list[str]:
        """See `Feed`; these samples have no names."""
        return []
