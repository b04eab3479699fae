"""Gradients of scalar losses, parameter by parameter, compared through the key table.

The loss has everything training has: picture features through the understanding aligner, image
codes through their own embedding and aligner, text, padding on the left, and the cross-entropies
of both heads.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert.engine import Plan, plan_import, shapes_of
from convert.keys import HF
from janus_jax import functional

from .oracle import Pair, nchw, normal, pictures, rng, to_torch
from .tolerances import check, relative_error

pytestmark = pytest.mark.parity

ROWS, TEXT, FEATURES, CODES, PADDING = 2, 7, 5, 6, 3
LENGTH = TEXT + FEATURES + CODES
ADAPTORS = ("aligner/", "gen_aligner/", "gen_embed/", "image_head/")


def trainable(pair: Pair, path: str) -> bool:
    # At 1B the two vocabulary tables alone are 1.7 GB, twice over with their gradients; the tiny
    # pair compares those, by the same code.
    vocabulary = path.startswith(("llm/embed", "llm/lm_head"))
    return path.startswith(("llm/", *ADAPTORS)) and (pair.scale == "tiny" or not vocabulary)


def hf_gradients(pair: Pair, paths: list[str], loss: torch.Tensor, inputs: list[torch.Tensor]):
    """torch's gradients: {our path: array} through the key table, and those of the inputs."""
    plan = plan_for(pair, paths)
    named = dict(pair.hf.named_parameters())
    parameters = [named[entry.theirs] for entry in plan.entries]
    gradients = torch.autograd.grad(loss, [*inputs, *parameters])
    arrays = [g.numpy() for g in gradients]
    theirs = {e.theirs: g for e, g in zip(plan.entries, arrays[len(inputs) :], strict=True)}
    return dict(plan.read(theirs)), arrays[: len(inputs)]


def plan_for(pair: Pair, paths: list[str]) -> Plan:
    shapes = shapes_of(functional.flat_params(pair.params))
    named = dict(pair.hf.named_parameters())
    whole = plan_import(HF, shapes, shapes_of(named))
    return Plan(whole.table, tuple(entry for entry in whole.entries if entry.ours in paths))


def test_language_model_and_adaptors(pair: Pair):
    vocab, codebook = pair.config.llm.vocab_size, pair.config.vq.codebook_size
    text = rng(20).integers(0, vocab, (ROWS, TEXT)).astype(np.int32)
    codes = rng(21).integers(0, codebook, (ROWS, CODES)).astype(np.int32)
    text_targets = rng(22).integers(0, vocab, (ROWS, TEXT)).astype(np.int32)
    code_targets = rng(23).integers(0, codebook, (ROWS, CODES)).astype(np.int32)
    features = normal(24, ROWS, FEATURES, pair.config.vision.width)
    mask = np.ones((ROWS, LENGTH), bool)
    mask[1, :PADDING] = False
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    weights = mask[:, :TEXT].astype(np.float32)

    flat = functional.flat_params(pair.params)
    paths = [path for path in flat if trainable(pair, path)]
    moving = {path: flat[path] for path in paths}
    still = {path: value for path, value in flat.items() if path not in moving}

    @jax.jit
    def ours(moving, features, still):
        def loss(moving, features):
            params = functional.unflatten_params(pair.params, moving | still)
            model = nnx.merge(pair.graphdef, params)
            parts = [
                model.embed(jnp.asarray(text)),
                model.aligner(features),
                model.embed_image_tokens(jnp.asarray(codes)),
            ]
            x = jnp.concatenate(parts, 1)
            h = model.hidden(x, jnp.asarray(positions), jnp.asarray(mask))
            text_loss = cross_entropy(model.text_logits(h[:, :TEXT]), text_targets)
            code_loss = cross_entropy(model.image_logits(h[:, -CODES:]), code_targets)
            return (text_loss * weights).sum() + code_loss.sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(moving, features)

    value, (gradients, into_features) = ours(moving, features, still)

    named, model = dict(pair.hf.named_parameters()), pair.model
    parameters = [named[entry.theirs] for entry in plan_for(pair, paths).entries]
    features_in = to_torch(features).requires_grad_()
    for p in parameters:
        p.requires_grad_(True)
    try:
        x = torch.cat(
            [
                model.language_model.embed_tokens(to_torch(text).long()),
                model.aligner(features_in),
                pair.hf.prepare_embeddings_for_image_generation(to_torch(codes).long()),
            ],
            1,
        )
        h = model.language_model(
            inputs_embeds=x,
            attention_mask=to_torch(mask).long(),
            position_ids=to_torch(positions).long(),
        ).last_hidden_state
        text_loss = torch_cross_entropy(pair.hf.lm_head(h[:, :TEXT]), text_targets)
        code_loss = torch_cross_entropy(model.generation_head(h[:, -CODES:]), code_targets)
        their_value = (text_loss * to_torch(weights)).sum() + code_loss.sum()
        theirs, (into_theirs,) = hf_gradients(pair, paths, their_value, [features_in])
    finally:
        for p in parameters:
            p.requires_grad_(False)

    check(f"{pair.scale}/loss", value, their_value.detach().numpy())
    check(f"{pair.scale}/gradient of features", into_features, into_theirs)
    assert set(theirs) == set(paths)
    for path in paths:
        part = "adaptors" if path.startswith(ADAPTORS) else "llm"
        check(f"{pair.scale}/gradients of {part}", gradients[path], theirs[path])


