"""The planner against XLA's own accounts, and what is refused by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import Janus, functional, memory
from janus_jax.config import EMOJI, JANUS_PRO_1B, JANUS_PRO_7B, JanusConfig
from janus_jax.errors import InputError
from janus_jax.generate import text
from janus_jax.generate.image import DrawState, advance, begin, pictures
from janus_jax.generate.sampling import Sampling
from janus_jax.nn.cache import KVCache, whole_slots

LENGTH = 32


def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def state(config: JanusConfig, n: int) -> DrawState:
    rows, slots = 2 * n, whole_slots(LENGTH + config.num_image_tokens - 1)
    llm = config.llm
    layers = (jnp.zeros((rows, llm.num_kv_heads, slots, llm.head_dim)),) * llm.depth
    return DrawState(
        KVCache(layers, layers, jnp.zeros((rows, slots), bool), jnp.int32(0)),
        jnp.zeros((n, config.num_image_tokens), jnp.int32),
        jnp.int32(0),
        jnp.zeros(rows, jnp.int32),
        jax.random.split(jax.random.key(0), n),
    )


# The published 1B with two layers, so that it compiles in seconds: the sums go by layers.
WIDE = dataclasses.replace(
    JANUS_PRO_1B,
    name="janus-pro-1b, two layers",
    vision=dataclasses.replace(JANUS_PRO_1B.vision, depth=1),
    llm=dataclasses.replace(JANUS_PRO_1B.llm, depth=2),
)
HOW = Sampling(np.float32(1.0), None, None)


@pytest.fixture(scope="module", params=[EMOJI, WIDE], ids=["emoji", "1b wide"])
def model(request):
    graphdef, params = functional.abstract(request.param)
    return request.param, graphdef, params, memory.param_bytes(params)


@pytest.mark.parametrize("n", [1, 4])
def test_a_step_takes_what_the_compiler_says(model, n: int):
    config, graphdef, params, weights = model
    leaves, tree = jax.tree.flatten(state(config, n))

    # Lowering makes a state of descriptions, which the type checks of the tests would refuse.
    def step(params, leaves):
        given = jax.tree.unflatten(tree, leaves)
        return advance.__wrapped__(graphdef, params, given, 9, jnp.float32(5), HOW)

    program = jax.jit(step, donate_argnums=1).lower(params, leaves)
    compiled = program.compile().memory_analysis()
    need = memory.drawing(config, weights, n, LENGTH, itemsize=4)
    # Every cache is updated in place: what comes out is what went in.
    assert compiled.alias_size_in_bytes == pytest.approx(need.cache, rel=0.01)
    assert compiled.output_size_in_bytes - compiled.alias_size_in_bytes < 1000
    # No cache is copied or turned around: what a token takes is its logits, a few times over.
    logits = 4 * 2 * n * config.vq.codebook_size * 4
    assert compiled.temp_size_in_bytes == pytest.approx(logits, rel=0.35)
    assert logits < need.step


@pytest.mark.parametrize("prompts", [1, 4])
def test_prompts_take_what_the_compiler_says(model, prompts: int):
    config, graphdef, params, weights = model

    def start(params):
        return begin.__wrapped__(
            graphdef,
            params,
            jnp.zeros((prompts, 2, LENGTH), jnp.int32),
            jnp.ones((prompts, LENGTH), bool),
            jnp.zeros((prompts, LENGTH), jnp.int32),
            jnp.arange(4) % prompts,
            (jnp.uint32(0), jnp.zeros((4, 2), jnp.uint32), jnp.arange(4)),
            jnp.float32(5),
            HOW,
            num_codes=config.num_image_tokens,
        )

    compiled = jax.jit(start).lower(params).compile().memory_analysis()
    need = memory.drawing(config, weights, 4, LENGTH, itemsize=4, prompts=prompts)
    assert compiled.output_size_in_bytes == pytest.approx(need.cache, rel=0.01)
    assert need.prefill < compiled.temp_size_in_bytes < 1.05 * (need.prefill + need.step)


only_wide = pytest.mark.parametrize("model", [WIDE], indirect=True, ids=["1b wide"])


@only_wide
@pytest.mark.parametrize("pictures", [0, 8])
def test_questions_take_what_the_compiler_says(model, pictures: int):
    config, graphdef, params, weights = model
    rows, length, slots = 4, 128, 640
    side, ints = config.vision.image_size, shape(rows, length, dtype=jnp.int32)
    program = text.begin.lower(
        graphdef,
        params,
        ints,
        shape(rows, length, dtype=jnp.bool),
        ints,
        shape(pictures, side, side, 3) if pictures else None,
        ints if pictures else None,
        (np.zeros(rows, np.uint32), np.zeros((rows, 2), np.uint32), np.zeros(rows, np.int32)),
        np.int32(0),
        HOW,
        slots=slots,
    )
    compiled = program.compile().memory_analysis()
    need = memory.answering(config, weights, rows, pictures, length, slots, itemsize=4)
    assert compiled.output_size_in_bytes == pytest.approx(need.cache, rel=0.01)
    pixels = pictures * side**2 * 3 * 4
    assert 1.0 <= (need.prefill - pixels) / compiled.temp_size_in_bytes < 1.25


@only_wide
def test_a_token_of_an_answer_takes_what_the_compiler_says(model):
    config, graphdef, params, weights = model
    llm, rows, slots = config.llm, 4, 640
    ints, keys = jnp.zeros(rows, jnp.int32), jax.random.split(jax.random.key(0), rows)
    cache = KVCache.empty(llm.depth, rows, slots, llm.num_kv_heads, llm.head_dim, jnp.float32)
    given = text.ChatState(cache, ints, ints, jnp.int32(0), ints > 0, keys)
    leaves, tree = jax.tree.flatten(given)

    def step(params, leaves):
        given = jax.tree.unflatten(tree, leaves)
        return text.advance.__wrapped__(graphdef, params, given, 9, 0, HOW)

    program = jax.jit(step, donate_argnums=1).lower(params, leaves)
    compiled = program.compile().memory_analysis()
    need = memory.answering(config, weights, rows, 0, 128, slots, itemsize=4)
    assert compiled.alias_size_in_bytes == pytest.approx(need.cache, rel=0.01)
    assert 1.0 <= need.step / compiled.temp_size_in_bytes < 1.25


def test_decoding_takes_what_the_compiler_says(model):
    config, graphdef, params, weights = model
    program = pictures.lower(graphdef, params, shape(1, config.num_image_tokens, dtype=jnp.int32))
    compiled = program.compile().memory_analysis()
    need = memory.drawing(config, weights, 1, LENGTH, itemsize=4)
    assert compiled.temp_size_in_bytes == pytest.approx(need.decode, rel=0.1)


def test_the_sum_by_hand():
    # Two rows, 608 slots (607 are used), 30 layers of 32 heads of 128, keys and values, two bytes.
    need = memory.drawing(JANUS_PRO_7B, 14_816_000_000, 1, 32, itemsize=2)
    layer = 2 * 2 * 608 * 32 * 128 * 2
    assert (need.cache, need.step) == (30 * layer, layer + 4 * 2 * 16384 * 4)
    assert need.decode == 3 * 384 * 384 * 128 * 4
    assert need.total == need.weights + need.cache + need.step
    assert need.prefill == 0
    eight = memory.drawing(JANUS_PRO_7B, 0, 8, 32, itemsize=2, prompts=8)
    assert eight.prefill == eight.cache // 2 == 8 * need.cache // 2


@pytest.mark.parametrize(
    ("mesh", "share"),
    [
        ({"fsdp": 2}, 2),
        ({"fsdp": 8}, 1),  # two rows do not divide over eight devices
        ({"tensor": 4}, 4),
        ({"fsdp": 2, "tensor": 4}, 8),
        ({"data": 2, "fsdp": 2}, 1),
        ({"sequence": 8}, 1),
    ],
)
def test_a_mesh_shares_what_divides(mesh: dict[str, int], share: int):
    whole = memory.drawing(JANUS_PRO_7B, 0, 1, 32, itemsize=2)
    assert memory.drawing(JANUS_PRO_7B, 0, 1, 32, itemsize=2, mesh=mesh).cache == (
        whole.cache // share
    )


def test_the_largest_batch_is_the_largest():
    def fits(free: float, most: int = 16) -> int:
        return memory.largest_batch(
            JANUS_PRO_7B, 14_816_000_000, 32, int(free), itemsize=2, most=most
        )

    assert fits(14.9e9) == 0
    batch = fits(16e9)
    for n, expected in ((batch, True), (batch + 1, False)):
        need = memory.drawing(JANUS_PRO_7B, 14_816_000_000, n, 32, itemsize=2)
        assert (need.total <= 16e9) is expected
    assert fits(100e9) == 16


def test_too_many_pictures_are_refused_with_the_number_that_fits(debug_dir, monkeypatch):
    model = Janus.from_pretrained(debug_dir, dtype="float32")
    weights = memory.param_bytes(model.params)
    two = memory.drawing(model.config, weights, 2, LENGTH, itemsize=4).total
    monkeypatch.setenv("JANUS_JAX_MEMORY_GB", str((two + 10) / 1e9))
    with pytest.raises(InputError, match=r"drawing 3 pictures at once takes .* at most 2 at once"):
        model.generate_codes(["a red apple"], 3, at_once=3)
    # Two are all that there are to draw.
    model.generate_codes(["a red apple"], 2, at_once=3)
    # Left to itself it draws two at a time, and the pictures are the same.
    codes = model.generate_codes(["a red apple"], 3)
    monkeypatch.delenv("JANUS_JAX_MEMORY_GB")
    np.testing.assert_array_equal(model.generate_codes(["a red apple"], 3), codes)
    monkeypatch.setenv("JANUS_JAX_MEMORY_GB", str(weights / 1e9))
    with pytest.raises(InputError, match=r"drawing 1 picture at once takes .*narrower dtype"):
        model.generate_codes(["a red apple"])


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setenv("JANUS_JAX_MEMORY_GB", "0.01")
    with pytest.raises(InputError, match=r"model 'emoji' takes 0.03 GB on a device, 0.01 GB are"):
        Janus.from_pretrained("emoji", dtype="float32")
    monkeypatch.setenv("JANUS_JAX_MEMORY_GB", "much")
    with pytest.raises(InputError, match="JANUS_JAX_MEMORY_GB is 'much'"):
        Janus.from_pretrained("emoji", dtype="float32")
