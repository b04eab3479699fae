"""Settings that must hold before JAX starts, for every test.

- Eight CPU devices, so that sharding is tested on any machine, and threads for them.
- CPU unless JAX_PLATFORMS says otherwise, with float32 products in float32 on accelerators too.
- Compiled programs are kept in .cache/ (ignored by git): a second run compiles nothing.
- Types in the signatures of the model's core, shapes among them where they are written, are checked
  on every call; JANUS_JAX_TYPECHECK=0 turns that off.
"""

import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A test that wants the user's cache folder must never get the real one.
ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
os.environ["JANUS_JAX_CACHE_DIR"] = str(CACHE / "janus-jax")
# No test may reach the network; a download that is attempted fails at once instead of hanging.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As in janus_jax/cli/main.py: programs from the cache come with pages of harmless remarks.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two thread pools of two threads each on two cores slow one another down.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell that starts a command in the background has it ignore Ctrl-C, and all its children too;
# some tests are about Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "float32")

import janus_jax.cache  # noqa: E402
from janus_jax.cpu_threads import enough_cpu_threads  # noqa: E402

janus_jax.cache.enable_compile_cache()
enough_cpu_threads(8)

if os.environ.get("JANUS_JAX_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    import tests.typecheck  # noqa: F401  (the hook only looks the name up)

    # The core only: what stands at the border (processing, the API, the command line) takes
    # anything and refuses it with an InputError, which its tests must reach.
    install_import_hook(
        [
            "janus_jax.models",
            "janus_jax.nn",
            "janus_jax.functional",
            "janus_jax.generate.image",
            "janus_jax.generate.sampling",
            "janus_jax.generate.text",
        ],
        "tests.typecheck.check",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the canary first: where the backend computes wrongly, nothing else means a thing."""
    items.sort(key=lambda item: item.path.name != "test_canary.py")


@pytest.fixture(scope="session")
def debug_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of the `debug` architecture with random weights; not to be changed."""
    from tests import debug_model

    path = tmp_path_factory.mktemp("models") / "debug"
    debug_model.write(path)
    return path


@pytest.fixture(scope="session")
def debug_model(debug_dir: Path):
    """The same, loaded in float32."""
    from tests import debug_model

    return debug_model.load(debug_dir)
