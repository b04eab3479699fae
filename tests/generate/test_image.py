"""Drawing on the `debug` model: the same picture anywhere, and the right distribution."""

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import functional
from janus_jax.checkpoint import LoadedModel
from janus_jax.errors import InputError
from janus_jax.generate import image
from janus_jax.generate.image import decode_codes, encode_prompts, generate_codes
from janus_jax.generate.sampling import Sampling
from janus_jax.processing import unconditional

APPLE = "a red apple"
LONG = "a green apple on a table beside a window through which one sees the sea and a boat"


def draw(model: LoadedModel, prompts: list[str], n: int = 1, **settings) -> np.ndarray:
    settings = {"cfg": 5.0, "how": Sampling(np.float32(1.0)), "seed": 0} | settings
    return generate_codes(
        model.graphdef,
        model.params,
        model.config,
        model.tokenizer,
        model.processor.roles,
        prompts,
        numbers=range(n),
        **settings,
    )


@pytest.fixture(scope="module")
def alone(debug_model: LoadedModel) -> np.ndarray:
    """Pictures 0 to 3 of one prompt."""
    return draw(debug_model, [APPLE], 4)[0]


def exact_logits(model: LoadedModel, text: str, codes: np.ndarray) -> tuple[jnp.ndarray, ...]:
    """Conditional and unconditional logits [P, K] of every code, by one pass without a cache."""
    graphdef, params = model.graphdef, model.params
    [ids] = encode_prompts(model.config, model.tokenizer, model.processor.roles, [text])
    drawn = functional.embed_image_tokens(graphdef, params, jnp.asarray(codes[None, :-1]))
    both = []
    for row in (ids, unconditional(ids, model.tokenizer.pad)):
        prompt = functional.embed(graphdef, params, jnp.asarray(row[None]))
        x = jnp.concatenate([prompt, drawn], axis=1)
        positions = jnp.arange(x.shape[1])[None]
        h = functional.hidden(graphdef, params, x, positions, jnp.ones(x.shape[:2], bool))
        both.append(functional.image_logits(graphdef, params, h[0, -len(codes) :]))
    return tuple(both)


@pytest.mark.parametrize(
    ("prompts", "n"),
    [
        ([APPLE], 1),
        ([APPLE, "b"], 2),
        (["b", APPLE], 3),
        ([LONG, APPLE, LONG + " and a dog", "c"], 1),
        ([APPLE, APPLE], 2),
        (["  " + APPLE + "\n"], 1),
    ],
)
def test_a_picture_is_the_same_in_any_company(debug_model, alone, prompts, n):
    codes = draw(debug_model, prompts, n)
    for text, row in zip(prompts, codes, strict=True):
        if text.strip() == APPLE:
            np.testing.assert_array_equal(row, alone[:n])


def test_a_picture_is_the_same_in_any_batch_size(debug_model, alone):
    for size in (1, 3):
        np.testing.assert_array_equal(draw(debug_model, [APPLE], 4, at_once=size)[0], alone)
    many = draw(debug_model, ["b", APPLE], 8)
    np.testing.assert_array_equal(many[1, :4], alone)


def test_a_cpu_refuses_a_batch_that_would_give_other_pictures(debug_model, alone):
    with pytest.raises(InputError, match=r"drawing 17 pictures at once; allowed: at most 16"):
        draw(debug_model, [APPLE], 17, at_once=2000)
    # No more count than there are.
    np.testing.assert_array_equal(draw(debug_model, [APPLE], 4, at_once=17)[0], alone)


def test_caches_agree_to_the_last_bit(debug_model, monkeypatch):
    # Equal codes could be luck; equal keys and values after the whole picture are not.
    states, advance = [], image.advance

    def spy(*arguments):
        states.append(advance(*arguments))
        return states[-1]

    monkeypatch.setattr(image, "advance", spy)
    draw(debug_model, [APPLE])
    draw(debug_model, ["b", APPLE], 8)
    one, many = states
    for name in ("k", "v"):
        for a, b in zip(getattr(one.cache, name), getattr(many.cache, name), strict=True):
            np.testing.assert_array_equal(np.asarray(b)[16:18], np.asarray(a))


def test_seeds_and_numbers_give_other_pictures(debug_model, alone):
    other = draw(debug_model, [APPLE], 4, seed=1)[0]
    rows = {tuple(row) for row in np.concatenate([alone, other])}
    assert len(rows) == 8
    assert alone.min() >= 0 and alone.max() < debug_model.config.vq.codebook_size


def test_cached_decoding_is_full_recomputation(debug_model):
    # Greedy codes are the likeliest ones of a pass that uses no cache and no padding.
    [codes] = draw(debug_model, [APPLE], how=Sampling(np.float32(0.0)))[0]
    c, u = exact_logits(debug_model, APPLE, codes)
    np.testing.assert_array_equal(jnp.argmax(u + 5.0 * (c - u), axis=-1), codes)


