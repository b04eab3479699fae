"""The VQ tokenizer at the full picture size, level by level.

Encoding follows the reference, which compares unit latents with unit codes. transformers leaves
the normalisation out, so its own quantiser is the oracle only where both are unit already; for
the rest the rule is written out here, around transformers' encoder.
"""

import copy

import numpy as np
import pytest
import torch

from .oracle import Pair, nchw, pictures, recorded, rng, to_torch, with_taps
from .tolerances import check

pytestmark = pytest.mark.parity


def level_ends(name: str, levels: torch.nn.ModuleList, resample: str) -> dict[str, torch.nn.Module]:
    """The module whose output leaves each level, by our tap names."""
    ends = {}
    for i, level in enumerate(levels):
        last = level.attn[-1] if len(level.attn) else level.block[-1]
        ends[f"{name}/{i}"] = getattr(level, resample, last)
    return ends


def test_decode(pair: Pair):
    ids = rng(8).integers(0, pair.config.vq.codebook_size, (1, pair.config.num_image_tokens))
    pixels, taps = with_taps(
        pair, lambda model, taps, x: model.vq_decode(x, taps), ids.astype(np.int32)
    )

    vq = pair.model.vqmodel
    modules = level_ends("vq/decoder/up", vq.decoder.up, "upsample")
    modules |= {"vq/decoder/mid": vq.decoder.mid}
    with torch.no_grad(), recorded(modules) as theirs:
        theirs_pixels = pair.hf.decode_image_tokens(to_torch(ids))
    assert pixels.shape == (1, pair.config.image_size, pair.config.image_size, 3)
    assert set(taps) == set(theirs)
    for name, tap in theirs.items():
        check(f"{pair.scale}/{name}", taps[name], tap.transpose(0, 2, 3, 1))
    check(f"{pair.scale}/vq decode", pixels, theirs_pixels.numpy())


def reference_codes(latents: np.ndarray, codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference's rule in float64: ids, and how much nearer the best code is than the next."""
    unit = latents / np.maximum(np.linalg.norm(latents, axis=-1, keepdims=True), 1e-12)
    codes = codebook / np.maximum(np.linalg.norm(codebook, axis=-1, keepdims=True), 1e-12)
    distances = np.square(unit).sum(1)[:, None] + np.square(codes).sum(1)[None] - 2 * unit @ codes.T
    nearest = np.sort(np.partition(distances, 1, axis=1)[:, :2], axis=1)
    return distances.argmin(1), nearest[:, 1] - nearest[:, 0]


def test_encode(pair: Pair):
    pixels = pictures(9, 1, pair.config.image_size)
    (latents, ids), taps = with_taps(
        pair, lambda model, taps, x: (model.vq.latents(x, taps), model.vq_encode(x)), pixels
    )

    vq = pair.model.vqmodel
    modules = level_ends("vq/encoder/down", vq.encoder.down, "downsample")
    modules |= {"vq/encoder/mid": vq.encoder.mid}
    with torch.no_grad(), recorded(modules) as theirs:
        raw = vq.quant_conv(vq.encoder(nchw(pixels)))
    assert set(taps) == set(theirs)
    for name, tap in theirs.items():
        check(f"{pair.scale}/{name}", taps[name], tap.transpose(0, 2, 3, 1))

    raw = raw.permute(0, 2, 3, 1).reshape(-1, pair.config.vq.codebook_dim)
    unit = torch.nn.functional.normalize(raw, dim=-1)
    check(f"{pair.scale}/vq latents", latents.reshape(unit.shape), unit.numpy())

    codebook = vq.quantize.embedding.weight
    expected, margin = reference_codes(raw.double().numpy(), codebook.double().numpy())
    clear = margin > 1e-4  # elsewhere two codes are equally near, to float32's eyes
    assert clear.mean() > 0.95
    assert len(set(expected)) > 5
    np.testing.assert_array_equal(ids[0][clear], expected[clear])

    # The rule matters: without normalisation most codes are others.
    _, _, unnormalised = vq.quantize(grid(raw))
    assert (unnormalised.numpy() != expected).mean() > 0.2


@torch.no_grad()
def test_transformers_own_rule_agrees_on_unit_vectors(pair: Pair):
    """With unit latents and a unit codebook the reference and transformers name the same codes."""
    dim, vq = pair.config.vq.codebook_dim, pair.model.vqmodel
    side = pair.config.grid
    latents = rng(10).standard_normal((side * side, dim), np.float32)
    unit = torch.nn.functional.normalize(to_torch(latents), dim=-1)
    stored = vq.quantize.embedding.weight
    quantizer = copy.deepcopy(vq.quantize)
    quantizer.embedding.weight.copy_(torch.nn.functional.normalize(stored, dim=-1))
    _, _, theirs = quantizer(grid(unit))
    (ours,), _ = with_taps(
        pair, lambda model, taps, x: model.vq.quantize(x), unit.numpy().reshape(1, side, side, dim)
    )
    _, margin = reference_codes(latents.astype(np.float64), stored.double().numpy())
    clear = margin > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(ours[clear], theirs.numpy()[clear])


def grid(rows: torch.Tensor) -> torch.Tensor:
    """[P, C] -> [1, C, Y, X], as transformers' quantiser takes it."""
    side = round(rows.shape[0] ** 0.5)
    return rows.reshape(1, side, side, -1).permute(0, 3, 1, 2)
