"""The stages' loss against the definition, sample by sample, without padding.

Dims: B rows, T tokens, A answer tokens, P image tokens, V text vocabulary, K codes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.processing.prompt import unconditional
from train.objectives import janus


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def text_logits(model):
    """All text logits [T, V] of one unpadded sample, and None or its picture."""

    @jax.jit
    def run(tokens, pixels, index):
        positions = jnp.arange(tokens.shape[1])[None]
        features = None
        if pixels is not None:
            features = model.encode_image(pixels.astype("float32") / 127.5 - 1)
        x = model.embed(tokens, features, index)
        h = model.hidden(x, positions, jnp.ones(tokens.shape, bool))
        return model.text_logits(h)[0]

    return run


def naive_text(text_logits, row) -> np.ndarray:
    """Negative log-likelihood of each answer token."""
    index, pixels = None, None
    if row.pixels is not None:
        index = np.full((1, len(row.ids)), -1, np.int32)
        ((start, length),) = row.spans
        index[0, start : start + length] = np.arange(length)
        pixels = row.pixels[None]
    scores = log_softmax(text_logits(row.ids[None], pixels, index))
    where = np.arange(row.prompt_length, len(row.ids))
    return -scores[where - 1, row.ids[where]]


@pytest.fixture(scope="module")
def rows(data):
    """Two conversations with a picture, of different lengths of prompt and answer."""
    rng = np.random.default_rng(0)
    found = [data.pick_understanding(i, rng) for i in (5, 900, 1500, 2300)]
    found = sorted(found, key=lambda row: len(row.ids))
    rows = [found[0], found[-1]]
    assert len(rows[0].ids) != len(rows[1].ids)
    return rows


@pytest.fixture(scope="module")
def text_loss(model):
    run = jax.jit(lambda batch: janus.text_loss(model, batch))
    return lambda batch: tuple(float(x) for x in run(batch))


def test_text_loss_is_that_of_the_answers_one_by_one(data, rows, text_logits, text_loss):
    each = [naive_text(text_logits, row) for row in rows]
    assert len(each[0]) != len(each[1])
    summed, count = text_loss(data.collate_text("understanding", rows))
    assert count == sum(map(len, each))
    assert summed == pytest.approx(sum(e.sum() for e in each), rel=1e-5)


def test_text_loss_reads_no_padding_and_nothing_that_comes_later(
    data, rows, text_logits, text_loss
):
    batch = data.collate_text("understanding", rows)
    before, _ = text_loss(batch)
    padding = batch["tokens"].copy()
    padding[~batch["mask"]] = 77
    assert text_loss({**batch, "tokens": padding})[0] == pytest.approx(before, rel=1e-6)
    # Another last token is another label and nothing else: no state before it may see it.
    last = batch["tokens"].copy()
    last[0, -1] = 77
    row = rows[0]
    end = log_softmax(
        text_logits(
            row.ids[None],
            row.pixels[None],
            np.asarray(batch["image_index"][:1, -len(row.ids) :]),
        )
    )[-2]
    want = before + end[row.ids[-1]] - end[77]
    assert text_loss({**batch, "tokens": last})[0] == pytest.approx(want, rel=1e-5)


def test_the_picture_decides_the_answer(data, rows, text_loss):
    batch = data.collate_text("understanding", rows)
    other = {**batch, "pixels": 255 - batch["pixels"]}
    assert abs(text_loss(other)[0] - text_loss(batch)[0]) > 1e-2


@pytest.fixture(scope="module")
def image_logits(model):
    """Image logits [P, K] of one unpadded prompt and its codes."""

    @jax.jit
    def run(prompt, codes):
        inputs = jnp.concatenate(
            [model.embed(prompt), model.embed_image_tokens(codes[:, :-1])], axis=1
        )
        length = inputs.shape[1]
        h = model.hidden(inputs, jnp.arange(length)[None], jnp.ones((1, length), bool))
        return model.image_logits(h[0, prompt.shape[1] - 1 :])

    return run


@pytest.fixture(scope="module")
def image_loss(model):
    run = jax.jit(lambda batch: janus.image_loss(model, batch, 0.0, jax.random.key(0)))
    return lambda batch: tuple(float(x) for x in run(batch))


@pytest.fixture(scope="module")
def prompts(data):
    """A whole prompt and a dropped one, of different lengths."""
    whole = [data.prompt(data.records[i], False) for i in (5, 900, 1500, 2300)]
    short, *_, long = sorted(whole, key=len)
    assert len(short) != len(long)
    return [(short, 5), (unconditional(long, data.tokenizer.pad), 900)]


def test_image_loss_is_that_of_the_codes_one_by_one(data, codes, prompts, image_logits, image_loss):
    want, p = 0.0, codes.shape[1]
    for prompt, i in prompts:
        scores = log_softmax(image_logits(prompt[None], codes[i][None]))
        want -= scores[np.arange(p), codes[i]].sum()
    summed, count = image_loss(data.collate_generation(codes, prompts))
    assert count == 2 * p
    assert summed == pytest.approx(want, rel=1e-5)


def test_image_loss_predicts_each_code_from_those_before_it(
    data, codes, prompts, image_logits, image_loss
):
    batch = data.collate_generation(codes, prompts)
    before, _ = image_loss(batch)
    prompt, i = prompts[0]
    last = log_softmax(image_logits(prompt[None], codes[i][None]))[-1]
    changed = batch["codes"].copy()
    changed[0, -1] = (changed[0, -1] + 1) % 64
    want = before + last[batch["codes"][0, -1]] - last[changed[0, -1]]
    assert image_loss({**batch, "codes": changed})[0] == pytest.approx(want, rel=1e-5)


def test_noise_replaces_a_random_share_of_each_row(data):
    codes = np.full((4000, 15), -1, np.int32)
    noisy = np.asarray(janus.with_noise(jnp.asarray(codes), 0.8, 64, jax.random.key(0)))
    replaced = noisy != -1
    # A row's share is uniform on [0, 0.8].
    assert replaced.mean() == pytest.approx(0.4, abs=0.02)
    assert replaced.mean(1).std() > 0.2
    values, counts = np.unique(noisy[replaced], return_counts=True)
    assert values.tolist() == list(range(64))
    assert counts.std() / counts.mean() < 0.1


def test_noise_reaches_the_inputs_and_never_the_targets(monkeypatch):
    class Model:
        """Every code's logits favour the code that was the input one place before."""

        class gen_embed:
            embedding = jnp.zeros((8, 1))

        def embed(self, tokens):
            return jnp.zeros((*tokens.shape, 8))

        def embed_image_tokens(self, ids):
            return jax.nn.one_hot(ids, 8)

        def hidden(self, x, positions, mask):
            return x

        def image_logits(self, h):
            return 100.0 * h

    monkeypatch.setattr(janus, "with_noise", lambda codes, *_: jnp.full_like(codes, 5))
    batch = {
        "tokens": np.zeros((1, 2), np.int32),
        "mask": np.ones((1, 2), bool),
        "codes": jnp.array([[3, 3, 5, 5]]),
    }
    model: Any = Model()
    clean, _ = janus.image_loss(model, batch, 0.0, jax.random.key(0))
    noisy, count = janus.image_loss(model, batch, 0.8, jax.random.key(0))
    # First code: nothing known. Then inputs 3, 3, 5 against targets 3, 5, 5; noisy 5, 5, 5.
    assert float(clean) == pytest.approx(np.log(8) + 100, rel=1e-5)
    assert float(noisy) == pytest.approx(np.log(8) + 100, rel=1e-5)
    assert int(count) == 4
    batch["codes"] = jnp.array([[3, 3, 3, 3]])
    noisy, _ = janus.image_loss(model, batch, 0.8, jax.random.key(0))
    assert float(noisy) == pytest.approx(np.log(8) + 300, rel=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_step_s_loss_is_the_mean_over_all_its_tokens(monkeypatch, weight):
    sums = {"understanding": (6.0, 2), "text": (1.0, 2), "generation": (30.0, 16)}
    monkeypatch.setattr(janus, "text_loss", lambda model, kind: sums[kind])
    monkeypatch.setattr(janus, "image_loss", lambda model, kind, *_: sums[kind])
    # The stand-ins read nothing of model and key, and take a kind's name for its batch.
    nothing: Any = None
    batch: Any = {kind: kind for kind in sums}
    value, metrics = janus.loss(nothing, batch, nothing, text_weight=weight, code_noise=0.0)
    assert float(value) == pytest.approx((30 + weight * 7) / (16 + weight * 4))
    assert metrics == {
        "understanding_loss": 3.0,
        "text_loss": 0.5,
        "generation_loss": pytest.approx(1.875),
    }
