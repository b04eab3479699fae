"""What a checkpoint says of itself, as a small JSON object with a checksum of its own."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself.

    Attributes:
      step: steps made.
      saved: when, ISO 8601 in UTC.
      metrics: of the last step.
      sampler: where the data stands; the order is a function of (seed, step), so this is for people
        and for checks.
      config: the run's config.
      mesh: size of each mesh axis it was saved on; empty for one device.
      processes: number of processes it was saved by.
      checksums: of every array, by path.
      evaluation_due: the evaluation of this step was cut short; who resumes makes it up.
    """

    step: int
    saved: str
    metrics: dict[str, float] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    mesh: dict[str, int] = field(default_factory=dict)
    processes: int = 1
    checksums: dict[str, str] = field(default_factory=dict)
    evaluation_due: bool = False

    def summary(self) -> str:
        """One line for the person who resumes."""
        sizes = ",".join(f"{axis}={n}" for axis, n in self.mesh.items() if n > 1)
        mesh = f"mesh {sizes}" if sizes else "one device"
        parts = [f"step {self.step}", f"saved {self.saved}"]
        if "loss" in self.metrics:
            parts.append(f"loss {self.metrics['loss']:.4g}")
        processes = "process" if self.processes == 1 else "processes"
        parts.append(f"on {mesh}, {self.processes} {processes}")
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in self.sampler.items()]
        if self.evaluation_due:
            parts.append("its evaluation is made up first")
        return ", ".join(parts)


def sealed(record: Record) -> dict[str, Any]:
    """A record as a JSON object, with a checksum of it."""
    content = asdict(record)
    return {**content, "seal": _checksum(content)}


def unseal(text: str) -> Record:
    """The record that `sealed` made a JSON object of.

    Raises:
      Exception: of any type: the text is damaged.
    """
    content = json.loads(text)
    if content.pop("seal") != _checksum(content):
        raise ValueError("its contents do not match their checksum")
    return Record(**content)


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
