"""Does this backend compute right numbers at all? Runs before everything else.

jax 0.10.2 returns silently wrong results on CPU: the later rows of a vmapped matrix-vector product
that is then reduced (jax issue 39103), and, on some processors, arctan of 50 elements or more
(jax issue 39352). The version pins avoid it; these tests notice when a resolver, or a new release,
brings it back. Under jax 0.10.2 the first three fail, at 32,769 rows of 3; its arctan was right on
the AVX-512 machine this was tried on.

No pytest in here: .ci/smoke.py runs the same functions in an environment without it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Up to just past the sizes at which the broken release goes wrong (32,769 rows in float32).
ROWS = (1, 7, 64, 1000, 4096, 16_385, 32_769, 65_537)
WIDTHS = (2, 3, 4, 8, 17)


def _row_energy(matrix, rows):
    return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)


def test_vmapped_matvec_then_reduction_on_integers():
    # Row i is (i, 0, 0), so its energy is i squared, with one rounding of float32 at most.
    for count in ROWS:
        index = np.arange(count, dtype=np.float32)
        rows = np.stack([index, np.zeros_like(index), np.zeros_like(index)], axis=1)
        got = np.asarray(jax.jit(_row_energy)(np.eye(3, dtype=np.float32), rows))
        want = index.astype(np.float64) ** 2
        np.testing.assert_allclose(got, want, rtol=2e-7, err_msg=f"{count} rows")


def test_vmapped_matvec_then_reduction_for_many_shapes():
    rng = np.random.default_rng(0)
    for count in (33, 1000, 16_385, 32_769):
        for width in WIDTHS:
            matrix = rng.standard_normal((width, width)).astype(np.float32)
            rows = rng.standard_normal((count, width)).astype(np.float32)
            got = np.asarray(jax.jit(_row_energy)(matrix, rows))
            want = ((rows.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2).sum(axis=1)
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4, err_msg=f"{count}x{width}")


def test_jit_agrees_with_eager():
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((3, 3)).astype(np.float32)
    rows = rng.standard_normal((32_769, 3)).astype(np.float32)
    eager = np.asarray(_row_energy(matrix, rows))
    np.testing.assert_allclose(np.asarray(jax.jit(_row_energy)(matrix, rows)), eager, rtol=1e-5)


def test_arctan_at_every_length_around_a_vector_register():
    for count in (1, 8, 31, 32, 33, 49, 50, 51, 64, 100, 200, 1000):
        x = np.linspace(-5.0, 5.0, count, dtype=np.float32)
        want = [math.atan(value) for value in x.tolist()]
        np.testing.assert_allclose(np.asarray(jnp.arctan(x)), want, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(np.asarray(jax.jit(jnp.arctan)(x)), want, rtol=2e-6, atol=1e-7)
