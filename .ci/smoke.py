"""A short check of an environment without pytest: numbers, sizes, one picture, one caption.

.ci/run uses it for the lane of versions that the full test run does not cover (current jax on a
newer Python). Prints one line a check; any failure is a traceback and exit status 1.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

NAME = "woman firefighter: medium skin tone"
# Published sizes in billions, to three decimals; tests/ checks the exact counts.
PARTS = ("LLM", "SigLIP", "adaptors and image head", "VQ")
PUBLISHED = {
    "janus-1.3b": (1.653, 0.304, 0.048, 0.072),
    "janus-pro-1b": (1.653, 0.304, 0.048, 0.072),
    "janus-pro-7b": (6.910, 0.304, 0.122, 0.072),
}


def check_import() -> str:
    import flax
    import jax

    import janus_jax

    assert callable(janus_jax.Janus.from_pretrained)
    return f"python {sys.version.split()[0]}, jax {jax.__version__}, flax {flax.__version__}"


def check_canary() -> str:
    from tests import test_canary

    names = [name for name in dir(test_canary) if name.startswith("test_")]
    for name in names:
        getattr(test_canary, name)()
    return f"{len(names)} right"


def check_parameter_counts() -> str:
    import math

    import jax
    from flax import nnx

    from janus_jax import functional
    from janus_jax.config import get_config

    totals = []
    for name, published in PUBLISHED.items():
        _, params = functional.abstract(get_config(name))
        sizes = {
            part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e9
            for part, tree in nnx.to_pure_dict(params).items()
        }
        total = sum(sizes.values())
        ours = [sizes.pop("llm"), sizes.pop("vision"), sizes.pop("vq")]
        ours.insert(2, sum(sizes.values()))
        for part, got, want in zip(PARTS, ours, published, strict=True):
            assert f"{got:.3f}" == f"{want:.3f}", f"{name}: {part}: {got} B, published {want} B"
        totals.append(f"{name} {total:.3f} B")
    return ", ".join(totals)


def _janus(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "janus_jax.cli.main", *arguments, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def check_picture_and_caption() -> str:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        [path] = _janus("generate", NAME, "--out", folder)["images"]
        drawn = time.monotonic()
        with Image.open(path) as image:
            low, high = image.convert("L").getextrema()
            assert image.width == image.height and low != high, "the picture is blank"
        text = _janus("chat", "What is this?", "--image", path)["text"]
        answered = time.monotonic()
    assert text.strip(), "the caption is empty"
    return f"{text!r}; picture {drawn - started:.1f} s, caption {answered - drawn:.1f} s"


def main() -> None:
    for check in (check_import, check_canary, check_parameter_counts, check_picture_and_caption):
        started = time.monotonic()
        result = check()
        name = check.__name__.removeprefix("check_").replace("_", " ")
        print(f"smoke: {name}: {result} ({time.monotonic() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
