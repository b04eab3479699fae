"""The products that a recipe needs, counted from its config.

Dims: D width, F MLP width, N heads, H head width, T row length.

Dense products take two FLOPs a multiply-add: 2 a parameter and token forward, and backward 2 for
the gradient of the input and 2 for that of the parameter. So a parameter that trains costs 6, one
that is frozen but that a gradient passes through 4, and one of a frozen encoder 2. Each head runs
at its own loss positions alone. Attention scores are counted apart: the yardstick leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass

from janus_jax.config import JanusConfig
from train.config import TrainConfig
from train.plan.layout import Layout

FORWARD, INPUT, WEIGHT = 2, 2, 2


@dataclass(frozen=True)
class Work:
    """FLOPs of one step over all devices.

    Attributes:
      parts: dense FLOPs, by what they are spent in.
      attention: of the scores and sums of the language model's attention, causal: half of what a
        full square of T by T takes, forward and backward.
    """

    parts: dict[str, float]
    attention: float

    @property
    def dense(self) -> float:
        """All dense FLOPs: the numerator of the modelled dense MFU."""
        return sum(self.parts.values())


def layer_weights(model: JanusConfig) -> int:
    """Weights of one decoder layer's products."""
    llm = model.llm
    heads = 2 * llm.num_heads + 2 * llm.num_kv_heads
    return llm.width * (heads * llm.head_dim + 3 * llm.mlp_dim)


def step_work(config: TrainConfig, model: JanusConfig, layout: Layout) -> Work:
    """Counts a step of a stage."""
    llm, vision, vq = model.llm, model.vision, model.vq
    trains = set(config.trainable)
    # A gradient goes as far back as the first part that trains.
    before_llm = trains & {"aligner", "gen_aligner", "gen_embed", "vision"}

    def cost(part: str, *, passed: bool) -> int:
        weight = WEIGHT if part in trains else 0
        return FORWARD + (INPUT if passed else 0) + weight

    body = cost("llm", passed=bool(before_llm) or "llm" in trains)
    head = cost("llm", passed=True)
    pictures = layout.pictures * vision.num_patches
    codes = layout.drawings * layout.image_tokens
    width = llm.width
    tower = vision.depth * (4 * vision.width**2 + 2 * vision.width * vision.mlp_dim)
    patches = 3 * vision.patch_size**2 * vision.width
    aligner = vision.width * width + width**2
    code_aligner = vq.codebook_dim * width + width**2
    scores = 4 * layout.tokens * layout.length / 2 * llm.num_heads * llm.head_dim * llm.depth
    return Work(
        {
            "layers": body * llm.depth * layer_weights(model) * layout.tokens,
            "text head": head * width * llm.vocab_size * layout.text_targets,
            "image head": cost("image_head", passed=True)
            * (width**2 + width * vq.codebook_size)
            * codes,
            "vision": cost("vision", passed="vision" in trains) * (tower + patches) * pictures,
            # The gradient of a first layer's input may not be needed; it is counted all the same.
            "aligner": cost("aligner", passed=bool(trains & {"aligner", "vision"}))
            * aligner
            * pictures,
            "code aligner": cost("gen_aligner", passed=bool(trains & {"gen_aligner", "gen_embed"}))
            * code_aligner
            * codes,
        },
        # Backward takes twice the forward, whether or not the weights around it train.
        scores * (3 if before_llm or "llm" in trains else 1),
    )
