import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from janus_jax import functional
from janus_jax.checkpoint import LoadedModel
from janus_jax.errors import InputError
from janus_jax.generate import text
from janus_jax.generate.chat import Conversation
from janus_jax.generate.sampling import Sampling
from janus_jax.generate.text import answer_room
from janus_jax.processing import (
    Prompt,
    Turn,
    chat_prompt,
    image_index,
    understanding_pixels,
)

GREEDY = Sampling(np.float32(0.0))
QUESTION = "What is in this image?"


def ask(model: LoadedModel, question: str, pictures: int) -> tuple[Prompt, np.ndarray | None]:
    prompt = chat_prompt(
        model.tokenizer,
        [Turn("user", question, num_images=pictures)],
        roles=model.processor.roles,
        system="",
        num_image_tokens=model.config.vision.num_patches,
    )
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (pictures, 20, 30, 3), dtype=np.uint8)
    settings = model.processor.image
    pixels = [understanding_pixels(Image.fromarray(x), settings) for x in noise]
    return prompt, np.stack(pixels) if pictures else None


def answer(model: LoadedModel, question: str = QUESTION, pictures: int = 1, **settings) -> list:
    prompt, pixels = ask(model, question, pictures)
    return ids_of(model, prompt, pixels, **{"text": question} | settings)


def ids_of(model, prompt, pixels, *, text, max_tokens=20, how=GREEDY, seed=0) -> list[int]:
    """The ids of one answer, without the end-of-sentence token."""
    most = min(max_tokens, answer_room(model.config, prompt))
    chat = Conversation(model, system="", how=how, seed=seed)
    pictures = () if pixels is None else tuple(pixels)
    return [token for token in chat._tokens(prompt, pictures, text, most) if token is not None]


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_greedy_answers_are_those_of_full_recomputation(debug_model, pictures):
    graphdef, params = debug_model.graphdef, debug_model.params
    got = answer(debug_model, pictures=pictures)
    prompt, pixels = ask(debug_model, QUESTION, pictures)
    ids = np.concatenate([prompt.ids, got]).astype(np.int32)[None]
    features = index = None
    if pixels is not None:
        features = functional.encode_image(graphdef, params, jnp.asarray(pixels))
        patches = debug_model.config.vision.num_patches
        index = jnp.asarray(image_index([prompt.image_spans], ids.shape[1], patches))
    x = functional.embed(graphdef, params, jnp.asarray(ids), features, index)
    positions = jnp.arange(ids.shape[1])[None]
    h = functional.hidden(graphdef, params, x, positions, jnp.ones(ids.shape, bool))
    likeliest = jnp.argmax(functional.text_logits(graphdef, params, h[0]), axis=-1)
    start = len(prompt.ids) - 1
    want = np.asarray(likeliest[start : start + 20])
    end = np.flatnonzero(want == debug_model.tokenizer.eos)
    assert got == want[: end[0] if len(end) else 20].tolist()
    assert len(got) > 3


def test_pictures_matter_and_so_does_their_order(debug_model):
    prompt, pixels = ask(debug_model, QUESTION, 2)
    first, second = (ids_of(debug_model, prompt, p, text="") for p in (pixels, pixels[::-1]))
    assert first != second


def test_an_answer_ends_at_the_end_token(debug_model, monkeypatch):
    whole = answer(debug_model)
    # The fifth token is declared the end of the sentence.
    end = whole.index(whole[4])
    monkeypatch.setattr(debug_model.tokenizer, "eos", whole[4])
    assert answer(debug_model) == whole[:end]


@pytest.mark.parametrize("most", [1, 2, text.PIECE, text.PIECE + 1, text.PIECE + 2])
def test_an_answer_has_at_most_max_tokens(debug_model, most):
    assert answer(debug_model, max_tokens=most) == answer(debug_model)[:most]


def test_an_answer_ends_where_the_positions_do(debug_model, monkeypatch):
    prompt, _ = ask(debug_model, "word " * 95, 0)
    room = debug_model.config.llm.max_positions - len(prompt.ids)
    assert 0 < room < 100
    monkeypatch.setattr(debug_model.tokenizer, "eos", -1)  # the model never ends it
    assert len(answer(debug_model, "word " * 95, 0, max_tokens=10**6)) == room
    with pytest.raises(InputError, match=r"too long: .* allowed: at most 511 tokens"):
        answer(debug_model, "word " * 600, 0)


def test_sampling_follows_the_seed(debug_model):
    hot = {"how": Sampling(np.float32(1.0)), "max_tokens": 12}
    first = answer(debug_model, **hot)
    assert answer(debug_model, **hot) == first
    assert answer(debug_model, **hot, seed=1) != first


def test_a_second_question_compiles_nothing(debug_model):
    answer(debug_model)
    sizes = text.extend._cache_size(), text.advance._cache_size()
    answer(debug_model, "Is this an image at all?", max_tokens=15)
    assert (text.extend._cache_size(), text.advance._cache_size()) == sizes
