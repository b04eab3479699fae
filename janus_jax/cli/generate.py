"""``janus-jax generate``: draws pictures and writes them as PNG files."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from janus_jax.cli.common import check_mesh, check_model, load, progress_bar
from janus_jax.errors import InputError
from janus_jax.generate.settings import check_settings
from janus_jax.picture_file import SETTINGS, encode, metadata, prepare_directory, stem, write_new

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Generate:
    """Draw pictures from text.

    janus-jax generate "red apple" --n 4 --out pictures

    janus-jax generate "woman firefighter: medium skin tone" "黑猫" --seed 7 --json

    janus-jax generate --again pictures/red-apple-seed0-2.png --out again

    Each picture is a PNG file that carries its prompt, seed, settings and model. Picture i of a
    prompt depends on these and i, not on what else is drawn (in float32, on one backend, up to 16
    at once). A prompt that cannot be used is named, the others are drawn, and the exit status is 2.
    Pictures are saved as they are drawn, so that a stop loses only those in progress.

    Attributes:
        prompts: What to draw, one or more texts.
        model: The shipped model `emoji`, `debug` (random weights), a model directory, or PyTorch
            weights to be converted on first use: a directory, or a Hugging Face id with optional
            @revision.
        again: Draw the picture of this PNG file once more, from what the file says. Only --model,
            --at-once, --out, --mesh and --json may stand beside it.
        n: Pictures a prompt.
        first: Number of the first picture of each prompt.
        at_once: Pictures drawn at once; by default as many as memory allows, at most 16. A CPU
            refuses more, which would come out as other pictures.
        cfg: Weight of classifier-free guidance; 1 is none.
        temperature: Spread of the sampling; 0 takes the likeliest code each time.
        top_k: Draw from the K likeliest codes only.
        top_p: Draw from the fewest likeliest codes that hold this probability only.
        seed: Same seed, same pictures.
        out: Directory for the PNG files; made if missing. No file there is overwritten by another
            picture.
        dtype: Precision of the weights; by default float32 on a CPU, bfloat16 elsewhere. int8
            takes 55 to 65% of bfloat16's memory.
        mesh: Spread the model over all devices of this host, such as fsdp=2,tensor=4; over those
            of several hosts, examples/sharded_generate.py does it.
        json: Print {"images": [paths]} on stdout instead of one path a line.
    """

    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PROMPT...]")
    ] = ()
    again: Path | None = None
    model: str = "emoji"
    n: int = 1
    first: int = 0
    at_once: int | None = None
    cfg: float = 5.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    out: Path = Path("pictures")
    dtype: Literal["float32", "bfloat16", "int8"] | None = None
    mesh: str | None = None
    json: bool = False


def run(options: Generate) -> int:
    """Draws the pictures.

    Args:
        options: The parsed command line.

    Returns:
        0; 2 where some prompts could not be used and the others were drawn.

    Raises:
        InputError: A setting, model or directory that cannot be used, or every prompt.
    """
    if options.again is not None:
        options = again(options, options.again)
    if not options.prompts:
        raise InputError("PROMPT is missing", 'one or more texts, such as "red apple"')
    settings = {key: getattr(options, key) for key in ("first", "at_once", "seed", *SETTINGS)}
    check_settings(flags=True, n=options.n, **settings)
    check_model(options.model)
    check_mesh(options.mesh)
    prepare_directory(options.out)

    model = load(options.model, options.dtype, options.mesh)
    problems = model.check_prompts(options.prompts)
    good = [p for p, bad in zip(options.prompts, problems, strict=True) if bad is None]
    if len(problems) == 1 and problems[0] is not None:
        raise problems[0]
    for problem in filter(None, problems):
        print(f"janus-jax: error: {problem}", file=sys.stderr)
    saved: dict[tuple[int, int], Path] = {}

    def save(place: int, number: int, image: Image.Image) -> None:
        about = metadata(model, good[place], options.seed, number, settings)
        saved[place, number] = _save(image, options.out, about)

    if good:
        try:
            with progress_bar("drawing") as progress:
                model.generate_images(good, options.n, progress=progress, drawn=save, **settings)
        except BaseException:
            if saved:
                print(f"janus-jax: {len(saved)} pictures are in {options.out}", file=sys.stderr)
            raise
    paths = [path for _, path in sorted(saved.items())]
    if options.json:
        print(json.dumps({"images": [str(path) for path in paths]}, ensure_ascii=False))
    elif paths:
        print("\n".join(map(str, paths)))
    return 2 if len(good) < len(problems) else 0


def again(options: Generate, picture: Path) -> Generate:
    """The options that draw the picture of a file once more.

    Args:
        options: What was asked; its model, directory, mesh and output are kept.
        picture: The PNG file.

    Returns:
        The options with the prompt, seed, number and settings of the file.

    Raises:
        InputError: A prompt or flag is given that the file answers already, the file is no picture
            of ours, or it was drawn by other weights than those of the model.
    """
    from PIL import Image

    name = f"--again {str(picture)!r}"
    fresh = Generate()
    for key in ("prompts", "n", "first", "seed", "dtype", *SETTINGS):
        if getattr(options, key) != getattr(fresh, key):
            flag = "PROMPT" if key == "prompts" else f"--{key.replace('_', '-')}"
            raise InputError(f"{name} and {flag} are both given", "one of them")
    try:
        with Image.open(picture) as image:
            found = dict(image.info)
        settings = json.loads(found["settings"])
        drawn = dataclasses.replace(
            options,
            again=None,
            prompts=(found["prompt"],),
            seed=int(found["seed"]),
            first=int(found["index"]),
            n=1,
            dtype=settings.pop("dtype"),
            **{key: settings[key] for key in SETTINGS},
        )
        model, _, fingerprint = found["model"].rpartition(" ")
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist", fix="check the path") from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{name} does not say how it was drawn", "a PNG of janus-jax") from error
    if drawn.model == "emoji" and model not in ("emoji", ""):
        raise InputError(
            f"{name} was drawn by another model, {model!r}", fix="name its directory with --model"
        )
    own = _fingerprint(drawn.model)
    if own != fingerprint:
        raise InputError(
            f"{name} was drawn by {model} {fingerprint}, the weights of {drawn.model!r} are {own}",
            fix="name the directory of the model that drew it with --model",
        )
    return drawn


def _fingerprint(model: str) -> str:
    from janus_jax.checkpoint import fingerprint
    from janus_jax.locate import find_model

    return "random" if model == "debug" else fingerprint(find_model(model))


def _save(image: Image.Image, out: Path, about: dict[str, str]) -> Path:
    """Writes a picture where no other picture is; the same picture is left as it is."""
    content = encode(image, about)
    name = stem(about["prompt"], int(about["seed"]), int(about["index"]))
    for attempt in range(1, 10_000):
        path = out / f"{name}{'' if attempt == 1 else f'-{attempt}'}.png"
        try:
            write_new(path, content)
            return path
        except FileExistsError:
            if path.is_file() and path.read_bytes() == content:
                return path
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"--out: {str(path)!r} cannot be written ({reason})", fix="choose another"
            ) from error
    raise InputError(f"--out {str(out)!r} is full of {name}-*.png", fix="choose another")
