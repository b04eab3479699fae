import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from janus_jax import functional
from janus_jax.api import Janus
from janus_jax.errors import InputError
from janus_jax.generate import chat as conversations
from janus_jax.generate import text
from janus_jax.processing import Prompt, Turn, chat_prompt, image_index

# An answer of the random weights that comes in several pieces.
HOT = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 15}


@pytest.fixture(scope="module")
def model(debug_model) -> Janus:
    return Janus(debug_model)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    return [Image.fromarray(x) for x in noise]


def whole_prompt(model: Janus, turns, system="S"):
    return chat_prompt(
        model.tokenizer,
        turns,
        roles=model.processor.roles,
        system=system,
        num_image_tokens=model.config.vision.num_patches,
    )


def test_later_turns_are_those_of_a_fresh_run_over_the_whole_prompt(model, pictures):
    chat = model.start_chat("S")
    shown = []
    for question, images in [("What?", pictures[:1]), ("And?", []), ("These?", pictures[1:])]:
        shown += images
        before = chat.history
        answer = chat.ask(question, images, max_tokens=12)
        turns = (*before, Turn("user", question, num_images=len(images)))
        prompt = whole_prompt(model, turns)
        # Teacher-forced recomputation without any cache, along the tokens that the cache holds.
        held = chat._kept
        assert held is not None
        ids = held.ids[None]
        assert ids[0, : len(prompt.ids)].tolist() == prompt.ids.tolist()
        settings = model.processor.image
        pixels = jnp.stack([conversations.understanding_pixels(p, settings) for p in shown])
        features = functional.encode_image(model.graphdef, model.params, pixels)
        patches = model.config.vision.num_patches
        index = jnp.asarray(image_index([prompt.image_spans], ids.shape[1], patches))
        x = functional.embed(model.graphdef, model.params, jnp.asarray(ids), features, index)
        positions = jnp.arange(ids.shape[1])[None]
        h, fresh = functional.prefill(
            model.graphdef, model.params, x, positions, jnp.ones(ids.shape, bool), ids.shape[1]
        )
        for got, want in zip(held.cache.k + held.cache.v, fresh.k + fresh.v, strict=True):
            np.testing.assert_allclose(got[:, :, : ids.shape[1]], want, atol=1e-4)
        logits = functional.text_logits(model.graphdef, model.params, h[0])
        likeliest = np.asarray(jnp.argmax(logits, -1))[len(prompt.ids) - 1 :]
        assert likeliest[:-1].tolist() == ids[0, len(prompt.ids) :].tolist()
        assert answer == chat.history[-1].text.strip()
    assert [turn.role for turn in chat.history] == ["user", "assistant"] * 3
    assert chat.num_tokens + chat.room == model.config.llm.max_positions


def test_a_long_prompt_is_read_in_parts(model, pictures, monkeypatch):
    held, parts = [], []
    for most in (conversations.MAX_READ, 32):
        monkeypatch.setattr(conversations, "MAX_READ", most)
        parts.append(conversations._cuts(whole_prompt(model, [Turn("user", "word " * 20)]), 0))
        chat = model.start_chat("S")
        answer = chat.ask("word " * 20, pictures[:2], max_tokens=4)
        assert chat._kept is not None
        held.append((answer, chat._kept))
    assert len(parts[0]) == 2 < len(parts[1])
    (want, whole), (got, cut) = held
    assert got == want and cut.ids.tolist() == whole.ids.tolist()
    for a, b in zip(cut.cache.k + cut.cache.v, whole.cache.k + whole.cache.v, strict=True):
        n = len(cut.ids)
        np.testing.assert_allclose(a[:, :, :n], b[:, :, :n], atol=1e-4)


def test_no_picture_is_cut(monkeypatch):
    prompt = Prompt(np.zeros(100, np.int32), ((10, 30), (41, 30)))
    for most, start, cuts in [
        (100, 0, [0, 100]),
        (32, 0, [0, 10, 41, 73, 100]),
        (32, 10, [10, 41, 73, 100]),
        (20, 10, [10, 40, 41, 71, 91, 100]),
    ]:
        monkeypatch.setattr(conversations, "MAX_READ", most)
        assert conversations._cuts(prompt, start) == cuts


def test_logits_after_kept_turns_are_those_of_the_whole_prompt(model):
    m = nnx.merge(model.graphdef, model.params)
    ids = np.random.default_rng(1).integers(8, 200, (1, 40)).astype(np.int32)
    x, positions = m.embed(jnp.asarray(ids)), jnp.arange(40)[None]
    want = m.text_logits(m.hidden(x, positions, jnp.ones((1, 40), bool)))
    _, cache = m.prefill(x[:, :25], positions[:, :25], jnp.ones((1, 25), bool), 64)
    mask = jnp.arange(20)[None] < 15
    padded = jnp.pad(x[:, 25:], ((0, 0), (0, 5), (0, 0)), constant_values=9.0)
    h, _ = m.extend(padded, 25 + jnp.arange(20)[None], mask, cache)
    np.testing.assert_allclose(m.text_logits(h[:, :15]), want[:, 25:], atol=1e-4)


