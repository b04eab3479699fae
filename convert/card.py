"""The model card of a conversion: where the weights come from, and what may be done with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.source import Source
from janus_jax import __version__

_LICENCES = """## Licence

Conversion changes the format, not the terms. Janus and Janus-Pro weights are under the DeepSeek
Model License, which allows commercial use and lists uses it forbids; their code is MIT. They
contain a SigLIP vision tower (Apache-2.0) and a LlamaGen VQ tokenizer (MIT). Weights that were
trained further may have terms of their own: look at their source."""


def model_card(source: Source, facts: Mapping[str, Any], layout: str) -> str:
    """The card of a conversion.

    Args:
      source: what was converted.
      facts: what the manifest says about the source: `source_files` with their sha256, `dropped`.
      layout: what was written.
    """
    lines = [
        f"# {source.config.name}",
        "",
        f"Converted by Janus-JAX {__version__} to the {layout} layout, values unchanged unless a",
        "dtype is named below.",
        "",
        f"- source: {source.description()}",
        f"- architecture: {source.config.name}",
        f"- stored as: {', '.join(sorted({t.dtype.name for t in source.params.values()}))}",
    ]
    if dropped := facts.get("dropped"):
        lines.append(f"- left behind, as unused: {', '.join(map(str, dropped))}")
    if digests := facts.get("source_files"):
        lines += ["", "| file | sha256 |", "|---|---|"]
        lines += [f"| {name} | {digest} |" for name, digest in digests.items()]
    return "\n".join([*lines, "", _LICENCES, ""])
