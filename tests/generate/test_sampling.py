import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.generate.sampling import (
    Sampling,
    bucket_length,
    guide,
    keep_top_k,
    keep_top_p,
    prompt_digest,
    row_keys,
    sample,
)
from janus_jax.generate.settings import check_settings

NONE = -np.inf


def logits_of(*probabilities: float) -> jax.Array:
    return jnp.log(jnp.asarray([probabilities]))


def kept(filtered: jax.Array) -> list[bool]:
    return np.isfinite(np.asarray(filtered))[0].tolist()


def keys(n: int) -> jax.Array:
    digests = jnp.broadcast_to(prompt_digest("a"), (n, 2))
    return row_keys(jnp.uint32(0), digests, jnp.arange(n))


def test_guidance_is_the_reference_formula():
    c, u = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[3.0, 1.0]])
    np.testing.assert_array_equal(guide(c, u, jnp.float32(5)), [[-7.0, 6.0]])
    np.testing.assert_array_equal(guide(c, u, jnp.float32(1)), c)
    np.testing.assert_array_equal(guide(c, u, jnp.float32(0)), u)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [NONE, 3.0, NONE, NONE]),
        (2, [2.0, 3.0, 2.0, NONE]),  # the second place is shared
        (3, [2.0, 3.0, 2.0, NONE]),
        (4, [2.0, 3.0, 2.0, 1.0]),
        (9, [2.0, 3.0, 2.0, 1.0]),
    ],
)
def test_top_k(k, expected):
    np.testing.assert_array_equal(keep_top_k(jnp.asarray([[2.0, 3.0, 2.0, 1.0]]), k), [expected])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [False, True, False, False]),
        (0.49, [False, True, False, False]),
        (0.51, [True, True, False, False]),
        (0.79, [True, True, False, False]),
        (0.81, [True, True, False, True]),
        (0.96, [True, True, True, True]),
        (1.0, [True, True, True, True]),
    ],
)
def test_top_p(p, expected):
    assert kept(keep_top_p(logits_of(0.3, 0.5, 0.05, 0.15), p)) == expected


def test_filters_work_on_each_row_alone():
    rows = jnp.asarray([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    np.testing.assert_array_equal(keep_top_k(rows, 1), [[NONE, NONE, 3.0], [3.0, NONE, NONE]])
    np.testing.assert_array_equal(keep_top_p(rows, 0.5), [[NONE, NONE, 3.0], [3.0, NONE, NONE]])


def test_temperature_zero_takes_the_likeliest_and_the_filters_change_nothing():
    rows = jnp.asarray([[1.0, 2.0, 1.5], [9.0, 2.0, 9.0]])
    for how in (Sampling(0.0), Sampling(0.0, top_k=2, top_p=0.9)):
        np.testing.assert_array_equal(sample(keys(2), jnp.int32(3), rows, how), [1, 0])


def test_a_row_draws_the_same_wherever_it_stands():
    rows = jax.random.normal(jax.random.key(1), (5, 64))
    together = sample(keys(5), jnp.int32(7), rows, Sampling(1.0))
    for i in range(5):
        alone = sample(keys(5)[i : i + 1], jnp.int32(7), rows[i : i + 1], Sampling(1.0))
        assert alone[0] == together[i]


def test_keys_differ_by_seed_prompt_picture_and_step():
    def draws(seed: int, text: str, index: int, step: int) -> tuple[int, ...]:
        key = row_keys(
            jnp.uint32(seed), jnp.asarray(prompt_digest(text)[None]), jnp.asarray([index])
        )
        flat = jnp.zeros((1, 1 << 20))
        return tuple(np.asarray(sample(key, jnp.int32(step), flat, Sampling(1.0))).tolist())

    different = {draws(0, "a", 0, 0), draws(1, "a", 0, 0), draws(0, "b", 0, 0)}
    different |= {draws(0, "a", 1, 0), draws(0, "a", 0, 1)}
    assert len(different) == 5
    assert draws(2**32 - 1, "a", 0, 0) == draws(2**32 - 1, " a\n", 0, 0)


def test_the_digest_of_a_prompt_is_fixed_for_ever():
    # A change here changes every picture that anyone has ever drawn with a seed.
    np.testing.assert_array_equal(prompt_digest("a red apple"), DIGEST)
    assert prompt_digest("a red apple").dtype == np.uint32


DIGEST = [2051786688, 4141750672]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Sampling(1.0), [0.1, 0.2, 0.3, 0.4]),
        (Sampling(0.5), [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (Sampling(1.0, top_k=2), [0.0, 0.0, 3 / 7, 4 / 7]),
        (Sampling(1.0, top_p=0.75), [0.0, 2 / 9, 3 / 9, 4 / 9]),
        (Sampling(1.0, top_k=3, top_p=0.5), [0.0, 0.0, 3 / 7, 4 / 7]),
    ],
)
def test_frequencies_are_the_probabilities(how, expected):
    n = 20_000
    rows = jnp.broadcast_to(logits_of(0.1, 0.2, 0.3, 0.4), (n, 4))
    drawn = np.bincount(np.asarray(sample(keys(n), jnp.int32(0), rows, how)), minlength=4)
    expected = np.asarray(expected) * n
    assert (drawn[expected == 0] == 0).all()
    some = expected > 0
    chi_square = (((drawn - expected) ** 2)[some] / expected[some]).sum()
    assert chi_square < 21.1  # 99.99th percentile for 3 degrees of freedom


def test_few_prompt_lengths():
    assert [bucket_length(n) for n in (1, 32, 33, 64, 65, 128, 129, 600)] == [
        32,
        32,
        64,
        64,
        128,
        128,
        256,
        640,
    ]


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("n", [0, -1, 1.0, True, "1", None, 10_001, np.float32(1)], [1, 16, np.int8(16)]),
        ("cfg", [-0.1, np.float32("nan"), float("inf"), 101, None], [0, 1, 5.0, np.float32(5)]),
        ("temperature", [-1.0, float("nan"), "hot"], [0, 0.7]),
        ("top_k", [0, -3, 1.5], [None, 1, 10**6]),
        ("top_p", [0, 1.1, -0.5, float("nan")], [None, 0.01, 1, np.float64(0.5)]),
        ("seed", [-1, 2**32, 0.5], [0, 2**32 - 1, np.uint8(3)]),
        ("max_tokens", [0, -1], [1, 512]),
    ],
)
def test_settings_out_of_range_are_named(name, bad, good):
    for value in bad:
        with pytest.raises(InputError, match=f"^{name} is .*allowed: "):
            check_settings(**{name: value})
        with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} is "):
            check_settings(flags=True, **{name: value})
    for value in good:
        check_settings(**{name: value})
