import subprocess
import sys
from pathlib import Path

import pytest

from janus_jax.cache import cache_root

PROGRAM = """
import jax, janus_jax.cache
print(janus_jax.cache.enable_compile_cache())
jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready()
"""


def test_the_folder_is_chosen_in_the_documented_order(tmp_path: Path):
    own = {"JANUS_JAX_CACHE_DIR": str(tmp_path / "own"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    assert cache_root(own) == tmp_path / "own"
    del own["JANUS_JAX_CACHE_DIR"]
    assert cache_root(own) == tmp_path / "xdg" / "janus-jax"
    assert cache_root({}).name == "janus-jax"
    assert cache_root({}).is_absolute()


def _python(tmp_path: Path, **environ: str) -> tuple[str, str]:
    base = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **environ}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=base, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


def test_even_a_small_program_is_kept_and_found_again(tmp_path: Path):
    folder, _ = _python(tmp_path, JANUS_JAX_CACHE_DIR=str(tmp_path / "c"))
    assert Path(folder).is_relative_to(tmp_path / "c" / "xla")
    kept = {p.name for p in Path(folder).iterdir() if p.name.endswith("-cache")}
    assert kept
    _, log = _python(
        tmp_path, JANUS_JAX_CACHE_DIR=str(tmp_path / "c"), JAX_EXPLAIN_CACHE_MISSES="true"
    )
    assert {p.name for p in Path(folder).iterdir() if p.name.endswith("-cache")} == kept, log


def test_a_cache_chosen_by_the_user_is_left_alone(tmp_path: Path):
    folder, _ = _python(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert folder == str(tmp_path / "mine")


@pytest.mark.parametrize("word", ["off", "0", "NONE"])
def test_it_can_be_turned_off(tmp_path: Path, word: str):
    folder, _ = _python(tmp_path, JANUS_JAX_COMPILE_CACHE=word)
    assert folder == "None"
    assert not any(tmp_path.rglob("*-cache"))


def test_an_unusable_folder_warns_and_runs_on(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    folder, log = _python(tmp_path, JANUS_JAX_CACHE_DIR=str(tmp_path / "file"))
    assert folder == "None"
    assert "JANUS_JAX_CACHE_DIR" in log
