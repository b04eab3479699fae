"""The layouts of the published components that a Janus can be assembled from."""

from __future__ import annotations

import dataclasses

from convert.keys.deepseek import VQ_NAMES
from convert.keys.table import Table, llama, matrix, siglip, vq

LLAMA = Table(
    "llama",
    (*llama("model"), *matrix("llm/lm_head", "lm_head")),
    drops=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
)
"""transformers' `LlamaForCausalLM`."""

_head = dataclasses.replace(
    matrix("llm/lm_head", "model.embed_tokens")[0],
    tied=True,
)
LLAMA_TIED = Table("llama, tied", (*llama("model"), _head), (*LLAMA.drops, "lm_head.weight"))
"""The same with one matrix for both ends of the model, where files leave the head out or repeat it.
Here they become two."""

SIGLIP = Table(
    "siglip",
    tuple(siglip("vision_model", out="out_proj")),
    drops=(
        "vision_model.head.*",
        "vision_model.embeddings.position_ids",
        "text_model.*",
        "logit_scale",
        "logit_bias",
    ),
)
"""The vision tower of transformers' `SiglipModel`, and `SiglipVisionModel` before release 5: the
pooling head, the text tower and the contrastive scale stay behind."""

SIGLIP_ALONE = SIGLIP.without_prefix("siglip, alone", "vision_model.")
"""transformers' `SiglipVisionModel` as release 5 writes it."""

VQ16 = Table("vq-16", tuple(vq("", VQ_NAMES)), drops=("quantize.codebook_used",))
"""LlamaGen's VQ tokenizer."""
