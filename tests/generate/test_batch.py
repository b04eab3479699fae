from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from janus_jax import memory
from janus_jax.api import Janus
from janus_jax.generate import batch
from janus_jax.generate.batch import ChatRequest

# Answers of the random weights that differ.
HOT = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "max_tokens": 16}


@pytest.fixture(scope="module")
def model(debug_model) -> Janus:
    return Janus(debug_model)


def test_a_batch_is_answered_as_each_alone_and_bad_requests_fail_by_name(model):
    noise = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    first, second = map(Image.fromarray, noise)
    good = [
        ChatRequest("What?", [first]),
        ChatRequest("Tell me", system="S"),
        ChatRequest("What are these two?", [second, first]),
    ]
    bad = [
        ChatRequest("x", [b"not a picture"], name="broken.png"),
        ChatRequest("word " * 600),
        ChatRequest("  "),
    ]
    results = model.chat_batch([good[0], *bad, *good[1:]], max_tokens=12)
    for request, result in zip(good, [results[0], *results[4:]], strict=True):
        chat = model.start_chat(request.system)
        alone = chat.ask(request.question, request.images, max_tokens=12)
        assert (result.text, result.ending, result.error) == (alone, chat.ending, None)
    for result, parts in zip(
        results[1:4],
        [("broken.png: ",), ("request 3: ", "too long"), ("request 4: ", "question is")],
        strict=True,
    ):
        assert result.text is None and all(part in str(result.error) for part in parts)


def test_each_row_has_its_seed_and_its_stop(model):
    rows = [ChatRequest("hello", seed=seed) for seed in (15, 14, 21)]
    alone = [model.chat("hello", seed=row.seed, **HOT) for row in rows]
    assert len(set(alone)) == 3
    assert [result.text for result in model.chat_batch(rows, **HOT)] == alone
    stop = alone[1][len(alone[1]) // 2 :][:3]
    want = [text.split(stop)[0].strip() for text in alone]
    assert [result.text for result in model.chat_batch(rows, stop=[stop], **HOT)] == want
    assert model.chat_batch([]) == []


def test_what_does_not_fit_at_once_is_answered_in_parts(model, monkeypatch):
    programs = []
    begin = batch.begin

    def spy(graphdef, params, ids, *rest, slots):
        programs.append((*ids.shape, slots))
        return begin(graphdef, params, ids, *rest, slots=slots)

    monkeypatch.setattr(batch, "begin", spy)
    requests = [ChatRequest("hello", seed=seed) for seed in (15, 14, 21)]
    whole = model.chat_batch(requests, **HOT)
    [(rows, length, slots)] = programs
    assert rows == 3 and len({result.text for result in whole}) == 3
    weights = memory.param_bytes(model.params)
    two = memory.answering(model.config, weights, 2, 0, length, slots, itemsize=4).total
    monkeypatch.setenv("JANUS_JAX_MEMORY_GB", str((two + 2048) / 1e9))
    long = ChatRequest("word " * 95, system="", name="long")
    first, failed, *others = model.chat_batch([requests[0], long, *requests[1:]], **HOT)
    assert [rows for rows, *_ in programs[1:]] == [2, 1]
    assert [first, *others] == whole
    assert failed.text is None and "long: answering it takes" in str(failed.error)


def test_a_cpu_answers_at_most_16_at_once_and_likes_together(monkeypatch):
    monkeypatch.setattr(batch.jax, "default_backend", lambda: "cpu")
    rows = {
        i: SimpleNamespace(pixels=(None,) * (i % 2), prompt=SimpleNamespace(ids=range(100 - i)))
        for i in range(40)
    }
    parts = list(batch._batches(rows, lambda chosen: True))
    assert [len(part) for part in parts] == [16, 16, 8]
    order = [i for part in parts for i in part]
    assert order == [*range(38, -1, -2), *range(39, 0, -2)]
    assert list(batch._batches(rows, lambda chosen: False)) == [[i] for i in order]
    assert list(batch._batches({}, lambda chosen: True)) == []
