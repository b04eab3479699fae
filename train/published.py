"""The published recipes: Janus-Pro's at 1B and 7B, and that of the Janus before it.

Janus-Pro: report (arXiv 2501.17811), table 2 and section 2.2; Janus: arXiv 2410.13848, table 1.
AdamW (0.9, 0.95), constant learning rate after a warm-up, clipping at 1.0, rows of 4096 tokens, and
all kinds of data inside every step. A batch of the tables is taken as so many packed rows, filled
with whole samples at the exact ratio of the kinds: 5:1:4 does not divide 128 samples.

What the papers do not say: the embeddings of image tokens train with the adaptors; a tenth of the
captions are dropped for guidance; tasks have no weights.

Before stage 1, `janus-jax assemble runs/pretrained ...` makes one model directory of a pretrained
language model, SigLIP and a VQ tokenizer (docs/assemble.md), and `janus-jax data pack` and `data
encode` make the data sets that `data` names; `--data` names others. Each stage starts from the run
of the stage before, beside its own. Memory is what the TPU compiler says of the compiled step, or
an estimate from shapes; neither was run. `janus-jax plan PRESET --compile` tells it of another
slice, and how fast the compiler believes a step to be (docs/plan.md). Each preset's text is the
head of its `--help`.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Mixture, OptimizerConfig, TrainConfig

ADAPTORS = ("aligner", "gen_aligner", "image_head", "gen_embed")
_PARTS = (*ADAPTORS, "llm", "vision", "vq")

_STAGE1 = TrainConfig(
    name="",
    model="",
    objective="janus",
    trainable=ADAPTORS,
    init=("llm=pretrained", "vision=pretrained", "vq=pretrained"),
    data=("data/understanding", "data/imagenet"),
    steps=20_000,
    batch_size=0,
    rows=256,
    mixture=Mixture(understanding=1, generation=3),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=600),
    mesh="fsdp=all",
    compute_dtype="bfloat16",
    remat="minimal",
    loss_chunk=512,
    log_every=10,
    checkpoint_every=1000,
    preview_every=0,
    data_workers=4,
)
_STAGE2 = replace(
    _STAGE1,
    trainable=(*ADAPTORS, "llm"),
    data=("data/understanding", "data/text", "data/real", "data/synthetic"),
    steps=270_000,
    rows=512,
    mixture=Mixture(understanding=2, text=3, generation=5),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5000),
)
_STAGE3 = replace(
    _STAGE2,
    trainable=(*ADAPTORS, "llm", "vision"),
    data=("data/instructions", "data/text-instructions", "data/pictures"),
    rows=128,
    mixture=Mixture(understanding=5, text=1, generation=4),
    optimizer=OptimizerConfig(learning_rate=4e-5),
)


def _from(run: str) -> tuple[str, ...]:
    """All parts from an earlier run."""
    return tuple(f"{part}={run}" for part in _PARTS)


PRO_1B_STAGE1 = replace(_STAGE1, name="janus-pro-1b-stage1", model="janus-pro-1b")
"""Adaptors and image head, 20,000 steps of 256 rows (report, table 2, stage 1; 1:0:3).

janus-jax train janus-pro-1b-stage1 --data data/understanding data/imagenet

Hardware: a v5e:16x16 slice (256 chips of 16 GB), a row a chip; 5.8 GB a chip (compiled).
"""

PRO_1B_STAGE2 = replace(
    _STAGE2,
    name="janus-pro-1b-stage2",
    model="janus-pro-1b",
    init=_from("janus-pro-1b-stage1"),
)
"""Stage 1's parts and the language model, 270,000 steps of 512 rows (stage 2; 2:3:5).

janus-jax train janus-pro-1b-stage2 --data data/understanding data/text data/real data/synthetic

The report plans 360,000 steps and stops at 270,000; the learning rate is constant, so that where it
stops changes nothing before. Real and synthetic pictures are drawn 1:1, each set with weight 1.

Hardware: a v5e:16x16 slice (256 chips of 16 GB), two rows a chip; 11.0 GB a chip (compiled).
"""

PRO_1B_STAGE3 = replace(
    _STAGE3,
    name="janus-pro-1b-stage3",
    model="janus-pro-1b",
    init=_from("janus-pro-1b-stage2"),
    steps=80_000,
    mesh="fsdp=all,sequence=2",
)
"""Stage 2's parts and SigLIP, 80,000 steps of 128 rows (stage 3; 5:1:4).

