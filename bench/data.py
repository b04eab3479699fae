"""How fast training data is prepared, and what a large data set costs before and during a run.

    python bench/data.py --json

Three parts. Pictures: JPEG files of mixed sizes, drawn at run time, become packed rows by the path
that is pixel-equal to the reference, by the fast path, and the float32 array of a batch by the
image processor of transformers (its Pillow version, on the same files), in turn, in one thread; its
seconds of CPU are counted, which is what a core gives. The processor is called on a whole batch, as
its interface offers, and once more picture by picture, as loaders call it
(`exact_path_ratio_one_by_one`). Mixture: a million records of three kinds in two data sets: how
exactly the weights are kept over 1,000 steps of ten samples, and how long a start takes once the
lengths are known (`startup_seconds`): as many samples as fill 512 rows are found, and the shapes of
the step from its first 64 layouts over 64 devices in 4 micro-steps. Memory: the growth of the
resident set over 10,000 batches of that mixture.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` would be bench/convert.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.measure import summary
from janus_jax.processing.image import ImageSettings, load_image, understanding_canvas
from janus_jax.processing.prompt import JANUS_PRO, UNDERSTANDING_SYSTEM_PROMPT
from janus_jax.processing.settings import ProcessorConfig
from janus_jax.processing.tokenizer import Tokenizer, train_bpe
from train.data.batches import PackedBatches
from train.data.packing import Kind, PackedShape, fit, pack
from train.data.prefetch import prefetch
from train.data.record_source import RecordSource, open_source
from train.data.records.prepare import Preparation
from train.data.records.record import Record
from train.data.records.shards import ShardWriter, begin, write_manifest

SIZES = ((640, 480), (480, 640), (800, 600), (1024, 768), (768, 1024), (1280, 853), (2000, 1500))
SIDE, IMAGE_TOKENS, LENGTH = 384, 576, 4096
PER_STEP: dict[Kind, int] = {"understanding": 5, "text": 1, "generation": 4}
ROWS, GROUPS, ACCUMULATE = 512, 64, 4
SMALL_SIDE, SMALL_TOKENS, CODES = 16, 4, 64
QUESTION, ANSWER = "What is in the picture?", "A field of soft colours."


def tokenizer() -> Tokenizer:
    """A small vocabulary of the texts below."""
    return train_bpe([QUESTION, ANSWER, "number 0123456789"], 400)


def jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG file of smooth noise with some grain, about as large as a photograph's."""
    width, height = size
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 4, (height, width, 1))
    pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_pictures(folder: Path, count: int, seed: int) -> list[Path]:
    """Writes `count` files; sizes take turns."""
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i:03d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(jpeg(rng, SIZES[i % len(SIZES)]))
    return paths


def packed(paths: Sequence[Path], preparation: Preparation) -> dict[str, Any]:
    """Files to packed rows, as a training step takes them."""
    turns = (("user", QUESTION), ("assistant", ANSWER))
    samples = [
        preparation.sample(Record(p.name, "understanding", (p.read_bytes(),), turns=turns))
        for p in paths
    ]
    rows = fit([s.length for s in samples], LENGTH)
    targets = sum(int(s.answer.sum()) for s in samples)  # type: ignore[union-attr]
    shape = PackedShape(len(rows), LENGTH, len(samples), SIDE, IMAGE_TOKENS, 0, targets)
    placed = [[(i, samples[i]) for i in row] for row in rows]
    return pack(placed, shape, ("understanding",))


