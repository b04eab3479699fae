"""Chunked cross-entropy against the plain one, and the buffers of its compiled program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.objectives.chunked import cross_entropy

# Targets of two groups; each group's 19 are made in two chunks of 10.
GROUPS, A, D, V, CHUNK = 2, 38, 8, 96, 10


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.standard_normal((A, D), np.float32))
    kernel = jnp.asarray(rng.standard_normal((D, V), np.float32))
    return states, kernel, jnp.asarray(rng.integers(0, V, A, np.int32))


def mean(chunk):
    def loss(states, kernel, targets):
        losses = cross_entropy(
            lambda h: h @ kernel, states.reshape(GROUPS, -1, D), targets, chunk=chunk
        )
        return jnp.mean(losses * jnp.arange(A)), losses

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def test_losses_and_gradients_are_the_plain_ones(arrays):
    states, kernel, targets = arrays
    (_, losses), gradients = mean(CHUNK)(*arrays)
    logits = np.asarray(states, np.float64) @ np.asarray(kernel, np.float64)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses, -scores[np.arange(A), targets], rtol=1e-5)
    # d loss / d logits of softmax cross-entropy, weighted as above.
    slope = (np.exp(scores) - np.eye(V)[targets]) * (np.arange(A) / A)[:, None]
    np.testing.assert_allclose(gradients[0], slope @ kernel.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[1], states.T @ slope, rtol=1e-5, atol=1e-5)


def largest(arrays, chunk) -> int:
    """Positions of the largest buffer with the vocabulary as a dimension, in the whole program."""
    text = mean(chunk).lower(*arrays).compile().as_text()
    found = re.findall(r"f32\[([\d,]+)\]", text or "")
    shapes = [tuple(map(int, dims.split(","))) for dims in found]
    return max(int(np.prod(shape)) // V for shape in shapes if V in shape)


def test_the_compiled_step_holds_no_logits_of_all_positions(arrays):
    # The kernel itself is [D, V] and its gradient's sum too: D is below the chunk.
    assert largest(arrays, CHUNK) == GROUPS * CHUNK
    # The same reading finds them where nothing is chunked.
    assert largest(arrays, A) == A