def test_a_second_turn_reads_only_what_is_new_and_compiles_nothing(model, monkeypatch):
    counts = []
    real = conversations.extend

    def spy(graphdef, params, cache, start, count, *rest):
        counts.append((int(start), int(count)))
        return real(graphdef, params, cache, start, count, *rest)

    monkeypatch.setattr(conversations, "extend", spy)
    chat = model.start_chat("S" * 30)
    chat.ask("What is this thing?", max_tokens=6)
    sizes = real._cache_size(), text.advance._cache_size()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    chat.ask("And what is that thing?", max_tokens=9)
    assert (real._cache_size(), text.advance._cache_size()) == sizes
    assert not compiled
    (_, first), (start, second) = counts
    assert start >= first - 1  # a colon may join the answer after it
    assert start + second == len(whole_prompt(model, chat.history[:3], "S" * 30).ids), (
        "the rest, and no more"
    )


def test_pieces_join_to_the_answer_and_a_seed_repeats_it(model):
    whole = model.start_chat(**HOT).ask("hello", max_tokens=16)
    pieces = list(model.start_chat(**HOT).ask("hello", max_tokens=16, stream=True))
    assert "".join(pieces).strip() == whole and len(pieces) > 1
    assert model.chat("hello", max_tokens=16, **HOT) == whole
    assert model.chat("hello", max_tokens=16, **(HOT | {"seed": 4})) != whole


def test_stop_texts_and_rules_end_an_answer(model):
    whole = model.chat("hello", max_tokens=16, **HOT)
    at = len(whole) // 2
    stop = whole[at : at + 3]
    before = whole[: whole.find(stop)].strip()
    chat = model.start_chat(**HOT)
    assert chat.ask("hello", max_tokens=16, stop=["never", stop]) == before
    assert (chat.ending, chat.history[-1].text.strip()) == ("stop", before)
    chat.reset()
    ruled = chat.ask("hello", max_tokens=16, stop=lambda said: len(said) >= 3)
    assert whole.startswith(ruled) and len(ruled) < len(whole) and chat.ending == "stop"
    with pytest.raises(InputError, match="stop is"):
        chat.ask("hello", stop="one text")


def test_a_stream_left_early_is_kept_as_far_as_it_was_given(model):
    chat = model.start_chat(**HOT)
    stream = chat.ask("hello", max_tokens=16, stream=True)
    first = next(stream)
    stream.close()
    assert chat.ending == "interrupted"
    assert chat.history[-1] == Turn("assistant", first)
    again = chat.ask("go on", max_tokens=8)
    # As if the broken answer had been the whole one.
    other = model.start_chat(**HOT)
    other._turns, other._pixels = chat.history[:2], chat._pixels
    assert other.ask("go on", max_tokens=8) == again
    unused = chat.ask("never begun", stream=True)
    chat.ask("now", max_tokens=2)
    assert len(chat.history) == 6 and list(unused) == []


def test_a_stream_left_by_break_ends_at_once_and_frees_its_conversation(model):
    model.chat("hello", max_tokens=16, **HOT)  # JAX's tracing leaves cycles of its own
    chat = model.start_chat(**HOT)
    freed = weakref.ref(chat)
    gc.disable()
    try:
        for _ in chat.ask("hello", max_tokens=16, stream=True):
            break
        assert (chat.ending, len(chat.history)) == ("interrupted", 2)
        del chat
        assert freed() is None
    finally:
        gc.enable()


def test_another_picture_after_a_reset_is_another_answer(model, pictures):
    chat = model.start_chat()
    chat.ask("What?", pictures[:1], max_tokens=12)
    chat.reset()
    assert chat.history == () and chat.num_tokens == 0
    got = chat.ask("What?", pictures[1:2], max_tokens=12)
    assert got == model.chat("What?", pictures[1:2], max_tokens=12)
    assert got != model.chat("What?", pictures[:1], max_tokens=12)


def test_the_end_of_the_context_is_an_error_that_changes_nothing(model, monkeypatch):
    chat = model.start_chat("")
    chat.ask("word " * 95, max_tokens=4)
    history, room = chat.history, chat.room
    with pytest.raises(InputError, match=rf"too long: \d+ tokens.* room for {room}; fix: ask"):
        chat.ask("word " * 95)
    assert chat.history == history
    monkeypatch.setattr(model.tokenizer, "eos", -1)  # the model never ends its answer
    chat.ask("ok", max_tokens=10**6)
    assert chat.ending == "length" and chat._kept is not None
    # All but the last token of the answer is in the cache.
    assert len(chat._kept.ids) == model.config.llm.max_positions - 1


@pytest.mark.parametrize("question", ["", "  ", None])
def test_an_empty_question_is_refused(model, question):
    with pytest.raises(InputError, match="question is"):
        model.start_chat().ask(question)


@pytest.mark.parametrize(("seconds", "visits"), [(1e-9, 15), (1e9, 3)])
def test_the_pace_of_a_stream_changes_no_token(model, monkeypatch, seconds, visits):
    want = model.chat("Tell me a story", max_tokens=16, temperature=1.0, seed=5)
    monkeypatch.setattr(conversations, "SECONDS_A_PIECE", seconds)
    counts = []

    def advance(*arguments):
        state, piece, count = text.advance(*arguments)
        counts.append(int(count))
        return state, piece, count

    monkeypatch.setattr(conversations, "advance", advance)
    chat = model.start_chat(temperature=1.0, seed=5)
    assert chat.ask("Tell me a story", max_tokens=16) == want
    # One token comes from the prompt, one alone to take the time, and the rest at that pace.
    assert (chat.ending, sum(counts), len(counts)) == ("length", 15, visits)
