"""Inputs as users bring them: the same ten pictures as JSONL, tar and Parquet."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COUNT = 10
CAPTION = "picture number {}"


def picture(i: int) -> bytes:
    """A PNG of one colour, its size and colour a function of i."""
    buffer = io.BytesIO()
    Image.new("RGB", (16 + i, 12), (20 * i, 0, 255 - 20 * i)).save(buffer, "PNG")
    return buffer.getvalue()


def turns(i: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "text": f"Which number is it, {i}?"},
        {"role": "assistant", "text": str(i)},
    ]


def write_jsonl(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def captions_jsonl(folder: Path) -> Path:
    for i in range(COUNT):
        (folder / f"{i}.png").write_bytes(picture(i))
    lines = [{"image": f"{i}.png", "caption": CAPTION.format(i)} for i in range(COUNT)]
    return write_jsonl(folder / "captions.jsonl", lines)


def tar_shard(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for stem, parts in samples:
            for extension, content in parts.items():
                info = tarfile.TarInfo(f"{stem}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def captions_tar(path: Path) -> Path:
    samples = [
        (f"set/{i:03d}", {"png": picture(i), "txt": CAPTION.format(i).encode()})
        for i in range(COUNT)
    ]
    return tar_shard(path, samples)


def captions_parquet(path: Path) -> Path:
    table = pa.table(
        {
            "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in range(COUNT)],
            "text": [CAPTION.format(i) for i in range(COUNT)],
        }
    )
    pq.write_table(table, path, row_group_size=4)
    return path
