"""Named runs.

The emoji model is trained by six runs, in the order of `EMOJI_RECIPE`; `janus-jax train emoji`
makes them all. The published recipe starts from pretrained parts; a tiny model has none, so its
parts come first, each on the training split alone.
"""

from __future__ import annotations

from train.config import Mixture, OptimizerConfig, TrainConfig, VQLossConfig
from train.finetune import FINETUNE, FINETUNE_LORA
from train.published import ADAPTORS, PUBLISHED

# Four samples of an emoji with its name.
EMOJI_LENGTH = 256

EMOJI_VQ = TrainConfig(
    name="emoji-vq",
    model="emoji",
    objective="vq",
    trainable=("vq",),
    steps=3000,
    batch_size=32,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, schedule="cosine"),
    vq_loss=VQLossConfig(entropy=0.05),
    shift_pixels=0,
    preview_every=500,
)
"""The tokenizer: janus-jax train emoji-vq"""

EMOJI_SIGLIP = TrainConfig(
    name="emoji-siglip",
    model="emoji",
    objective="contrastive",
    trainable=("vision",),
    steps=400,
    batch_size=256,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, schedule="cosine"),
    shift_pixels=2,
)
"""The understanding encoder: janus-jax train emoji-siglip"""

EMOJI_LLM = TrainConfig(
    name="emoji-llm",
    model="emoji",
    objective="janus",
    length=EMOJI_LENGTH,
    trainable=("llm",),
    steps=800,
    batch_size=64,
    mixture=Mixture(text=1),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, schedule="cosine"),
    preview_every=0,
)
"""The language model: janus-jax train emoji-llm"""

EMOJI_STAGE1 = TrainConfig(
    name="emoji-stage1",
    model="emoji",
    objective="janus",
    length=EMOJI_LENGTH,
    trainable=ADAPTORS,
    init=("vq=emoji-vq", "vision=emoji-siglip", "llm=emoji-llm"),
    steps=400,
    batch_size=64,
    mixture=Mixture(understanding=1, generation=3),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50),
)
"""Adaptors and image head (report, section 2.2, stage 1; 1:0:3): janus-jax train emoji-stage1"""

EMOJI_STAGE2 = TrainConfig(
    name="emoji-stage2",
    model="emoji",
    objective="janus",
    length=EMOJI_LENGTH,
    trainable=(*ADAPTORS, "llm"),
    init=(
        *(f"{part}=emoji-stage1" for part in ADAPTORS),
        "vq=emoji-vq",
        "vision=emoji-siglip",
        "llm=emoji-llm",
    ),
    steps=5000,
    batch_size=40,
    chinese=0.1,
    question_share=0.1,
    code_noise=0.8,
    text_loss_weight=2.0,
    mixture=Mixture(understanding=2, text=3, generation=5),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200),
)
"""And the language model (report, section 2.2, stage 2; 2:3:5): janus-jax train emoji-stage2"""

EMOJI_STAGE3 = TrainConfig(
    name="emoji-stage3",
    model="emoji",
    objective="janus",
    length=EMOJI_LENGTH,
    trainable=(*ADAPTORS, "llm", "vision"),
    init=(*(f"{part}=emoji-stage2" for part in (*ADAPTORS, "llm", "vision", "vq")),),
    steps=8000,
    batch_size=40,
    chinese=0.1,
    question_share=0.1,
    code_noise=0.8,
    text_loss_weight=4.0,
    mixture=Mixture(understanding=5, text=1, generation=4),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, schedule="cosine"),
    shift_pixels=2,
)
"""And SigLIP (report, section 2.2, stage 3; 5:1:4): janus-jax train emoji-stage3"""

EMOJI_RECIPE = (EMOJI_VQ, EMOJI_SIGLIP, EMOJI_LLM, EMOJI_STAGE1, EMOJI_STAGE2, EMOJI_STAGE3)

PRESETS: dict[str, TrainConfig] = {
    preset.name: preset for preset in (*EMOJI_RECIPE, *PUBLISHED, FINETUNE, FINETUNE_LORA)
}
