"""transformers' own layouts of `JanusForConditionalGeneration`.

Nothing is dropped on the way: such a state dict holds exactly the model.
"""

from __future__ import annotations

from convert.keys.table import Row, Table, VQNames, linear, llama, matrix, siglip, vq
from convert.transforms import SAME

HF = Table(
    "hf",
    (
        *siglip("model.vision_model", out="projection_layer"),
        *linear("aligner/fc1", "model.aligner.fc1"),
        *linear("aligner/fc2", "model.aligner.hidden_layers.0"),
        Row("gen_embed/embedding", "model.generation_embeddings.weight", SAME),
        *linear("gen_aligner/fc1", "model.generation_aligner.fc1"),
        *linear("gen_aligner/fc2", "model.generation_aligner.hidden_layers.0"),
        *linear("image_head/proj", "model.generation_head.proj_out"),
        *linear("image_head/out", "model.generation_head.vision_head"),
        *llama("model.language_model"),
        *matrix("llm/lm_head", "lm_head"),
        *vq(
            "model.vqmodel.",
            VQNames("down", "up", "block", mid=("block_1", "attn_1", "block_2")),
        ),
    ),
)
"""As the current release writes it."""

HF_OLDER = HF.without_prefix("hf-older", "model.")
"""As earlier releases wrote it: without the leading `model.`."""
