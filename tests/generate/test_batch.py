import numpy as np
import pytest
from PIL import Image

from janus_jax.api import Janus
from janus_jax.generate.batch import ChatRequest


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
    hot = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "max_tokens": 16}
    rows = [ChatRequest("hello", seed=seed) for seed in (15, 14, 21)]
    alone = [model.chat("hello", seed=row.seed, **hot) for row in rows]
    assert len(set(alone)) == 3
    assert [result.text for result in model.chat_batch(rows, **hot)] == alone
    stop = alone[1][len(alone[1]) // 2 :][:3]
    want = [text.split(stop)[0].strip() for text in alone]
    assert [result.text for result in model.chat_batch(rows, stop=[stop], **hot)] == want
    assert model.chat_batch([]) == []