def test_siglip(pair: Pair):
    pixels = pictures(25, 1, pair.config.image_size)
    towards = normal(26, 1, pair.config.vision.num_patches, pair.config.vision.width)
    flat = functional.flat_params(pair.params)
    paths = [path for path in flat if path.startswith("vision/")]
    moving = {path: flat[path] for path in paths}
    still = {path: value for path, value in flat.items() if path not in moving}

    @jax.jit
    def ours(moving, pixels, still):
        def loss(moving, pixels):
            params = functional.unflatten_params(pair.params, moving | still)
            return (nnx.merge(pair.graphdef, params).vision(pixels) * towards).mean()

        return jax.grad(loss, argnums=(0, 1))(moving, pixels)

    gradients, into_pixels = ours(moving, pixels, still)

    vision, pixels_in = pair.model.vision_model, nchw(pixels).requires_grad_()
    vision.requires_grad_(True)
    try:
        loss = (vision(pixels_in).last_hidden_state * to_torch(towards)).mean()
        theirs, (into_theirs,) = hf_gradients(pair, paths, loss, [pixels_in])
    finally:
        vision.requires_grad_(False)

    check(f"{pair.scale}/gradient of pixels", into_pixels, into_theirs.transpose(0, 2, 3, 1))
    for path in paths:
        if path.endswith("attn/k/bias"):
            # A bias on all keys moves every score of a query alike, so its true gradient is zero
            # and both sides hold rounding errors: small ones, beside the bias of the queries.
            scale = np.abs(theirs[path.replace("/k/", "/q/")]).max()
            assert np.abs(gradients[path]).max() < 1e-4 * scale
            assert np.abs(theirs[path]).max() < 1e-4 * scale
        else:
            check(f"{pair.scale}/gradients of siglip", gradients[path], theirs[path])


def cross_entropy(logits: jax.Array, targets: np.ndarray) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]


def torch_cross_entropy(logits: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), to_torch(targets).long().flatten(), reduction="none"
    )
    return flat.reshape(targets.shape)


def test_the_measure_sees_a_wrong_rule():
    """A tanh GELU in place of the exact one, the easiest mistake here, is far above the ceiling."""
    x = normal(27, 64)
    exact, tanh = jax.nn.gelu(x, approximate=False), jax.nn.gelu(x, approximate=True)
    assert relative_error(np.asarray(tanh), np.asarray(exact)) > 1e-4
