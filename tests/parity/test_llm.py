"""The language model and both heads, teacher-forced: whole sequences, and decoding with the cache.

The prompt has a picture in it and padding on the left; padding positions are not compared, for
what stands there is read by nobody.
"""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from transformers import DynamicCache

from janus_jax import functional

from .oracle import IMAGE_TOKEN, Pair, nchw, pictures, recorded, rng, to_torch, with_taps
from .tolerances import check

pytestmark = pytest.mark.parity

TEXT_BEFORE, TEXT_AFTER, PADDING = 9, 12, 5
KEPT = 16  # last positions at which logits are compared: 102,400 logits at each are many


@dataclasses.dataclass(frozen=True)
class Prompts:
    ids: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    image_index: np.ndarray
    pixels: np.ndarray


def prompts(pair: Pair) -> Prompts:
    """Text, a picture, text; the last row is shorter and padded on the left."""
    rows = 2 if pair.scale == "tiny" else 1
    patches = pair.config.vision.num_patches
    length = PADDING + TEXT_BEFORE + patches + TEXT_AFTER
    ids = rng(2).integers(IMAGE_TOKEN + 1, pair.config.llm.vocab_size, (rows, length))
    start = PADDING + TEXT_BEFORE
    ids[:, start : start + patches] = IMAGE_TOKEN
    mask = np.ones((rows, length), bool)
    mask[-1, :PADDING] = False
    image_index = np.full((rows, length), -1)
    image_index[:, start : start + patches] = np.arange(rows * patches).reshape(rows, patches)
    return Prompts(
        ids.astype(np.int32),
        mask,
        np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32),
        image_index.astype(np.int32),
        pictures(3, rows, pair.config.image_size),
    )


def test_whole_model(pair: Pair):
    p = prompts(pair)

    def ours(model, taps, p_ids, p_index, p_positions, p_mask, pixels):
        x = model.embed(p_ids, model.encode_image(pixels), p_index)
        h = model.hidden(x, p_positions, p_mask, taps)
        return h, model.text_logits(h[:, -KEPT:]), model.image_logits(h[:, -KEPT:])

    (hidden, text, image), taps = with_taps(
        pair, ours, p.ids, p.image_index, p.positions, p.mask, p.pixels
    )

    llm = pair.model.language_model
    modules = {f"llm/layers/{i}": layer for i, layer in enumerate(llm.layers)}
    modules |= {"llm/norm": llm.norm}
    with torch.no_grad(), recorded(modules) as theirs:
        out = pair.hf(
            input_ids=to_torch(p.ids).long(),
            pixel_values=nchw(p.pixels),
            attention_mask=to_torch(p.mask).long(),
            position_ids=to_torch(p.positions).long(),
            logits_to_keep=KEPT,
        )
        head = pair.model.generation_head(to_torch(theirs["llm/norm"][:, -KEPT:]))

    assert set(taps) == set(theirs)
    for name, tap in theirs.items():
        check(f"{pair.scale}/{name}", taps[name][p.mask], tap[p.mask])
    np.testing.assert_array_equal(hidden, taps["llm/norm"])
    check(f"{pair.scale}/text logits", text, out.logits.numpy())
    check(f"{pair.scale}/image logits", image, head.numpy())


def test_generated_image_tokens_enter_alike(pair: Pair):
    codes = rng(4).integers(0, pair.config.vq.codebook_size, (2, 9)).astype(np.int32)
    ours = jax.jit(functional.embed_image_tokens, static_argnums=0)(
        pair.graphdef, pair.params, codes
    )
    model = pair.model
    with torch.no_grad():
        table = model.generation_embeddings(to_torch(codes).long())
        theirs = pair.hf.prepare_embeddings_for_image_generation(to_torch(codes).long())
    rows = functional.flat_params(pair.params)["gen_embed/embedding"][codes]
    np.testing.assert_array_equal(rows, table.numpy())
    check(f"{pair.scale}/gen_aligner", ours, theirs.numpy())


def test_prefill_and_decode(pair: Pair):
    """A padded prompt, then text and image tokens one at a time, against transformers' cache."""
    vocab, codebook = pair.config.llm.vocab_size, pair.config.vq.codebook_size
    length, slots = 11, 20
    ids = rng(5).integers(0, vocab, (2, length)).astype(np.int32)
    mask = np.ones((2, length), bool)
    mask[1, :4] = False
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    text_steps = rng(6).integers(0, vocab, (2, 2, 1)).astype(np.int32)
    image_steps = rng(7).integers(0, codebook, (3, 2, 1)).astype(np.int32)

    embed = jax.jit(functional.embed, static_argnums=0)
    embed_image = jax.jit(functional.embed_image_tokens, static_argnums=0)
    steps = [embed(pair.graphdef, pair.params, t) for t in text_steps]
    steps += [embed_image(pair.graphdef, pair.params, t) for t in image_steps]
    prompt = embed(pair.graphdef, pair.params, ids)
    heads = jax.jit(
        lambda params, h: (
            functional.text_logits(pair.graphdef, params, h),
            functional.image_logits(pair.graphdef, params, h),
        )
    )

    prefill = jax.jit(functional.prefill, static_argnums=(0, 5))
    decode = jax.jit(functional.decode_step, static_argnums=0, donate_argnums=4)
    h, cache = prefill(pair.graphdef, pair.params, prompt, positions, mask, slots)
    ours = [np.asarray(h)]
    logits = []
    for i, x in enumerate(steps):
        h, cache = decode(pair.graphdef, pair.params, x, positions[:, -1:] + 1 + i, cache)
        ours.append(np.asarray(h))
        logits.append(heads(pair.params, h))
    assert int(cache.length) == length + len(steps)

    attention, past = to_torch(mask).long(), DynamicCache()
    with torch.no_grad():
        for i, x in enumerate([prompt, *steps]):
            if i:
                attention = torch.cat([attention, torch.ones((2, 1), dtype=torch.long)], 1)
            out = pair.model.language_model(
                inputs_embeds=to_torch(x),
                attention_mask=attention,
                position_ids=to_torch(positions if not i else positions[:, -1:] + i).long(),
                past_key_values=past,
                use_cache=True,
            )
            theirs, real = out.last_hidden_state, mask if not i else np.ones((2, 1), bool)
            name = "prefill" if not i else "decode"
            check(f"{pair.scale}/{name}", ours[i][real], theirs.numpy()[real])
            if i:
                text, image = logits[i - 1]
                check(f"{pair.scale}/decode text logits", text, pair.hf.lm_head(theirs).numpy())
                head = pair.model.generation_head(theirs)
                check(f"{pair.scale}/decode image logits", image, head.numpy())
