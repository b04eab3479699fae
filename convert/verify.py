"""Checks of a conversion after the fact: bytes read back, and logits beside the peer's."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.destinations.torch_layout import CONVERSION_FILE
from convert.engine import plan_export, shapes_of
from convert.layouts import HF_LAYOUT
from convert.pipeline import read_conversion
from convert.readers.checkpoint import open_checkpoint
from convert.source import Source
from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.hf_config import to_hf_config
from janus_jax.host_memory import host_memory
from janus_jax.manifest import sha256
from janus_jax.params_io import LazyTensor, open_params

LIMIT = 1e-4
"""Largest difference accepted, in units of the largest logit (or of 1, where that is smaller)."""

_TEXT_TOKENS = 12


@dataclass(frozen=True)
class Parity:
    """Logits of ours and of transformers' model with the same weights, in float32.

    Attributes:
      text: largest difference of text logits, of a prompt with a picture, over the largest logit
        (or 1); NaN where not run.
      image: the same of image logits, teacher-forced.
      skipped: why it was not run; empty where it was.
    """

    text: float = math.nan
    image: float = math.nan
    skipped: str = ""

    @property
    def holds(self) -> bool:
        """False only where it was run and a difference is above the limit."""
        return bool(self.skipped) or max(self.text, self.image) <= LIMIT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: numbers, or the reason why there are none."""
        if self.skipped:
            return {"skipped": self.skipped}
        return {"text_logits": self.text, "image_logits": self.image, "limit": LIMIT}


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
      tensors: how many were read back, all equal to their checksums.
      parity: logits beside the peer's.
    """

    tensors: int
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "parity": self.parity.to_json()}


def verify(directory: Path, source: Source) -> Verification:
    """Reads a conversion back from disk and compares it.

    Args:
      directory: what `convert` wrote.
      source: what it was converted from.

    Returns:
      The report.

    Raises:
      InputError: a tensor that is not what was written, all of them named; or logits that differ.
    """
    count = check_tensors(directory)
    parity = check_parity(source)
    if not parity.holds:
        raise InputError(
            f"logits differ from transformers' by {parity.text:.2e} (text) and "
            f"{parity.image:.2e} (image)",
            f"at most {LIMIT}",
            "do not use this conversion, and report it",
        )
    return Verification(count, parity)


def check_tensors(directory: Path) -> int:
    """Compares every stored tensor with its checksum; one tensor in memory at a time.

    Returns:
      The number of tensors.

    Raises:
      InputError: tensors that are missing, extra or changed; all of them.
    """
    wanted = read_conversion(directory)["tensors"]
    stored: Mapping[str, Any]
    if (directory / CONVERSION_FILE).is_file():
        stored = open_checkpoint(directory).tensors
    else:
        stored = open_params(directory / "params")
    wrong = [f"{name} missing" for name in wanted if name not in stored]
    wrong += [f"{name} unexpected" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        if sha256(stored[name].read()) != wanted[name]["sha256"]:
            wrong.append(f"{name} changed")
    if wrong:
        shown = ", ".join(sorted(wrong)[:6]) + (f" and {len(wrong) - 6} more" * (len(wrong) > 6))
        raise InputError(
            f"{str(directory)!r} does not hold what was written: {shown}", fix="convert again"
        )
    return len(wanted)


def check_parity(source: Source) -> Parity:
    """Runs both implementations on the source's weights, in float32.

    It needs transformers and torch, and memory for the weights twice; where one is missing, the
    report says so.
    """
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        return Parity(skipped=f"{' and '.join(missing)} not installed")
    needed = 2 * 4 * sum(tensor.size for tensor in source.params.values())
    memory = host_memory()
    if memory is not None and needed > memory.free:
        return Parity(
            skipped=f"it takes {needed / 1e9:.1f} GB of memory, {memory.free / 1e9:.1f} GB are free"
        )
    return _run(source.config, source.params, source.tokenizer.image_placeholder)


def _run(config: JanusConfig, params: Mapping[str, LazyTensor], image_token: int) -> Parity:
    import jax.numpy as jnp
    from flax import nnx

    from janus_jax.functional import abstract, unflatten_params

    arrays = {path: np.asarray(t.read()).astype(np.float32) for path, t in params.items()}
    graphdef, shapes = abstract(config)
    ours = nnx.merge(graphdef, unflatten_params(shapes, arrays))
    peer = _peer(config, arrays, image_token)

    rng = np.random.default_rng(0)
    side, slots = config.image_size, config.vision.num_patches
    pixels = rng.uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
    words = rng.integers(0, config.llm.vocab_size, (1, _TEXT_TOKENS))
    words[words == image_token] += 1
    tokens = np.concatenate([words, np.full((1, slots), image_token), words[:, ::-1]], axis=1)
    index = np.full(tokens.shape, -1)
    index[0, _TEXT_TOKENS : _TEXT_TOKENS + slots] = np.arange(slots)
    codes = rng.integers(0, config.vq.codebook_size, (1, min(slots, 64)))

    def hidden(x: Any) -> Any:
        length = x.shape[1]
        positions = jnp.arange(length)[None]
        return ours.hidden(x, positions, jnp.ones((1, length), bool))

    features = ours.encode_image(jnp.asarray(pixels))
    seen = hidden(ours.embed(jnp.asarray(tokens), features, jnp.asarray(index)))
    drawn = hidden(
        jnp.concatenate(
            [ours.embed(jnp.asarray(words)), ours.embed_image_tokens(jnp.asarray(codes))], axis=1
        )
    )
    text, image = peer(tokens, pixels, words, codes)
    return Parity(
        _difference(np.asarray(ours.text_logits(seen)), text),
        _difference(np.asarray(ours.image_logits(drawn)), image),
    )


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1.0))


def _peer(config: JanusConfig, arrays: dict[str, np.ndarray], image_token: int) -> Any:
    """Transformers' model with these weights: (tokens, pixels, words, codes) -> both logits."""
    import torch
    from transformers import JanusConfig as PeerConfig
    from transformers import JanusForConditionalGeneration

    plan = plan_export(HF_LAYOUT.table, shapes_of(arrays), shapes_of(arrays))
    content = to_hf_config(config, image_token_id=image_token)
    with torch.device("meta"):
        model = JanusForConditionalGeneration(PeerConfig(**content))
    state = {key: torch.from_numpy(array.copy()) for key, array in plan.write(arrays)}
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(state, strict=True, assign=True)
    _restore_buffers(model)

    @torch.no_grad()
    def run(
        tokens: np.ndarray, pixels: np.ndarray, words: np.ndarray, codes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        text = model(
            input_ids=torch.from_numpy(tokens),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        ).logits
        inner = model.model
        embedded = inner.generation_aligner(inner.generation_embeddings(torch.from_numpy(codes)))
        prompt = model.get_input_embeddings()(torch.from_numpy(words))
        hidden = inner.language_model(inputs_embeds=torch.cat([prompt, embedded], dim=1))
        image = inner.generation_head(hidden.last_hidden_state)
        return text.numpy(), image.numpy()

    return run


def _restore_buffers(model: Any) -> None:
    """Recomputes what a model made without memory lacks: rotary tables, position ids."""
    import torch

    rotary = model.model.language_model.rotary_emb
    model.model.language_model.rotary_emb = type(rotary)(config=rotary.config)
    for module in model.modules():
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, torch.Tensor):
            module.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)
