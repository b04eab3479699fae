"""Answers over a mesh: those of one device, alone, in a conversation and in a batch."""

import jax
import numpy as np
import pytest

from janus_jax import Janus
from janus_jax.cli import main
from janus_jax.generate.batch import ChatRequest
from janus_jax.sharding import make_mesh, mesh_of

MESH = "fsdp=2,tensor=4"
QUESTION = "What is this?"


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Optimising the programs of two models takes most of the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def alone(debug_dir) -> Janus:
    return Janus.from_pretrained(debug_dir, dtype="float32")


@pytest.fixture(scope="module")
def spread(debug_dir) -> Janus:
    model = Janus.from_pretrained(
        debug_dir, dtype="float32", mesh=make_mesh({"fsdp": 2, "tensor": 4})
    )
    assert mesh_of(model.params) is not None
    return model


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def turns(model: Janus, picture) -> tuple[str, ...]:
    chat = model.start_chat(temperature=1.0, seed=4)
    return chat.ask(QUESTION, [picture], max_tokens=12), chat.ask("And that?", max_tokens=12)


@pytest.mark.slow
def test_a_conversation_over_a_mesh_is_that_of_one_device(alone, spread, picture):
    want = turns(alone, picture)
    assert turns(spread, picture) == want
    # The debug model's three heads cannot be parted, but its keys and values lie on the mesh.
    chat = spread.start_chat()
    chat.ask("hello", max_tokens=2)
    assert chat._kept is not None
    assert chat._kept.cache.k[0].sharding.num_devices == 8


@pytest.mark.slow
def test_a_batch_over_a_mesh_is_that_of_one_device(alone, spread, picture):
    requests = [ChatRequest(QUESTION, [picture], seed=1), ChatRequest("hello there", seed=2)]
    want = alone.chat_batch(requests, max_tokens=12, temperature=1.0)
    assert spread.chat_batch(requests, max_tokens=12, temperature=1.0) == want


@pytest.mark.slow
def test_the_command_spreads_its_model(alone, debug_dir, capsys):
    want = alone.chat(QUESTION, max_tokens=12)
    arguments = [QUESTION, "--model", str(debug_dir), "--max-tokens", "12", "--mesh", MESH]
    assert main.run(["chat", *arguments]) == 0
    assert capsys.readouterr().out.strip() == want
