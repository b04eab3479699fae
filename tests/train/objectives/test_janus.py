"""The packed loss: equal to the definition sample by sample, and to itself in any groups."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from janus_jax.config import DEBUG
from janus_jax.functional import abstract, flat_params
from janus_jax.nn.layers import ShapesOnly
from janus_jax.processing.prompt import unconditional
from tests.debug_model import random_params
from tests.train.objectives import unpacked
from train.data.batches import join
from train.data.emoji_source import conversation
from train.data.packing import KINDS, Conversation, Generation, PackedShape, Sample, pack
from train.objectives import janus
from train.scanned import ScannedJanus, stack, unstack

TEXT_WEIGHT, CHUNK = 0.5, 7
P = DEBUG.num_image_tokens
SHAPE = PackedShape(
    rows=4,
    length=160,
    pictures=4,
    image_size=DEBUG.image_size,
    image_tokens=P,
    drawings=3,
    text_targets=150,
)
HOW: dict[str, Any] = dict(text_weight=TEXT_WEIGHT, chunk=CHUNK, drawings=2)


@pytest.fixture(scope="module")
def samples(data, codes) -> list[Sample]:
    """Three pictures talked about, two texts, a picture to draw, and one with a dropped prompt."""
    rng = np.random.default_rng(0)
    talks = [data.pick_understanding(i, rng) for i in (5, 900, 1500)]
    talks += [data.pick_text(i, rng) for i in (7, 70)]
    whole = data.prompt(data.records[5], False)
    dropped = unconditional(data.prompt(data.records[900], False), data.tokenizer.pad)
    return [
        *(conversation(f"{i}", row) for i, row in enumerate(talks)),
        Generation("drawn", whole, codes[5]),
        Generation("dropped", dropped, codes[900]),
    ]


@pytest.fixture(scope="module")
def batch(samples):
    """Some of every capacity stays unused."""
    rows = [[(0, samples[3]), (0, samples[5])], [(0, samples[0]), (1, samples[4])]]
    rows += [[(1, samples[6]), (2, samples[2])], [(1, samples[1])]]
    return pack(rows, SHAPE, KINDS)


@pytest.fixture(scope="module")
def plain(samples):
    talks = [s for s in samples if isinstance(s, Conversation)]
    return {
        "understanding": unpacked.collate_talks(talks[:3], P),
        "text": unpacked.collate_talks(talks[3:], P),
        "generation": unpacked.collate_drawings(samples[5:]),
    }


def gradient(loss, module):
    """`(sums, gradients)` of the mean loss, for the parameters of a module."""
    graphdef = nnx.graphdef(module)

    def value(params, batch):
        sums = loss(nnx.merge(graphdef, params), batch)
        return sums["loss"][0] / sums["loss"][1], sums

    return jax.jit(jax.grad(value, has_aux=True))


@pytest.fixture(scope="module")
def params():
    return random_params(DEBUG)


@pytest.fixture(scope="module")
def step(params, batch):
    """The compiled packed loss of the scanned model, with gradients."""
    run = gradient(
        lambda model, batch: janus.loss(model, batch, jax.random.key(0), **HOW),
        ScannedJanus(DEBUG, ShapesOnly(), remat="qkv"),
    )
    return run.lower(stack(params), batch).compile()


def assert_same_gradients(found, wanted):
    found, wanted = flat_params(found), flat_params(wanted)
    assert {path for path in wanted if not path.startswith("vq")} == set(found)
    for path, value in found.items():
        want = np.asarray(wanted[path])
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(value, want, atol=1e-5 * scale, err_msg=path)


def test_packed_and_scanned_equals_unpacked_and_plain(params, step, batch, plain):
    run = gradient(
        lambda model, batch: unpacked.loss(model, batch, text_weight=TEXT_WEIGHT),
        nnx.merge(abstract(DEBUG)[0], abstract(DEBUG)[1]),
    )
    wanted, want = run(params, plain)
    found, got = step(stack(params), batch)
    assert want.keys() == got.keys() == {"loss", *(f"{kind}_loss" for kind in KINDS)}
    for name, (total, count) in want.items():
        assert float(got[name][0]) == pytest.approx(float(total), rel=1e-5)
        assert float(got[name][1]) == float(count)
    assert_same_gradients(unstack(found), wanted)
    # Every part that a stage trains is reached.
    for part in ("vision", "aligner", "gen_embed", "gen_aligner", "image_head", "llm"):
        reached = [p for p in flat_params(found).items() if p[0].startswith(part)]
        assert any(np.abs(g).max() > 1e-3 for _, g in reached)


def test_padding_and_unused_capacity_reach_nothing(params, step, batch):
    _, want = step(stack(params), batch)
    empty = batch["segment_ids"] == 0
    other = {
        **batch,
        "tokens": np.where(empty, 77, batch["tokens"]).astype(np.int32),
        "pixels": np.where(np.arange(4)[:, None, None, None] < 3, batch["pixels"], 200).astype(
            np.uint8
        ),
        "codes": np.where(np.arange(3)[:, None] < 2, batch["codes"], 5).astype(np.int32),
    }
    _, got = step(stack(params), other)
    assert float(got["loss"][0]) == pytest.approx(float(want["loss"][0]), rel=1e-6)


def test_the_compiled_step_holds_no_logits_of_all_targets(step, batch):
    v, found = DEBUG.llm.vocab_size, set()
    for dims in re.findall(r"f32\[([\d,]+)\]", step.as_text()):
        shape = tuple(map(int, dims.split(",")))
        if v in shape:
            found.add(int(np.prod(shape)) // v)
    # Logits of a chunk; the embedding, the head and their gradients are [D, V].
    assert CHUNK in found
    assert found <= {1, CHUNK, DEBUG.llm.width}


def test_groups_are_parts_of_one_sum(params, samples, batch, step):
    """Every group's indices speak of its own rows; where samples lie does not matter."""
    shape = SHAPE
    a = pack([[(1, samples[4]), (1, samples[1])], [(1, samples[6])]], shape, KINDS)
    b = pack([[(0, samples[5]), (2, samples[2]), (0, samples[3])], [(0, samples[0])]], shape, KINDS)
    run = gradient(
        lambda model, batch: janus.loss(model, batch, jax.random.key(0), groups=2, **HOW),
        ScannedJanus(DEBUG, ShapesOnly()),
    )
    found, got = run(stack(params), join([a, b], 1))
    wanted, want = step(stack(params), batch)
    for name, (total, count) in want.items():
        assert float(got[name][0]) == pytest.approx(float(total), rel=1e-5)
        assert float(got[name][1]) == float(count)
    assert_same_gradients(unstack(found), unstack(wanted))


