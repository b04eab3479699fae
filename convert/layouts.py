"""Which published layout a checkpoint is in: found from its keys, never asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from convert.keys import DEEPSEEK, HF, HF_OLDER, Table
from janus_jax.errors import InputError


@dataclass(frozen=True)
class Layout:
    """A way to store a whole Janus.

    Attributes:
      name: as messages and manifests say it.
      table: its key table.
      config: whose `config.json` and processor files lie beside the tensors.
    """

    name: str
    table: Table
    config: Literal["hf", "deepseek"]


HF_LAYOUT = Layout("hf", HF, "hf")
"""transformers, current release."""
HF_OLDER_LAYOUT = Layout("hf-older", HF_OLDER, "hf")
"""transformers, earlier releases."""
DEEPSEEK_LAYOUT = Layout("deepseek", DEEPSEEK, "deepseek")
"""DeepSeek's own files."""

# Prefixes that only this layout has. A tower that is missing altogether is then reported with all
# its keys, by the plan, and not as an unknown layout.
_MARKS = (
    (DEEPSEEK_LAYOUT, ("vision_model.vision_tower.", "gen_vision_model.", "language_model.model.")),
    (HF_LAYOUT, ("model.vision_model.", "model.vqmodel.", "model.language_model.")),
    (HF_OLDER_LAYOUT, ("vqmodel.", "generation_head.", "generation_embeddings.")),
)

# Components, which are converted on their own.
_PARTS = (
    ("llm", ("model.layers.", "model.embed_tokens.")),
    ("vision", ("vision_model.encoder.", "vision_model.embeddings.", "encoder.layers.")),
    ("vq", ("quantize.", "quant_conv.", "post_quant_conv.")),
)


def detect(keys: Iterable[str]) -> Layout:
    """The layout that a checkpoint's keys are in.

    Args:
      keys: names of all tensors.

    Raises:
      InputError: keys of no layout, or of two.
    """
    keys = list(keys)
    found = [layout for layout, marks in _MARKS if any(key.startswith(marks) for key in keys)]
    if len(found) == 1:
        return found[0]
    allowed = "a Janus in DeepSeek's layout or in transformers'"
    if found:
        raise InputError(
            f"the checkpoint has keys of the layouts {' and '.join(x.name for x in found)}",
            allowed,
            "keep the files of one checkpoint in the directory",
        )
    for part, marks in _PARTS:
        if any(key.startswith(marks) for key in keys):
            raise InputError(
                f"the checkpoint is no whole Janus; its keys are those of a part ({part})",
                allowed,
                f"convert it with --part {part}",
            )
    shown = ", ".join(repr(key[:80]) for key in keys[:3]) or "none"
    raise InputError(f"the checkpoint's keys are of no known layout ({shown}, ...)", allowed)
