"""Conversations over a mesh: the answers of one device, and no later turn compiles."""

import jax
import numpy as np
import pytest
from PIL import Image

from janus_jax import Janus
from janus_jax.cli import main
from janus_jax.generate.batch import ChatRequest
from janus_jax.generate.text import advance, extend
from janus_jax.sharding import make_mesh, parse_mesh


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """The programs run once; optimising them would take most of the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_a_mesh_answers_as_one_device(debug_dir):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)

    def answers(mesh):
        model = Janus.from_pretrained(debug_dir, dtype="float32", mesh=mesh)
        chat = model.start_chat("S" * 40, temperature=1.0, top_k=50, seed=15)
        said = [chat.ask("What?", [picture], max_tokens=12), chat.ask("hello", max_tokens=12)]
        sizes = extend._cache_size(), advance._cache_size()
        said.append(chat.ask("And now?", max_tokens=12))
        assert (extend._cache_size(), advance._cache_size()) == sizes
        requests = [ChatRequest("What?", [picture]), ChatRequest("Tell me more of it", system="S")]
        return said, [result.text for result in model.chat_batch(requests, max_tokens=12)]

    assert answers(make_mesh(parse_mesh("fsdp=2,tensor=4"), jax.devices())) == answers(None)


@pytest.mark.slow
def test_the_command_spreads_its_model(debug_dir, capsys):
    want = Janus.from_pretrained(debug_dir).chat("hello", max_tokens=12)
    flags = ["--model", str(debug_dir), "--max-tokens", "12", "--mesh", "fsdp=2,tensor=4"]
    assert main.run(["chat", "hello", *flags]) == 0
    assert capsys.readouterr().out.strip() == want
