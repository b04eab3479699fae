"""What a training run is, as frozen dataclasses; every field can be set from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from janus_jax.errors import InputError
from janus_jax.locate import check_local
from train.data.packing import Kind
from train.data.records.sources import is_file_input
from train.watch.config import GuardConfig, ProfileConfig, WatchConfig

# Children of `JanusModel`; a preset's `trainable` and `init` speak of them.
PARTS = ("vision", "aligner", "gen_embed", "gen_aligner", "image_head", "llm", "vq")

Objective = Literal["vq", "contrastive", "janus"]
Remat = Literal["none", "full", "qkv", "context", "minimal"]
Captions = Literal["generation", "understanding", "both"]
Matrix = Literal["q", "k", "v", "out", "gate", "up", "down"]

# What each objective's module is made of, and what of it can train: image tokens are made by the
# tokenizer before training starts, so the stages cannot change it (report, section 2.2).
HAS: dict[Objective, tuple[str, ...]] = {
    "vq": ("vq",),
    "contrastive": ("vision",),
    "janus": PARTS,
}
TRAINS: dict[Objective, tuple[str, ...]] = {**HAS, "janus": tuple(p for p in PARTS if p != "vq")}


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up; the defaults are the published recipe's (report, table 2).

    Attributes:
      learning_rate: peak learning rate.
      warmup_steps: steps of linear warm-up from zero.
      schedule: what follows the warm-up: `constant` (published), or `cosine` down to zero at the
        last step.
      b1: AdamW's first decay.
      b2: AdamW's second decay.
      weight_decay: decoupled weight decay.
      clip_norm: gradients are scaled down to this global norm.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """Parts of each kind of data; every step holds exactly this ratio (report, table 2)."""

    understanding: int = 0
    text: int = 0
    generation: int = 0


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank training of the language model (arXiv 2106.09685); see `train.lora`.

    Attributes:
      rank: r, the rank; 0: the language model trains its own parameters. Above 0 those stay as they
        are, and `llm` in `trainable` means the low-rank matrices.
      alpha: what is added to a matrix is scaled by alpha / r.
      targets: the matrices of every layer that get one.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[Matrix, ...] = ("q", "k", "v", "out", "gate", "up", "down")


@dataclass(frozen=True)
class VQLossConfig:
    """Weights of the tokenizer's losses (LlamaGen, section 3.1, less the adversarial ones).

    Attributes:
      codebook: pulls codes to latents.
      commitment: pulls latents to codes.
      entropy: rewards confident assignments that use all codes; 0 in the published tokenizer.
      entropy_temperature: softness of the assignments that the entropy is taken over.
      l1: absolute error of the pixels, beside the squared error, which has weight 1.
      edges: absolute error of the differences between neighbouring pixels.
    """

    codebook: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.0
    entropy_temperature: float = 0.01
    l1: float = 1.0
    edges: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
      name: the preset's name.
      model: architecture, a name of `janus_jax.config.NAMED`; empty: that of the model directory
        which `init` names first.
      objective: what is optimised: `vq` (a tokenizer), `contrastive` (SigLIP with a text tower that
        is thrown away), `janus` (text and image tokens).
      trainable: parts that are trained; the others get no gradient and no optimizer state.
      init: for each part that does not start from random weights, where it comes from: `part=run`,
        a run beside the run directory, or `part=model`, any model that `--model` of `generate`
        takes; or one model alone, for all parts.
      data: packed data sets (`janus-jax data pack`), each `DIR` or `DIR:WEIGHT`, weights being
        relative within a kind of sample; or JSONL, tar and Parquet files, which are packed below
        the run directory before the first step; none: the emoji drawings.
      heldout: packed data sets that previews measure the loss on.
      captions: what a picture with a caption is for, where files are packed.
      heldout_share: share of the samples of files that is kept out of training and measured
        instead; everything about a picture is on the same side.
      fit_to_data: the numbers of samples of each kind in a step follow from how many there are,
        instead of from `mixture`; `batch_size` is the most that a step takes, `length` 0 is as long
        as suits the samples, and `steps` 0 as many as `epochs` take.
      epochs: passes over the data, where `steps` is 0.
      max_bad_samples: broken samples that are passed over before the run stops: a number, or below
        1 a share of all samples.
      fast_decode: decode JPEG files at a fraction of their size where they are much larger than
        needed; faster, not equal to the reference's pixels.
      data_workers: processes that pack files before the first step, and threads that prepare
        samples ahead of the steps.
      data_processes: processes that prepare samples instead of threads, for a host with many cores;
        0: threads.
      steps: optimizer steps.
      batch_size: samples a step (of all kinds together); 0: as many as fill `rows`.
      mixture: ratio of the kinds (objective `janus`).
      lora: low-rank training of the language model.
      optimizer: AdamW.
      vq_loss: loss weights of the objective `vq`.
      chinese: share of the samples in Chinese, the others being in English.
      question_share: share of the understanding samples that ask something else than the name.
      caption_drop: share of the generation samples whose caption is replaced as guidance replaces
        it at inference, so that guidance works.
      code_noise: largest share of a generation sample's input codes replaced by random ones; each
        sample draws its share evenly from 0 to this. Without it a model this small recalls a
        picture from its first codes instead of its prompt (docs/LOG.md).
      text_loss_weight: weight of a text token beside an image token in the mean loss.
      shift_pixels: pictures read by the encoders are shifted at random by up to so many pixels.
      length: slots of a packed row (4096 in the published recipe; objective `janus`).
      rows: packed rows a step; 0: as many as `batch_size` samples need.
      accumulate: micro-steps that a step is made in, for less memory and the same result.
      mesh: sizes of the mesh axes data, fsdp, tensor and sequence, such as `fsdp=4,tensor=2`; `all`
        for one of them takes the devices that the others leave.
      compute_dtype: what products are made in; parameters and optimizer state are float32. `auto`:
        float32 on a CPU, bfloat16 elsewhere.
      remat: activations of a layer that the backward pass keeps instead of making them again: all
        (`none`), or see `train.scanned.SAVED`.
      loss_chunk: text targets of each device whose logits exist at the same time, and as many image
        targets as take the memory of those.
      seed: seed of weights, data order and augmentation.
      log_every: steps between two lines of metrics.
      preview_every: steps between two sample pictures; 0 for none.
      checkpoint_every: steps between two checkpoints.
      guard: what is done about bad numbers.
      watch: who is told of the run.
      profile: which steps are profiled.
    """

    name: str
    model: str
    objective: Objective
    trainable: tuple[str, ...]
    init: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()
    captions: Captions = "both"
    heldout_share: float = 0.05
    fit_to_data: bool = False
    epochs: float = 10.0
    max_bad_samples: float = 0.01
    fast_decode: bool = False
    data_workers: int = 1
    data_processes: int = 0
    steps: int = 1000
    batch_size: int = 64
    mixture: Mixture = Mixture()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    vq_loss: VQLossConfig = VQLossConfig()
    chinese: float = 0.2
    question_share: float = 0.2
    caption_drop: float = 0.1
    code_noise: float = 0.0
    text_loss_weight: float = 1.0
    shift_pixels: int = 0
    length: int = 4096
    rows: int = 0
    accumulate: int = 1
    mesh: str = "fsdp=1"
    compute_dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    remat: Remat = "none"
    loss_chunk: int = 1024
    seed: int = 0
    log_every: int = 20
    preview_every: int = 1000
    checkpoint_every: int = 500
    guard: GuardConfig = field(default_factory=GuardConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        """Refuses values that no run can have.

        Raises:
          InputError: naming the flag, its value and what is allowed.
        """
        unknown = set(self.trainable) - set(TRAINS[self.objective])
        if unknown or not self.trainable:
            raise InputError(
                f"--trainable {' '.join(self.trainable)}",
                f"some of {', '.join(TRAINS[self.objective])} (objective {self.objective})",
            )
        least = dict(steps=1, batch_size=1, log_every=1, checkpoint_every=1, data_workers=1)
        least |= dict(data_processes=0)
        if self.rows and self.data:
            least |= dict(batch_size=0)
        least |= dict(max_bad_samples=0)
        least |= dict(preview_every=0, shift_pixels=0, seed=0, text_loss_weight=0)
        least |= dict(length=1, rows=0, accumulate=1, loss_chunk=1)
        if self.fit_to_data:
            if self.mixture != Mixture():
                raise InputError(
                    "--mixture with --fit-to-data, which takes kinds in the ratio of the data",
                    "no --mixture, or --no-fit-to-data with it",
                )
            least |= dict(steps=0, length=0, epochs=0)
        for name, low in least.items():
            _check(name, getattr(self, name), getattr(self, name) >= low, f"at least {low}")
        for name in ("chinese", "question_share", "caption_drop", "code_noise"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "0 to 1")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self.optimizer, name)
            _check(f"optimizer.{name}", value, 0 < value < float("inf"), "above 0")
        for name in ("warmup_steps", "weight_decay"):
            value = getattr(self.optimizer, name)
            _check(f"optimizer.{name}", value, 0 <= value < float("inf"), "at least 0")
        self._check_lora()
        share = self.heldout_share
        _check("heldout_share", share, 0 <= share < 1, "at least 0 and below 1")
        if self.code_noise and not self.batch_size:
            raise InputError(f"--code-noise {self.code_noise}", "0 with --batch-size 0")
        if self.objective != "janus" and self.accumulate > 1:
            raise InputError(f"--accumulate {self.accumulate}", f"1 (objective {self.objective})")
        self._check_places()
        if self.objective == "janus" and not self.fit_to_data:
            self.samples()

    def _check_places(self) -> None:
        """Only files that are packed may lie on an object store."""
        for run in self.initial_runs().values():
            check_local("--init", run, "copy it to a disk first")
        copy = "copy the packed data set to a disk first"
        for entry in self.heldout:
            check_local("--heldout", entry, copy)
        for entry in self.data:
            if not is_file_input(entry):
                check_local("--data", entry, f"{copy}, or name JSONL, tar or Parquet files")

    def _check_lora(self) -> None:
        lora = self.lora
        _check("lora.rank", lora.rank, lora.rank >= 0, "at least 0")
        if not lora.rank:
            return
        _check("lora.alpha", lora.alpha, 0 < lora.alpha < float("inf"), "above 0")
        if self.objective != "janus" or "llm" not in self.trainable:
            raise InputError(
                f"--lora.rank {lora.rank} without llm among --trainable {' '.join(self.trainable)}",
                "0, or llm among them",
            )
        if not lora.targets or len(set(lora.targets)) < len(lora.targets):
            raise InputError(
                f"--lora.targets {' '.join(lora.targets)}",
                "one or more of q, k, v, out, gate, up, down, each once",
            )

    def stored_dtype(self, part: str) -> str:
        """What a child's parameters are kept in: float32.

        With LoRA what does not train, nearly everything, is kept in the compute dtype: it is never
        updated, so nothing is lost but memory. The tokenizer always computes in float32.
        """
        frozen = self.lora.rank and part not in self.trained_children() and part != "vq"
        return self.compute_dtype if frozen else "float32"

    def trained_children(self) -> tuple[str, ...]:
        """Children of the task's module that train.

        They are the preset's parts, with LoRA the low-rank matrices instead of the language model,
        and the text tower that only the contrastive objective has.
        """
        parts = self.trainable
        if self.lora.rank:
            parts = tuple("lora" if part == "llm" else part for part in parts)
        return (*parts, "text_tower")

    def initial_runs(self) -> dict[str, str]:
        """`init` as `{part: run}`.

        Raises:
          InputError: an entry is malformed, repeats a part, or the objective has no such part.
        """
        runs: dict[str, str] = {}
        whole = self.init[0] if len(self.init) == 1 else ""
        if whole and "=" not in whole and whole not in PARTS:
            return dict.fromkeys(HAS[self.objective], self.init[0])
        for entry in self.init:
            part, _, run = entry.partition("=")
            if part not in HAS[self.objective] or not run or part in runs:
                raise InputError(
                    f"--init {entry}",
                    f"one model for all parts, or PART=RUN, each PART once and of "
                    f"{', '.join(HAS[self.objective])}",
                )
            runs[part] = run
        return runs

    def samples(self) -> dict[Kind, int]:
        """Samples of each kind in a step: exactly the ratio of `mixture`.

        With a batch size of 0, the ratio itself.

        Raises:
          InputError: `batch_size` is not a multiple of the sum of the mixture.
        """
        parts: dict[Kind, int] = {
            "understanding": self.mixture.understanding,
            "text": self.mixture.text,
            "generation": self.mixture.generation,
        }
        if not self.batch_size and sum(parts.values()) > 0:
            return parts
        total = sum(parts.values())
        if total < 1 or self.batch_size % total:
            raise InputError(
                f"--batch-size {self.batch_size} does not divide into "
                f"{':'.join(map(str, parts.values()))} (understanding : text : generation)",
                f"a multiple of {total}",
            )
        return {kind: n * self.batch_size // total for kind, n in parts.items()}


def _check(name: str, value: float, fine: bool, allowed: str) -> None:
    if not fine:
        raise InputError(f"--{name.replace('_', '-')} {value}", allowed)