def measure_pictures(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Images a second of our two paths and of the peer, and how far the fast path is off."""
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    paths = write_pictures(folder, count, seed=0)
    processor = ProcessorConfig(ImageSettings(SIDE), JANUS_PRO, UNDERSTANDING_SYSTEM_PROMPT)
    exact = Preparation(tokenizer(), processor, IMAGE_TOKENS, CODES)
    fast = Preparation(tokenizer(), processor, IMAGE_TOKENS, CODES, fast_decode=True)
    peer = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def opened(path: Path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    def theirs(pictures: list[Image.Image]) -> np.ndarray:
        return np.asarray(peer(pictures, return_tensors="np")["pixel_values"])

    def one_by_one() -> np.ndarray:
        batch = np.empty((count, 3, SIDE, SIDE), np.float32)
        for i, path in enumerate(paths):
            batch[i] = theirs([opened(path)])[0]
        return batch

    runs: dict[str, Callable[[], Any]] = {
        "exact": lambda: packed(paths, exact),
        "fast": lambda: packed(paths, fast),
        "peer": lambda: theirs([opened(path) for path in paths]),
        "peer_one_by_one": one_by_one,
    }
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):  # in turn: a slow spell of the machine hits them all
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    middle = {name: statistics.median(values) for name, values in times.items()}
    errors, equal = [], True
    rounding = ImageSettings(SIDE, resize="hf")  # the peer's rule for the shorter side
    for path in paths:
        whole = understanding_canvas(load_image(path), processor.image).astype(int)
        scaled = understanding_canvas(load_image(path, at_least=SIDE), processor.image)
        errors.append(float(np.abs(whole - scaled).mean()))
        ours = understanding_canvas(load_image(path), rounding).astype(np.float64) * (1 / 255)
        normal = (ours.astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
        equal &= np.array_equal(normal.transpose(2, 0, 1), theirs([opened(path)])[0])
    return {
        "exact_path_ratio": middle["peer"] / middle["exact"],
        "exact_path_ratio_one_by_one": middle["peer_one_by_one"] / middle["exact"],
        "fast_path_ratio": middle["peer"] / middle["fast"],
        "fast_path_ratio_one_by_one": middle["peer_one_by_one"] / middle["fast"],
        "images_per_second_per_core": count / middle["exact"],
        "fast_images_per_second_per_core": count / middle["fast"],
        "fast_path_mean_abs_error": statistics.mean(errors),
        "pixels_equal_peer": equal,
        "pictures": count,
        "picture_cpu_seconds": {name: summary(values) for name, values in times.items()},
    }


def records(kind: Kind, numbers: range) -> Iterator[Record]:
    """Small records of a kind, texts of different lengths."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(buffer, "PNG")
    turns = (("user", QUESTION), ("assistant", ANSWER))
    for i in numbers:
        text = "number " * (i % 7 + 1) + str(i)
        if kind == "generation":
            codes = np.arange(i, i + SMALL_TOKENS, dtype=np.int32) % CODES
            yield Record(f"g{i}", kind, caption=text, codes=codes)
        elif kind == "text":
            yield Record(f"t{i}", kind, turns=(("user", text), ("assistant", ANSWER)))
        else:
            talk = (("user", text), ("assistant", ANSWER)) if i % 2 else turns
            yield Record(f"u{i}", kind, (buffer.getvalue(),), turns=talk)


def write_set(folder: Path, counts: dict[Kind, int], shard: int = 50_000) -> Path:
    """Writes a packed data set of `records`."""
    begin(folder, {"bench": counts}, overwrite=True)
    units = []
    for kind, count in counts.items():
        for number, start in enumerate(range(0, count, shard)):
            writer = ShardWriter(folder / kind / f"{number:05d}.array_record")
            for record in records(kind, range(start, min(start + shard, count))):
                writer.write(record)
            units.append({"shards": {kind: writer.publish()}, "broken": []})
    write_manifest(folder, units)
    return folder


def open_sets(data: Sequence[str], rows: int = 0) -> RecordSource:
    """The mixture of the second and third part; with `rows`, as many samples as fill them."""
    return open_source(
        data,
        samples=PER_STEP,
        rows=rows,
        length=256,
        seed=0,
        tokenizer=tokenizer(),
        processor=ProcessorConfig(ImageSettings(SMALL_SIDE), JANUS_PRO, ""),
        image_tokens=SMALL_TOKENS,
        codebook_size=CODES,
        caption_drop=0.1,
    )


def measure_mixture(folder: Path, count: int, steps: int, batches: int) -> dict[str, Any]:
    """Exactness of the weights, time to open, and memory."""
    real: dict[Kind, int] = {
        "understanding": count * 4 // 10,
        "text": count // 10,
        "generation": count * 3 // 10,
    }
    made: dict[Kind, int] = {"generation": count - sum(real.values())}
    sets = [str(write_set(folder / "real", real)), str(write_set(folder / "made", made))]
    start = time.perf_counter()
    open_sets(sets)
    first = time.perf_counter() - start
    start = time.perf_counter()
    filled = open_sets(sets, rows=ROWS)
    opened = time.perf_counter() - start
    shape = batches_of(filled, groups=GROUPS, accumulate=ACCUMULATE, rows=ROWS).usual
    startup = time.perf_counter() - start
    source = open_sets(sets)
    counted: Counter[tuple[str, str]] = Counter()
    for step in range(steps):
        for entry in source.plan(step):
            counted[entry.kind, Path(source.name(entry)).parent.name] += 1
    due = {
        (kind, name): n * steps / (1 + (kind == "generation"))
        for kind, n in PER_STEP.items()
        for name in (("real", "made") if kind == "generation" else ("real",))
    }
    return {
        "mixture_max_error": max(abs(counted[key] / n - 1) for key, n in due.items()),
        "mixture_steps": steps,
        "records": count,
        "startup_seconds": startup,
        "startup_open_seconds": opened,
        "startup_samples_a_step": len(filled.plan(0)),
        "startup_rows_a_group": shape.rows,
        "first_startup_seconds": first,
        **measure_memory(source, batches),
    }


def batches_of(source: RecordSource, **how: int) -> PackedBatches:
    """Packed steps of the mixture."""
    return PackedBatches(
        source,
        kinds=tuple(PER_STEP),
        length=256,
        image_size=SMALL_SIDE,
        image_tokens=SMALL_TOKENS,
        **how,
    )


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(source: RecordSource, batches: int) -> dict[str, Any]:
    """Growth of the resident set from one tenth of some batches to the last of them."""
    steps = batches_of(source)
    sizes, start = [], time.perf_counter()
    for done, _ in enumerate(prefetch(steps, 0, batches, source=source), 1):
        if done % max(batches // 100, 1) == 0:
            sizes.append(resident())
    settled = statistics.median(sizes[len(sizes) // 10 :][: max(len(sizes) // 10, 1)])
    ending = statistics.median(sizes[-max(len(sizes) // 10, 1) :])
    return {
        "rss_growth": ending / settled - 1,
        "rss_bytes": ending,
        "batches": batches,
        "batches_per_second": batches / (time.perf_counter() - start),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--pictures", type=int, default=28, help="JPEG files a batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--records", type=int, default=1_000_000, help="records of the mixture")
    parser.add_argument("--steps", type=int, default=1000, help="steps that are counted")
    parser.add_argument("--batches", type=int, default=10_000, help="batches of the memory part")
    options = parser.parse_args()
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = measure_pictures(root, options.pictures, options.rounds)
        found |= measure_mixture(root, options.records, options.steps, options.batches)
    found |= {
        "cpus": os.cpu_count(),
        "pillow": Image.__version__,
        "load_average": before,
        "load_average_after": os.getloadavg(),
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:32} {value:.6g}" if isinstance(value, float) else f"{name:32} {value}")


if __name__ == "__main__":
    main()
