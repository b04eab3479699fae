"""A preset's objective made concrete: what is trained, on which batches, with which loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from janus_jax.cli.common import progress_bar
from janus_jax.config import JanusConfig
from janus_jax.errors import InputError
from janus_jax.functional import abstract
from janus_jax.models.janus import JanusModel
from janus_jax.nn.layers import ShapesOnly
from janus_jax.nn.segments import kernel_of
from train.config import TrainConfig
from train.data.batches import PackedBatches
from train.data.emoji_source import EmojiSource
from train.data.every_sample import EverySample
from train.data.mixture import parse_data
from train.data.packing import KINDS, Kind
from train.data.record_source import RecordSource, open_source
from train.data.records.shards import open_records
from train.data.samples import EmojiData
from train.data.source import Source
from train.feed import Feed, PackedFeed, WholeFeed
from train.init import Origin, find_origin
from train.lora import LORA, LoraJanus, abstract_lora, init_lora, to_layers
from train.mesh import batch_shards
from train.objectives import contrastive, janus, vq
from train.scanned import Leaf, ScannedJanus, made, stack, unstack
from train.state import stored
from train.step import LossFn, Sums

ENCODE_CHUNK = 64


@dataclass(frozen=True)
class Task:
    """What a run does.

    Attributes:
      origin: architecture, vocabulary and processor.
      graphdef: static graph of the module that the loss runs.
      abstract: its parameters, as shapes with their logical axes.
      init: makes them from a key.
      loss: the loss of a micro-step.
      heldout_loss: the same of held-out samples, which get no noise: it is alike in every run.
      feed: the batches of a split ("train" or "heldout"), given the tokenizer's parameters where a
        run has one (generation needs its codes).
      from_layers: parameters as they are on disk (a layer at a time) to those of the module.
      to_layers: and back, given what to keep of each (`train.scanned.Leaf`; the array itself).
    """

    origin: Origin
    graphdef: Any
    abstract: nnx.State
    init: Callable[[jax.Array], nnx.State]
    loss: LossFn
    heldout_loss: LossFn
    feed: Callable[[nnx.State | None, str], Feed]
    from_layers: Callable[[nnx.State], nnx.State]
    to_layers: Callable[..., nnx.State]


def make_task(config: TrainConfig, mesh: Mesh, run_dir: Path) -> Task:
    """The task of a preset.

    Args:
      config: the preset.
      mesh: where it runs.
      run_dir: directory of the run, which lists broken samples and keeps the vocabulary.

    Raises:
      InputError: an unknown architecture, or no vocabulary to be found.
    """
    origin = find_origin(config, run_dir)
    if config.objective == "janus":
        return _stage(config, origin, mesh, run_dir)
    model = origin.model
    if config.objective == "vq":
        data = functools.partial(_emoji, config, model)
        return _small(
            origin,
            lambda rngs: vq.VQPart(model, rngs),
            lambda module, batch, key: _means(*vq.loss(module, batch, config.vq_loss)),
            lambda _, split: WholeFeed(data(split).pictures_only(), mesh),
        )
    return _small(
        origin,
        lambda rngs: contrastive.ContrastivePart(model, rngs),
        lambda module, batch, key: _means(*contrastive.loss(module, batch)),
        lambda _, split: WholeFeed(_emoji(config, model, split).named_pictures(), mesh),
    )


def _small(
    origin: Origin,
    build: Callable[[nnx.Rngs], nnx.Module],
    loss: LossFn,
    feed: Callable[[nnx.State | None, str], Feed],
) -> Task:
    graphdef, params = nnx.split(build(ShapesOnly()))
    return Task(
        origin=origin,
        graphdef=graphdef,
        abstract=params,
        init=lambda key: nnx.split(build(nnx.Rngs(params=key)))[1],
        loss=loss,
        heldout_loss=loss,
        feed=feed,
        from_layers=lambda params: params,
        to_layers=lambda params, leaf=made: jax.tree.map(lambda x: leaf(lambda: x), params),
    )


def stage_program(
    config: TrainConfig, model: JanusConfig, mesh: Mesh, drawings: int
) -> tuple[Any, Callable[..., Sums]]:
    """What a stage computes, without its data: the module's static graph, and the loss.

    Args:
      config: the preset.
      model: the architecture.
      mesh: where it runs.
      drawings: pictures to draw in a step; only noise on their codes needs it.
    """
    how: dict[str, Any] = dict(
        dtype=jnp.dtype(config.compute_dtype),
        kernel=kernel_of(mesh.devices.flat[0].platform, config.compute_dtype),
        remat=config.remat,
    )
    if config.lora.rank:
        module: ScannedJanus = LoraJanus(model, ShapesOnly(), lora=config.lora, **how)
    else:
        module = ScannedJanus(model, ShapesOnly(), **how)
    loss = functools.partial(
        janus.loss,
        groups=batch_shards(mesh),
        drawings=drawings,
        text_weight=config.text_loss_weight,
        code_noise=config.code_noise,
        chunk=config.loss_chunk,
    )
    return nnx.graphdef(module), loss


def _stage(config: TrainConfig, origin: Origin, mesh: Mesh, run_dir: Path) -> Task:
    model, counts, lora = origin.model, config.samples(), config.lora
    graphdef, loss = stage_program(config, model, mesh, counts["generation"])
    shapes = stack(abstract(model)[1])
    if lora.rank:
        shapes = nnx.State({**shapes, LORA: abstract_lora(model, lora)})

    def init(key: jax.Array) -> nnx.State:
        params = stack(nnx.split(JanusModel(model, nnx.Rngs(params=key)))[1])
        if lora.rank:
            params = nnx.State({**params, LORA: init_lora(model, lora, key)})
        return stored(params, config)

    def layers(params: nnx.State, leaf: Leaf = made) -> nnx.State:
        return to_layers(params, lora, leaf) if lora.rank else unstack(params, leaf)

    def feed(tokenizer: nnx.State | None, split: str) -> Feed:
        source: Source
        steps, checked = 1, None
        if config.data and split == "train":
            # Every process counts the broken samples of the groups that it reads.
            own = f"-{jax.process_index()}" if jax.process_index() else ""
            log = run_dir / f"bad_samples{own}.jsonl"
            checked = open_data(config, origin, run_dir, bad_log=log)
            source = checked
        elif config.data:
            held = open_data(config, origin, run_dir, heldout=True)
            source = EverySample(held, config.batch_size or 8 * batch_shards(mesh))
            steps = source.steps
        else:
            data, codes = _emoji(config, model, split), None
            if counts["generation"]:
                codes = encode_pictures(model, tokenizer, data.pictures)
            source = EmojiSource(data, counts, codes)
        batches = PackedBatches(
            source,
            kinds=[kind for kind in KINDS if counts[kind]],
            length=config.length,
            image_size=model.image_size,
            image_tokens=model.num_image_tokens,
            groups=batch_shards(mesh),
            accumulate=config.accumulate if split == "train" else 1,
            rows=config.rows if split == "train" or not config.batch_size else 0,
        )
        return PackedFeed(batches, mesh, steps, checked)

    return Task(
        origin=origin,
        graphdef=graphdef,
        abstract=stored(shapes, config),
        init=init,
        loss=loss,
        heldout_loss=functools.partial(loss, code_noise=0.0),
        feed=feed,
        from_layers=stack,
        to_layers=layers,
    )


def open_data(
    config: TrainConfig,
    origin: Origin,
    run_dir: Path,
    *,
    heldout: bool = False,
    bad_log: Path | None = None,
) -> RecordSource:
    """The samples of a preset's data sets.

    Args:
      config: the preset.
      origin: vocabulary and processor.
      run_dir: directory of the run, where lengths are kept that cannot be kept beside the data.
      heldout: those that are held out, instead of those of the steps.
      bad_log: file that lists the broken ones.
    """
    training, model = not heldout, origin.model
    data = config.data if training else config.heldout
    samples: dict[Kind, int] = config.samples()
    if not training:
        there = {kind for s in parse_data(data) for kind in open_records(s.directory).kinds}
        samples = {kind: min(n, 1) for kind, n in samples.items() if kind in there}
    with progress_bar("measuring") as progress:
        return open_source(
            data,
            samples=samples,
            length=config.length,
            seed=config.seed,
            tokenizer=origin.tokenizer,
            processor=origin.processor,
            image_tokens=model.num_image_tokens,
            codebook_size=model.vq.codebook_size,
            rows=0 if config.batch_size or not training else config.rows,
            caption_drop=config.caption_drop if training else 0.0,
            max_bad_samples=config.max_bad_samples if training else None,
            bad_log=bad_log,
            lengths_in=run_dir / "lengths",
            fast_decode=config.fast_decode,
            progress=progress,
        )


def _emoji(config: TrainConfig, model: JanusConfig, split: str) -> EmojiData:
    return EmojiData(
        config,
        image_size=model.image_size,
        num_image_tokens=model.vision.num_patches,
        vocab_size=model.llm.vocab_size,
        split=split,
    )


def _means(loss: jax.Array, metrics: dict[str, jax.Array]) -> Sums:
    return {name: (value, jnp.ones(())) for name, value in {"loss": loss, **metrics}.items()}


def encode_pictures(
    config: JanusConfig, tokenizer: nnx.State | None, pictures: np.ndarray
) -> np.ndarray:
    """Image codes of a whole data set, made once: the tokenizer never changes in a stage.

    Args:
      config: the architecture.
      tokenizer: parameters of the model's child `vq`.
      pictures: uint8 [N, S, S, 3].

    Returns:
      int32 [N, P].

    Raises:
      InputError: no tokenizer.
    """
    if tokenizer is None:
        raise InputError(
            "generation samples need image codes, and the run has no tokenizer to make them",
            fix="add vq=RUN or vq=MODEL to --init",
        )
    graphdef = nnx.graphdef(JanusModel(config, ShapesOnly()).vq)

    @jax.jit
    def encode(params: nnx.State, chunk: jax.Array) -> jax.Array:
        pixels = chunk.astype(jnp.float32) / 127.5 - 1.0
        return nnx.merge(graphdef, params).encode(pixels)

    codes = []
    for start in range(0, len(pictures), ENCODE_CHUNK):
        chunk = pictures[start : start + ENCODE_CHUNK]
        # The last chunk is filled up, so that one program serves all.
        filled = np.concatenate([chunk, np.zeros_like(pictures[: ENCODE_CHUNK - len(chunk)])])
        codes.append(np.asarray(encode(tokenizer, filled))[: len(chunk)])
    return np.concatenate(codes)