def test_noise_replaces_a_random_share_of_each_picture():
    codes = jnp.full((4000, 16), -1, jnp.int32)
    noisy = np.asarray(janus.with_noise(codes, jnp.arange(4000), 4000, 0.8, 64, jax.random.key(0)))
    assert (noisy[:, -1] == -1).all()
    noisy = noisy[:, :-1]
    replaced = noisy != -1
    # A picture's share is uniform on [0, 0.8].
    assert replaced.mean() == pytest.approx(0.4, abs=0.02)
    assert replaced.mean(1).std() > 0.2
    values, counts = np.unique(noisy[replaced], return_counts=True)
    assert values.tolist() == list(range(64))
    assert counts.std() / counts.mean() < 0.1


def test_noise_follows_a_picture_wherever_it_is_packed():
    codes, ranks = jnp.arange(5 * 8, dtype=jnp.int32).reshape(5, 8), jnp.array([3, 0, 4, 2, 1])
    whole = janus.with_noise(codes, jnp.arange(5), 5, 0.8, 64, jax.random.key(0))
    moved = janus.with_noise(codes[ranks], ranks, 5, 0.8, 64, jax.random.key(0))
    assert (moved == whole[ranks]).all()


def test_noise_changes_the_inputs_of_generation_alone_and_no_target(model, batch):
    arrays = jax.tree.map(jnp.asarray, batch)
    clean, noisy = (
        janus.inputs(model, arrays, jax.random.key(0), groups=1, drawings=2, noise=noise)
        for noise in (0.0, 1.0)
    )
    changed = np.asarray(jnp.abs(noisy - clean).max(-1) > 0)
    assert changed.any() and not changed[batch["code_index"] < 0].any()
