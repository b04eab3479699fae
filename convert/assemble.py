"""A Janus from published components, ready for stage 1.

Language model, vision tower and VQ tokenizer are what they were. Both aligners, the table of image
tokens and the image head are new: stage 1 trains them (Janus-Pro report, section 2.2). The
vocabulary gets the control tokens it lacks (`convert.extend`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from convert.configs import named
from convert.extend import Vocabulary, extend_embedding, extend_head, extend_vocabulary
from convert.jsonfile import read_object
from convert.parts import Part, plan_llm, plan_vision, plan_vq
from janus_jax.checkpoint import save_model
from janus_jax.config import JanusConfig
from janus_jax.functional import abstract, flat_params, unflatten_params
from janus_jax.models.adaptors import Aligner, ImageHead
from janus_jax.nn.layers import Embedding
from janus_jax.processing.settings import JANUS_PRO_PROCESSOR

CARD = """# {name}

A Janus assembled by Janus-JAX from separately trained components, before any training of its own.
It can neither read nor draw pictures yet: both aligners, the table of image tokens and the image
head are random (seed {seed}) and are what stage 1 trains.

- language model: {llm}
- vision tower: {vision}
- VQ tokenizer: {vq}
- control tokens added to the vocabulary: {added}

The licences of the three components apply to what is made from them.
"""


@dataclass(frozen=True)
class Assembled:
    """What `assemble` wrote.

    Attributes:
      destination: the model directory.
      config: its architecture.
      added: ids of the control tokens that the vocabulary lacked.
      dropped: keys of the components that stayed behind, by part.
      parameters: how many numbers there are, by child of the model.
    """

    destination: Path
    config: JanusConfig
    added: dict[str, int]
    dropped: dict[str, tuple[str, ...]]
    parameters: dict[str, int]


class FreshParts(nnx.Module):
    """The children of `JanusModel` that no component has, as it initialises them.

    Args:
      config: the architecture.
      rngs: initialisation keys.
    """

    def __init__(self, config: JanusConfig, rngs: nnx.Rngs):
        """Makes them in float32."""
        kwargs: dict[str, Any] = dict(dtype=jnp.float32, param_dtype=jnp.float32)
        width, codes, dim = config.llm.width, config.vq.codebook_size, config.vq.codebook_dim
        self.aligner = Aligner(rngs, config.vision.width, width, axis="embed", **kwargs)
        self.gen_embed = Embedding(
            rngs, codes, dim, (None, None), init=initializers.normal(1.0), **kwargs
        )
        self.gen_aligner = Aligner(rngs, dim, width, axis=None, **kwargs)
        self.image_head = ImageHead(rngs, width, codes, **kwargs)


def assemble(
    destination: str | Path,
    *,
    llm: str | Path,
    vision: str | Path,
    vq: str | Path,
    seed: int = 0,
    dtype: str | None = None,
) -> Assembled:
    """Writes a model directory from three components; it appears whole or not at all.

    The components are mapped, not loaded: only what is new, and the two tables of the vocabulary,
    are in memory.

    Args:
      destination: a new or empty directory, or a model directory to replace.
      llm: directory of a `LlamaForCausalLM` with its tokenizer.json.
      vision: directory of a `SiglipVisionModel` or `SiglipModel`.
      vq: `.pt` of a LlamaGen VQ tokenizer, or `.safetensors`.
      seed: of everything that is new.
      dtype: storage dtype of all parameters; None keeps that of each component, and float32 for
        the new ones.

    Returns:
      What was written.

    Raises:
      InputError: components that are missing, damaged or do not go together; an unusable
        destination.
      MappingError: keys or shapes of a component that do not fit; all of them.
    """
    language, tower, tokenizer = plan_llm(llm), plan_vision(vision), plan_vq(vq)
    parts: dict[str, Part] = {"llm": language, "vision": tower, "vq": tokenizer}
    directory = Path(llm)
    model = read_object(directory / "config.json")
    words = extend_vocabulary(directory / "tokenizer.json", model, language.config.vocab_size)
    grown = dataclasses.replace(language.config, vocab_size=words.size)
    config = named(JanusConfig("custom", tower.config, tokenizer.config, grown))

    params = _parameters(config, parts, words, seed)
    image = dataclasses.replace(JANUS_PRO_PROCESSOR.image, image_size=config.image_size)
    given = {"llm": llm, "vision": vision, "vq": vq}
    sources = {kind: Path(source).absolute().name for kind, source in given.items()}
    added = ", ".join(f"`{token}` ({number})" for token, number in words.added.items()) or "none"
    save_model(
        destination,
        config,
        unflatten_params(abstract(config)[1], params),
        words.tokenizer,
        dataclasses.replace(JANUS_PRO_PROCESSOR, image=image),
        card_text=CARD.format(name=config.name, seed=seed, added=added, **sources),
        dtype=dtype,
        source=f"assembled from {', '.join(sources.values())} (seed {seed})",
    )
    counts: dict[str, int] = {}
    for path, array in params.items():
        child = path.partition("/")[0]
        counts[child] = counts.get(child, 0) + array.size
    dropped = {kind: part.plan.dropped for kind, part in parts.items()}
    return Assembled(Path(destination), config, words.added, dropped, counts)


def _parameters(
    config: JanusConfig, parts: dict[str, Part], words: Vocabulary, seed: int
) -> dict[str, np.ndarray]:
    """Every parameter by path: views of the components, and what is new."""
    params = {path: array for part in parts.values() for path, array in part.read()}
    for path, extend in (
        ("llm/embed/embedding", lambda x: extend_embedding(x, words, seed=seed)),
        ("llm/lm_head/kernel", lambda x: extend_head(x, words)),
    ):
        params[path] = extend(params[path])
    fresh = FreshParts(config, nnx.Rngs(params=seed))
    return params | {k: np.asarray(v) for k, v in flat_params(nnx.state(fresh)).items()}
