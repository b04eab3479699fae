"""Measures the emoji model and draws its gallery.

    python bench/emoji.py --json
    python bench/emoji.py --model runs/emoji-stage3/model --train-samples 500

About three minutes on two free cores. The result is the same on every run of one machine. With
--json it is one JSON object on stdout; everything else goes to stderr. Needs the extra
`emoji-data`.

Records: 3,546 of training; 210 held out, combinations of role, gender and tone (and a few shapes
and clocks) that training has never shown, of parts that it has; 185 of concepts left out whole,
which are expected to fail (`train/data/split.py`). Shares go from 0 to 1. `<key>_chance` is what
the score would be without looking.

Captions. The model answers "What is this?" about a picture, the likeliest token each time.
- `caption_exact_train`, `caption_exact_heldout`, `caption_exact_concept`: the answer is an English
  name of the picture, letter for letter. Pictures that repeat have several names, and any is right.
  Chance: a guess among the distinct names of training, one in 3,546 (a held-out name is none of
  them, so whoever guesses among those is always wrong on held-out pictures).
- `caption_zh_exact_heldout`: the same in Chinese, "这是什么？".
- `role_heldout`, `gender_heldout`, `tone_heldout`: what `parse_name` reads in the caption is what
  it reads in the name, over the held-out records that have the attribute (`n_role_heldout` and so
  on). Chance: always answering the commonest value of training.
- `questions_heldout`: the English questions about held-out pictures ("What skin tone?", "Is it
  food?"), exact answers. Chance: the commonest answer of training to each question.

Drawings. One picture a prompt, English names, guidance 5, temperature 1, as `janus-jax generate`
draws them. The rank of the true picture is its place among all 3,941 pictures in order of the mean
squared RGB error at the model's image size. Pictures with equal pixels share a rank.
- `top5_train`: rank 5 or better, all training prompts (or --train-samples of them), seed 0.
- `top5_heldout`: the same of held-out prompts, mean over the seeds; `top5_heldout_by_seed` has each
  and `top5_heldout_std` their standard deviation. Chance: 5 in 3,941.
- `top1_train`, `top1_heldout`: rank 1. `median_rank_train`, `median_rank_heldout`: the middle rank.
- `top5_heldout_no_guidance`, `top5_concept`: guidance 1; concepts left out. Seed 0.
- `top5_shuffled`: the control. The drawings of held-out and training prompts, seed 0, are ranked
  against the pictures of other records: a fixed random permutation that maps no record to one of
  its own family (all genders and tones of a role, all tones of a hand, all shapes, all clocks,
  and whatever shares a picture), because those are near-duplicates. `top5_shuffled_heldout`: the
  same within held-out prompts alone, all seeds; nearly all are people, so it is the harder one.
- `top5_heldout_copy`: what a copy would score that knew the true picture and drew the nearest
  training picture instead. Near-duplicates make it high: read `top5_heldout` beside it, and
- `closer_than_training_heldout`: the share of drawings nearer to the true picture, which was never
  trained on, than to any training picture. No copy can score here.

VQ tokenizer, the ceiling of all drawings.
- `vq_psnr_db`, `vq_psnr_train_db`: mean PSNR of reconstructed held-out and training pictures, as
  bytes.
- `top5_heldout_vq`, `closer_than_training_heldout_vq`: those two if every code were right.

`gallery`: a PNG of the first 64 held-out prompts in the order of the frozen list, never chosen:
the drawing of seed 0, the true picture, and the training picture nearest to the drawing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Python puts the script's own folder first, where `emoji` would be this file.
    sys.path[0] = str(ROOT)

from janus_jax.errors import InputError  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit status: 0 done, 2 unusable arguments, model or data set.
    """
    parser = argparse.ArgumentParser(
        description="Measures the emoji model and draws its gallery; see the top of the file for "
        "what each score means."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--model", default="emoji", help="a shipped name or a model directory")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each held-out prompt")
    parser.add_argument(
        "--train-samples", type=int, metavar="N", help="draw N training prompts (default: all)"
    )
    parser.add_argument(
        "--gallery", type=Path, default=Path("runs/emoji-gallery.png"), help="PNG to write"
    )
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        check_options(options.seeds, options.train_samples, options.gallery)
        from janus_jax.cache import enable_compile_cache

        enable_compile_cache()
        from bench.emoji_evaluate import Selection, evaluate
        from janus_jax import Janus

        scores = evaluate(
            Janus.from_pretrained(options.model),
            Selection.full(options.train_samples),
            seeds=options.seeds,
            gallery=options.gallery,
            stage=stage,
        )
    except InputError as error:
        print(f"bench/emoji.py: error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(scores, ensure_ascii=False))
    else:
        print_table(scores)
    return 0


def check_options(seeds: int, train_samples: int | None, gallery: Path) -> None:
    """Refuses options that cannot work, before anything is computed.

    Raises:
        InputError: Naming the flag, its value and what is allowed.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}", "1 or more")
    if train_samples is not None and train_samples < 1:
        raise InputError(f"--train-samples {train_samples}", "1 or more")
    if gallery.suffix.lower() != ".png":
        raise InputError(f"--gallery {str(gallery)!r}", "a file name that ends in .png")


@contextmanager
def stage(label: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a stage on stderr: a bar on a terminal, else one line when it is done."""
    began = time.perf_counter()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
    else:
        yield lambda done, total: None
    print(f"{label}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


def print_table(scores: dict[str, Any]) -> None:
    """Prints scores with their chance levels beside them, for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table("score", "value", "chance")
    for key, value in scores.items():
        if not key.endswith("_chance"):
            table.add_row(key, _shown(value), _shown(scores.get(f"{key}_chance", "")))
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