janus-jax train janus-pro-1b-stage3 --data data/instructions data/text-instructions data/pictures

Hardware: a v5e:16x16 slice (256 chips of 16 GB); 4.9 GB a chip (compiled). 128 rows are fewer than
its chips, so that two share a row; on 128 chips or fewer, --mesh fsdp=all.
"""

PRO_7B_STAGE1 = replace(_STAGE1, name="janus-pro-7b-stage1", model="janus-pro-7b", accumulate=2)
"""Adaptors and image head, 20,000 steps of 256 rows (report, table 2, stage 1; 1:0:3).

janus-jax train janus-pro-7b-stage1 --data data/understanding data/imagenet

Hardware: a v5p:4x4x4 slice (64 chips of 95 GB), two rows a chip at a time; 25.9 GB a chip
(compiled).
"""

PRO_7B_STAGE2 = replace(
    _STAGE2,
    name="janus-pro-7b-stage2",
    model="janus-pro-7b",
    init=_from("janus-pro-7b-stage1"),
    accumulate=4,
)
"""Stage 1's parts and the language model, 270,000 steps of 512 rows (stage 2; 2:3:5).

janus-jax train janus-pro-7b-stage2 --data data/understanding data/text data/real data/synthetic

See janus-pro-1b-stage2 for steps and data.

Hardware: a v5p:4x4x4 slice (64 chips of 95 GB), two rows a chip at a time; 29.6 GB a chip
(compiled).
"""

PRO_7B_STAGE3 = replace(
    _STAGE3,
    name="janus-pro-7b-stage3",
    model="janus-pro-7b",
    init=_from("janus-pro-7b-stage2"),
    steps=40_000,
)
"""Stage 2's parts and SigLIP, 40,000 steps of 128 rows (stage 3; 5:1:4).

janus-jax train janus-pro-7b-stage3 --data data/instructions data/text-instructions data/pictures

Hardware: a v5p:4x4x4 slice (64 chips of 95 GB), two rows a chip; 29.1 GB a chip (compiled).
"""

JANUS_STAGE1 = replace(
    _STAGE1,
    name="janus-1.3b-stage1",
    model="janus-1.3b",
    steps=10_000,
    mixture=Mixture(understanding=1, generation=1),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=300),
)
"""The original Janus, adaptors and image head: 10,000 steps of 256 rows, 1:0:1.

janus-jax train janus-1.3b-stage1 --data data/understanding data/imagenet

Hardware: a v5e:16x16 slice (256 chips of 16 GB), a row a chip; about 5.7 GB a chip (estimated).
"""

JANUS_STAGE2 = replace(
    _STAGE2,
    name="janus-1.3b-stage2",
    model="janus-1.3b",
    init=_from("janus-1.3b-stage1"),
    data=("data/understanding", "data/text", "data/imagenet:2", "data/pictures"),
    steps=180_000,
)
"""The original Janus, with the language model: 180,000 steps of 512 rows, 2:3:5.

janus-jax train janus-1.3b-stage2 --data data/understanding data/text data/imagenet:2 data/pictures

ImageNet has two thirds of the text-to-image samples, as in the paper; the paper takes them in the
first two thirds of the steps, here every step has its share.

Hardware: a v5e:16x16 slice (256 chips of 16 GB), two rows a chip; 11.0 GB a chip (compiled).
"""

JANUS_STAGE3 = replace(
    _STAGE3,
    name="janus-1.3b-stage3",
    model="janus-1.3b",
    init=_from("janus-1.3b-stage2"),
    steps=24_000,
    rows=256,
    mixture=Mixture(understanding=7, text=3, generation=10),
    optimizer=OptimizerConfig(learning_rate=2e-5, weight_decay=0.1),
)
"""The original Janus, with SigLIP: 24,000 steps of 256 rows, 7:3:10.

janus-jax train janus-1.3b-stage3 --data data/instructions data/text-instructions data/pictures

Hardware: a v5e:16x16 slice (256 chips of 16 GB), a row a chip; about 6.4 GB a chip (estimated).
"""

PUBLISHED = (
    *(PRO_1B_STAGE1, PRO_1B_STAGE2, PRO_1B_STAGE3),
    *(PRO_7B_STAGE1, PRO_7B_STAGE2, PRO_7B_STAGE3),
    *(JANUS_STAGE1, JANUS_STAGE2, JANUS_STAGE3),
)
