"""SigLIP, block by block, and the understanding aligner, at the full picture size."""

import pytest
import torch

from .oracle import Pair, nchw, pictures, recorded, with_taps
from .tolerances import check

pytestmark = pytest.mark.parity


def test_the_oracle_is_untied(pair: Pair):
    head, embedding = pair.hf.lm_head.weight, pair.model.language_model.embed_tokens.weight
    assert head is not embedding
    assert head.data_ptr() != embedding.data_ptr()
    assert not torch.equal(head, embedding)


def test_siglip_and_aligner(pair: Pair):
    pixels = pictures(1, 1, pair.config.image_size)
    vision = pair.model.vision_model
    modules = {f"vision/blocks/{i}": block for i, block in enumerate(vision.encoder.layers)}
    modules |= {"vision/embed": vision.embeddings, "vision/norm": vision.post_layernorm}
    modules |= {"aligner": pair.model.aligner}
    with torch.no_grad():
        # post_layernorm runs a second time, on a pooled token Janus does not use: hook it outside.
        pooled = modules.pop("vision/norm")
        with recorded(modules) as theirs:
            out = pair.model.get_image_features(nchw(pixels), return_dict=True)
    assert pooled is vision.post_layernorm
    theirs["vision/norm"] = out.last_hidden_state.numpy()

    features, taps = with_taps(pair, lambda model, taps, x: model.encode_image(x, taps), pixels)

    assert features.shape == (1, pair.config.vision.num_patches, pair.config.llm.width)
    assert set(taps) == set(theirs)
    for name, theirs_tap in theirs.items():
        check(f"{pair.scale}/{name}", taps[name], theirs_tap)
    check(f"{pair.scale}/aligner", features, out.pooler_output.numpy())
