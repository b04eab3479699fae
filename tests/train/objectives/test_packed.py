"""Packed equals unpacked: the loss and every gradient of a mixed step, in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from janus_jax.config import DEBUG
from janus_jax.functional import abstract, flat_params
from janus_jax.processing.prompt import unconditional
from tests.debug_model import random_params
from train.data.packing import Conversation, Generation, PackedShape, Sample, pack
from train.objectives import janus, packed

TEXT_WEIGHT, CHUNK = 0.5, 7
LENGTH = 160


@pytest.fixture(scope="module")
def rows(data):
    rng = np.random.default_rng(0)
    seen = [data.pick_understanding(i, rng) for i in (5, 900, 1500)]
    return {"understanding": seen, "text": [data.pick_text(i, rng) for i in (7, 70)]}


@pytest.fixture(scope="module")
def drawn(data):
    dropped = unconditional(data.prompt(data.records[900], False), data.tokenizer.pad)
    return [(data.prompt(data.records[5], False), 5), (dropped, 900)]


@pytest.fixture(scope="module")
def unpacked(data, codes, rows, drawn):
    batch = {kind: data.collate_text(kind, found) for kind, found in rows.items()}
    return {**batch, "generation": data.collate_generation(codes, drawn)}


@pytest.fixture(scope="module")
def batch(codes, rows, drawn):
    samples: list[Sample] = [Generation(f"{i}", prompt, codes[i]) for prompt, i in drawn]
    for i, row in enumerate([*rows["understanding"], *rows["text"]]):
        samples.append(
            Conversation(
                f"{i}",
                row.ids,
                np.arange(len(row.ids)) >= row.prompt_length,
                None if row.pixels is None else row.pixels[None],
                tuple(start for start, _ in row.spans),
            )
        )
    # Some of every capacity stays unused.
    shape = PackedShape(
        rows=4,
        length=LENGTH,
        pictures=4,
        image_size=DEBUG.image_size,
        image_tokens=DEBUG.vision.num_patches,
        drawings=3,
        text_targets=150,
    )
    found = pack([samples[i] for i in (3, 0, 6, 2, 1, 5, 4)], shape)
    assert (found["segment_ids"].max(1) >= 2).any()
    return found


@pytest.fixture(scope="module")
def parts():
    return abstract(DEBUG)[0], random_params(DEBUG)


def gradient(parts, loss):
    graphdef, params = parts

    def value(params, batch):
        return loss(nnx.merge(graphdef, params), batch, jax.random.key(0))

    return jax.jit(jax.value_and_grad(value, has_aux=True)), params


@pytest.fixture(scope="module")
def step(parts, batch):
    """The compiled packed loss with gradients."""

    def loss(model, batch, key):
        return packed.loss(model, batch, key, text_weight=TEXT_WEIGHT, code_noise=0.0, chunk=CHUNK)

    run, params = gradient(parts, loss)
    return run.lower(params, batch).compile()


def test_packed_equals_unpacked(parts, step, batch, unpacked):
    def loss(model, batch, key):
        return janus.loss(model, batch, key, text_weight=TEXT_WEIGHT, code_noise=0.0)

    run, params = gradient(parts, loss)
    (want, want_metrics), want_gradients = run(params, unpacked)
    (got, metrics), gradients = step(params, batch)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    for name, value in want_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5)
    counts = {k: int(metrics[f"{k}_tokens"]) for k in unpacked}
    assert counts == {
        "understanding": unpacked["understanding"]["answer"].sum(),
        "text": unpacked["text"]["answer"].sum(),
        "generation": unpacked["generation"]["codes"].size,
    }
    wanted, found = flat_params(want_gradients), flat_params(gradients)
    assert wanted.keys() == found.keys()
    for path, value in wanted.items():
        value = np.asarray(value)
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(found[path], value, atol=1e-5 * scale, err_msg=path)
    # Every part that a stage trains is reached.
    for part in ("vision", "aligner", "gen_embed", "gen_aligner", "image_head", "llm"):
        assert any(p.startswith(part) and np.abs(g).max() > 1e-3 for p, g in found.items())


def test_padding_and_unused_capacity_reach_nothing(parts, step, batch):
    (want, _), _ = step(parts[1], batch)
    empty = batch["segment_ids"] == 0
    other = {
        **batch,
        "tokens": np.where(empty, 77, batch["tokens"]).astype(np.int32),
        "pixels": np.where(np.arange(4)[:, None, None, None] < 3, batch["pixels"], 200).astype(
            np.uint8
        ),
        "codes": np.where(np.arange(3)[:, None] < 2, batch["codes"], 5).astype(np.int32),
    }
    (got, _), _ = step(parts[1], other)
    assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_the_compiled_step_holds_no_logits_of_all_targets(step, batch):
    v, found = DEBUG.llm.vocab_size, set()
    for dims in re.findall(r"f32\[([\d,]+)\]", step.as_text()):
        shape = tuple(map(int, dims.split(",")))
        if v in shape:
            found.add(int(np.prod(shape)) // v)
    # Logits of a chunk; the embedding, the head and their gradients are [D, V].
    assert CHUNK in found
    assert found <= {1, CHUNK, DEBUG.llm.width}


def test_noise_changes_the_input_codes_of_generation_alone(model, batch):
    batch = jax.tree.map(jnp.asarray, batch)
    clean = packed.inputs(model, batch, 0.0, jax.random.key(0))
    noisy = packed.inputs(model, batch, 1.0, jax.random.key(0))
    changed = np.asarray(jnp.abs(noisy - clean).max(-1) > 0)
    assert changed.any() and not changed[batch["code_index"] < 0].any()