def test_cached_logits_are_those_of_full_recomputation(debug_model, alone):
    graphdef, params = debug_model.graphdef, debug_model.params
    config, codes = debug_model.config, alone[0]
    [ids] = encode_prompts(config, debug_model.tokenizer, debug_model.processor.roles, [APPLE])
    want, _ = exact_logits(debug_model, APPLE, codes)
    pad = 5
    padded = jnp.asarray(np.concatenate([np.zeros(pad, np.int32), ids])[None])
    mask = jnp.arange(padded.shape[1])[None] >= pad
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    x = functional.embed(graphdef, params, padded)
    slots = padded.shape[1] + len(codes)
    h, cache = functional.prefill(graphdef, params, x, positions, mask, slots)
    got = [functional.image_logits(graphdef, params, h[0, -1])]
    for i, code in enumerate(codes[:-1]):
        x = functional.embed_image_tokens(graphdef, params, jnp.asarray([[code]]))
        place = jnp.asarray([[len(ids) + i]])
        h, cache = functional.decode_step(graphdef, params, x, place, cache)
        got.append(functional.image_logits(graphdef, params, h[0, -1]))
    scale = float(jnp.abs(want).max())
    assert float(jnp.abs(jnp.stack(got) - want).max()) < 1e-4 * scale


@pytest.mark.parametrize(
    ("cfg", "how"),
    [
        (5.0, Sampling(1.0)),
        (1.0, Sampling(1.0, top_k=8)),
        (2.0, Sampling(1.0, top_p=np.float32(0.8))),
    ],
)
def test_codes_follow_the_exact_guided_softmax(debug_model, monkeypatch, cfg, how):
    n = 2000
    monkeypatch.setattr(image, "MAX_PICTURES", n)  # rounding does not matter here
    codes = draw(debug_model, [APPLE], n, cfg=cfg, how=how, at_once=n)[0]
    c, u = (x[0] for x in exact_logits(debug_model, APPLE, codes[0]))
    logits = u + cfg * (c - u)
    if how.top_k is not None:
        logits = jnp.where(logits >= jnp.sort(logits)[-how.top_k], logits, -jnp.inf)
    expected = np.asarray(jnp.exp(logits - logits.max()), np.float64)
    if how.top_p is not None:
        ordered = np.sort(expected / expected.sum())[::-1]
        kept = int(np.searchsorted(np.cumsum(ordered), how.top_p)) + 1
        assert 3 <= kept < len(expected)
        expected[expected / expected.sum() < ordered[kept - 1]] = 0
    expected *= n / expected.sum()
    counts = np.bincount(codes[:, 0], minlength=len(expected))
    # Cells that expect few are pooled, as the test asks for.
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    if expected[-1] < 1e-9:
        assert counts[-1] == 0
        expected, counts = expected[:-1], counts[:-1]
    freedom = len(expected) - 1
    chi_square = ((counts - expected) ** 2 / np.maximum(expected, 0.5)).sum()
    assert freedom >= 2
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_chunks_decode_to_the_same_picture(debug_model, alone):
    graphdef, params = debug_model.graphdef, debug_model.params
    whole = functional.vq_decode(graphdef, params, jnp.asarray(alone))
    for chunk in (1, 3, 4):
        got = decode_codes(graphdef, params, alone, chunk)
        assert got.shape == whole.shape
        np.testing.assert_allclose(got, whole, atol=1e-5)


def test_progress_counts_up_and_changes_nothing(debug_model, alone):
    seen = []
    codes = draw(debug_model, [APPLE], 4, progress=lambda *report: seen.append(report))[0]
    np.testing.assert_array_equal(codes, alone)
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {codes.size}
    assert list(done) == sorted(set(done))
    assert done[-1] == codes.size
    assert len(done) > 4


def test_a_second_prompt_of_like_length_compiles_nothing(debug_model):
    draw(debug_model, ["a cup of tea"])
    sizes = [f._cache_size() for f in (image.begin, image.advance, image.pictures)]
    draw(debug_model, ["a blue hat"], cfg=3.0, how=Sampling(np.float32(0.5)))
    assert [f._cache_size() for f in (image.begin, image.advance, image.pictures)] == sizes


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        ([], "prompts is"),
        (["a", " "], "prompt 2 of 2: the prompt is empty"),
        (["word " * 600], "prompt 1 of 1 is too long: .* allowed: at most 497"),
    ],
)
def test_unusable_prompts_are_named(debug_model, prompts, match):
    with pytest.raises(InputError, match=match):
        draw(debug_model, prompts)
