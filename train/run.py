"""What stays the same from the first step of a run to its last."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh

from train.config import TrainConfig
from train.mesh import replicate
from train.scanned import Leaf
from train.state import TrainState
from train.task import Task


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to its last.

    Attributes:
      config: the resolved preset.
      directory: the run directory.
      mesh: the devices.
      task: what is done.
      tokenizer: parameters of the image tokenizer, where the run has one: it is never trained by a
        stage, so it is no part of the state.
      shardings: of the state.
    """

    config: TrainConfig
    directory: Path
    mesh: Mesh
    task: Task
    tokenizer: nnx.State | None
    shardings: TrainState

    def whole_params(self, state: TrainState, leaf: Leaf) -> nnx.State:
        """The parameters of a state as they are on disk, the tokenizer's among them.

        Args:
          state: a state of the run.
          leaf: what to keep of each.
        """
        params = self.task.to_layers(state.params, leaf)
        if self.tokenizer is None:
            return params
        tokenizer = replicate(self.tokenizer, self.mesh)
        return nnx.State({**params, "vq": jax.tree.map(lambda x: leaf(lambda: x), tokenizer)})
