"""Fine-tuning a whole model on somebody's own pictures, captions and conversations.

The understanding encoder and the tokenizer stay as they are: tens or thousands of pictures would
not make them better. What a step holds follows from the data; docs/finetuning.md says more.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import LoraConfig, OptimizerConfig, TrainConfig
from train.published import ADAPTORS

FINETUNE = TrainConfig(
    name="finetune",
    model="",
    objective="janus",
    trainable=(*ADAPTORS, "llm"),
    steps=0,
    epochs=10,
    batch_size=16,
    length=0,
    fit_to_data=True,
    max_bad_samples=0.1,
    # That of the published stage 3, which also goes on from a whole model.
    optimizer=OptimizerConfig(learning_rate=4e-5, warmup_steps=10, schedule="cosine"),
    compute_dtype="auto",
    remat="full",
    log_every=10,
    preview_every=100,
    checkpoint_every=100,
)
"""All of it: both aligners, the image head, the embeddings of image tokens, the language model.

janus-jax train finetune --init deepseek-ai/Janus-Pro-1B --data my.jsonl --run-dir runs/mine

janus-jax generate "a caption" --model runs/mine/model

Ten passes over the data, 16 samples a step, one device. Parameters, gradients and optimizer state
of Janus-Pro-1B take 32 GB, activations not counted.
"""

FINETUNE_LORA = replace(
    FINETUNE,
    name="finetune-lora",
    trainable=("llm",),
    lora=LoraConfig(rank=16, alpha=32.0),
    optimizer=replace(FINETUNE.optimizer, learning_rate=2e-4),
)
"""Low-rank matrices beside those of the language model, and nothing else.

janus-jax train finetune-lora --init deepseek-ai/Janus-Pro-1B --data my.jsonl --run-dir runs/mine

As finetune, with a hundredth of the parameters trained and the others in bfloat16: Janus-Pro-1B
takes 5 GB, Janus-Pro-7B 16 GB, activations not counted, and 9 GB and 31 GB while a preview is drawn
(`--preview-every 0`: never). `--trainable llm aligner gen_aligner image_head gen_embed` trains the
small parts as well.
"""
