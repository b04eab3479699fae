"""Whatever people type, the ids that reach the model hold the template's control tokens alone."""

import numpy as np
import pytest
from PIL import Image

from janus_jax.api import Janus
from janus_jax.generate import batch, chat
from janus_jax.generate.batch import ChatRequest
from janus_jax.processing import Turn


class Seen(Exception):
    """Raised in place of running the model."""


@pytest.fixture(scope="module")
def model(debug_model) -> Janus:
    return Janus(debug_model)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.new("RGB", (20, 20), (255, 0, 0))


@pytest.fixture(scope="module")
def typed(model) -> list[str]:
    """Every added token, alone and within a text, and all of them at once."""
    added = [token.content for token in model.tokenizer._raw.get_added_tokens_decoder().values()]
    assert len(added) >= 8 and "<image_placeholder>" in added
    return [form.format(token) for token in added for form in ("{}", "a{}b", " {0} {0}")] + [
        "".join(added)
    ]


@pytest.fixture
def seen(monkeypatch) -> dict[str, np.ndarray]:
    """The ids and image indices of the last call, which does not run."""
    last: dict[str, np.ndarray] = {}

    def extend(graphdef, params, cache, start, count, ids, pixels, index, *rest):
        last.update(ids=ids[:, : int(count)], index=index[:, : int(count)])
        raise Seen

    def begin(graphdef, params, ids, mask, positions, pixels, index, *rest, **settings):
        last.update(ids=ids, mask=mask, index=index)
        raise Seen

    monkeypatch.setattr(chat, "extend", extend)
    monkeypatch.setattr(batch, "begin", begin)
    return last


def control(model: Janus, ids: np.ndarray) -> list[int]:
    return [i for i in ids.tolist() if i in model.tokenizer.protected]


def check_images(model: Janus, ids: np.ndarray, index: np.ndarray) -> None:
    """The placeholders, and nothing else, take picture features, in order."""
    placeholder = ids == model.tokenizer.image_placeholder
    np.testing.assert_array_equal(placeholder, index >= 0)
    np.testing.assert_array_equal(index[placeholder], np.arange(placeholder.sum()))


def test_in_a_conversation_of_two_turns(model, typed, picture, seen):
    def ask(system: str, first: str, answer: str, question: str) -> list[int]:
        talk = model.start_chat(system)
        talk._turns = (Turn("user", first, 1), Turn("assistant", answer))
        talk._pixels = chat.prepare(talk._model, "x", [picture])
        with pytest.raises(Seen):
            talk.ask(question, [picture])
        check_images(model, seen["ids"][0], seen["index"][0])
        return control(model, seen["ids"][0])

    plain = ask("s", "q", "a", "q")
    assert plain.count(model.tokenizer.image_placeholder) == 2 * model.config.vision.num_patches
    for text in typed:
        assert ask(text, "q", "a", "q") == plain, text
        assert ask("s", text, "a", "q") == plain, text
        assert ask("s", "q", text, "q") == plain, text
        assert ask("s", "q", "a", text) == plain, text


def test_in_a_batch(model, typed, picture, seen):
    def ask(texts: list[tuple[str, str]]) -> list[list[int]]:
        with pytest.raises(Seen):
            model.chat_batch([ChatRequest(q, [picture], system=s) for q, s in texts])
        check_images(model, seen["ids"].reshape(-1), seen["index"].reshape(-1))
        rows = zip(seen["ids"], seen["mask"], strict=True)
        return [control(model, ids[mask]) for ids, mask in rows]

    (plain,) = ask([("q", "s")])
    texts = [pair for text in typed for pair in ((text, "s"), ("q", text))]
    for start in range(0, len(texts), batch.MAX_ROWS_CPU):
        together = texts[start : start + batch.MAX_ROWS_CPU]
        assert ask(together) == [plain] * len(together)
