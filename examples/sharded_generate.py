"""Draws the prompts of a file on one host or many; started again, it draws only what is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils

from janus_jax import InputError, Janus, picture_file
from janus_jax.cache import enable_compile_cache
from janus_jax.cli.common import check_mesh, check_model, name_flag, terminable
from janus_jax.cli.parsing import parse
from janus_jax.generate.image import encode_prompt
from janus_jax.generate.sampling import bucket_length
from janus_jax.generate.settings import check_settings
from janus_jax.hosts import HostsConfig, connect, team
from janus_jax.sharding import make_mesh, parse_mesh

# Pictures between two visits to the disk: what a killed run loses at most.
AT_ONCE = 16
# Seconds. Hosts end at different times, and JAX lets none leave before the last is done.
WAIT_FOR_OTHERS = 7 * 24 * 3600


@dataclasses.dataclass(frozen=True)
class Options:
    r"""Draw the prompts of a file, one a line, on one host or many.

    One host:

      python examples/sharded_generate.py prompts.txt --n 4 --out pictures

    Two hosts that work alone, each on its half of the prompts (they need not see one another):

      python examples/sharded_generate.py prompts.txt --processes 2 --process 0
      python examples/sharded_generate.py prompts.txt --processes 2 --process 1

    Two hosts of four devices that hold the model together (run on both, --process 0 and 1):

      python examples/sharded_generate.py prompts.txt --mesh fsdp=2,tensor=4 \
        --coordinator HOST:PORT --processes 2 --process 0

    The same on a TPU pod or under SLURM, which know their hosts: --mesh fsdp=2,tensor=4 --launched

    Prompt i belongs to process i modulo N, which writes its pictures into its own --out; a
    directory that all hosts share works too. Empty lines and repeated prompts are passed over.
    With --mesh all processes draw together and each writes its share; without it each works alone
    and spreads its pictures over its own devices.

    Start it again after any end: pictures that are there and whole are not drawn again. A file's
    name holds a digest of the prompt, seed, settings and weights, so different pictures never want
    the same name. `janus-jax generate --again FILE` draws one again.

    A line that cannot be used is named, the others are drawn, and the exit status is 2.

    Attributes:
        prompts: Text file in UTF-8, one prompt a line.
        model: The shipped model `emoji`, `debug` (random weights), a model directory, or PyTorch
            weights to be converted on first use: a directory, or a Hugging Face id with optional
            @revision.
        n: Pictures a prompt.
        cfg: Weight of classifier-free guidance; 1 is none.
        temperature: Spread of the sampling; 0 takes the likeliest code each time.
        top_k: Draw from the K likeliest codes only.
        top_p: Draw from the fewest likeliest codes that hold this probability only.
        seed: Same seed, same pictures.
        out: Directory for the PNG files; made if missing.
        dtype: Precision of the weights; by default float32 on a CPU, bfloat16 elsewhere.
        mesh: Spread the model over all devices of all processes, such as fsdp=2,tensor=4.
        coordinator: Address of process 0, HOST:PORT, with a free port; for --mesh.
        processes: How many processes there are.
        process: Which of them this one is, from 0.
        launched: Ask the launcher (TPU pod, SLURM, Open MPI, Kubernetes) for the three above.
    """

    prompts: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    model: str = "emoji"
    n: int = 1
    cfg: float = 5.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    out: Path = Path("pictures")
    dtype: Literal["float32", "bfloat16", "int8"] | None = None
    mesh: str | None = None
    coordinator: str | None = None
    processes: int = 1
    process: int = 0
    launched: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What the sampling depends on."""
        return {key: getattr(self, key) for key in picture_file.SETTINGS}


@dataclasses.dataclass(frozen=True)
class Piece:
    """Pictures drawn in one call.

    Attributes:
        prompts: Indices of prompts of one padded length.
        first: Number of the first picture of each.
        n: How many of each.
    """

    prompts: tuple[int, ...]
    first: int
    n: int


def run(options: Options) -> int:
    """Draws what is missing and prints the paths of the new files.

    Args:
        options: The parsed command line.

    Returns:
        0; 2 where some lines could not be used.

    Raises:
        InputError: A flag, file, model or directory that cannot be used.
    """
    check(options)
    lines = read_lines(options.prompts)
    picture_file.prepare_directory(options.out)
    process, processes = join(options)
    model = load(options)

    lengths: dict[str, int] = {}
    bad = 0
    for number, text in lines.items():
        try:
            ids = encode_prompt(
                model.config,
                model.tokenizer,
                model.processor.roles,
                text,
                name=f"{options.prompts}, line {number}",
            )
            lengths[text] = bucket_length(len(ids))
        except InputError as error:
            bad += 1
            if process == 0:
                print(f"sharded_generate: error: {error}", file=sys.stderr)
    prompts = list(lengths)
    own = [p % processes == process for p in range(len(prompts))]
    missing = np.array(
        [
            [mine and not done(options, model, prompt, i) for i in range(options.n)]
            for mine, prompt in zip(own, prompts, strict=True)
        ],
        bool,
    ).reshape(len(prompts), options.n)
    there = sum(own) * options.n - missing.sum()
    if options.mesh is not None and processes > 1:
        # Each host has looked after its own; all of them draw all that any of them misses.
        missing = np.any(multihost_utils.process_allgather(missing), axis=0)

    written = 0
    for piece in plan(missing, list(lengths.values())):
        texts = [prompts[p] for p in piece.prompts]
        drawn = model.generate_images(
            texts, piece.n, first=piece.first, seed=options.seed, **options.settings
        )
        for p, row in zip(piece.prompts, drawn, strict=True):
            for i, image in enumerate(row, start=piece.first):
                if own[p]:
                    about = describe(options, model, prompts[p], i)
                    print(write(options.out, about, picture_file.encode(image, about)), flush=True)
                    written += 1
    print(f"process {process}: {written} pictures drawn, {there} were there", file=sys.stderr)
    return 2 if bad else 0


def check(options: Options) -> None:
    """Refuses flags that cannot be, before anything is loaded.

    Raises:
        InputError: Naming the flag.
    """
    check_settings(flags=True, n=options.n, seed=options.seed, **options.settings)
    check_model(options.model)
    check_mesh(options.mesh)
    by_hand = options.coordinator is not None or options.processes != 1
    if options.launched and by_hand:
        raise InputError(
            "--launched stands beside --coordinator or --processes",
            "--launched alone, which asks the launcher for them",
        )
    if options.processes < 1:
        raise InputError(f"--processes is {options.processes}", "a whole number from 1")
    if not 0 <= options.process < options.processes:
        raise InputError(
            f"--process is {options.process}", f"a whole number from 0 to {options.processes - 1}"
        )
    if options.mesh is not None and options.processes > 1 and options.coordinator is None:
        raise InputError(
            f"--mesh over {options.processes} processes needs --coordinator",
            "HOST:PORT of process 0",
        )
    if options.mesh is None and options.coordinator is not None:
        raise InputError(
            "--coordinator without --mesh: hosts that work alone need none",
            fix="leave it out, or add --mesh",
        )


def read_lines(path: Path) -> dict[int, str]:
    """Line number -> prompt, without empty lines and prompts that an earlier line has.

    Raises:
        InputError: The file cannot be read, or has no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"FILE {str(path)!r} cannot be read ({reason})", "UTF-8 text") from error
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            first.setdefault(line.strip(), number)
    if not first:
        raise InputError(f"FILE {str(path)!r} is empty", "one prompt a line")
    return {number: text for text, number in first.items()}


def join(options: Options) -> tuple[int, int]:
    """Meets the other processes where that is needed: which process this is, of how many.

    Raises:
        InputError: `--launched`, and there is no launcher that JAX knows.
    """
    if not options.launched and options.coordinator is None:
        return options.process, options.processes
    hosts = HostsConfig()
    if options.coordinator is not None:
        hosts = HostsConfig(options.coordinator, options.processes, options.process)
    try:
        connect(hosts, shutdown_seconds=WAIT_FOR_OTHERS)
    except InputError as error:
        raise InputError(
            f"the other processes cannot be found ({error.what})",
            fix="give --coordinator, --processes and --process",
        ) from error
    if team() is None:
        raise InputError(
            "--launched, and there is no launcher that JAX knows",
            fix="give --coordinator, --processes and --process",
        )
    return jax.process_index(), jax.process_count()


def load(options: Options) -> Janus:
    """The model, over all devices of all hosts with `--mesh`, else over those of this host.

    Raises:
        InputError: A mesh that does not fit the devices, or a damaged model.
    """
    mesh = None
    if options.mesh is not None:
        try:
            mesh = make_mesh(parse_mesh(options.mesh))
        except InputError as error:
            raise name_flag("mesh", error) from error
    elif len(local := jax.local_devices()) > 1:
        mesh = make_mesh({"data": len(local)}, local)
    try:
        return Janus.from_pretrained(options.model, dtype=options.dtype, mesh=mesh)
    except InputError as error:
        raise name_flag("model", error) from error


def describe(options: Options, model: Janus, prompt: str, index: int) -> dict[str, str]:
    """The texts in a picture's file."""
    return picture_file.metadata(model, prompt, options.seed, index, options.settings)


def name(about: dict[str, str]) -> str:
    """A file name that no other picture has: what the picture depends on, and a digest of it."""
    depends = {key: text for key, text in about.items() if key != "Software"}
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:10]
    stem = picture_file.stem(about["prompt"], int(about["seed"]), int(about["index"]))
    return f"{stem}-{digest}.png"


def done(options: Options, model: Janus, prompt: str, index: int) -> bool:
    """Whether a picture is there, and whole."""
    about = describe(options, model, prompt, index)
    return picture_file.is_complete(options.out / name(about), about)


def plan(missing: np.ndarray, lengths: list[int]) -> Iterator[Piece]:
    """Calls that draw what is missing, at most `AT_ONCE` pictures each.

    Args:
        missing: bool [prompts, n].
        lengths: Padded length of each prompt; those of one length share a compiled program.
    """
    groups: dict[tuple[int, int, int], list[int]] = {}
    for p, row in enumerate(missing):
        numbers = np.flatnonzero(row)
        for straight in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            for start in range(0, len(straight), AT_ONCE):
                part = straight[start : start + AT_ONCE]
                groups.setdefault((lengths[p], int(part[0]), len(part)), []).append(p)
    for (_, first, n), chosen in groups.items():
        size = AT_ONCE // n
        for start in range(0, len(chosen), size):
            yield Piece(tuple(chosen[start : start + size]), first, n)


def write(out: Path, about: dict[str, str], content: bytes) -> Path:
    """Writes a picture.

    Raises:
        InputError: It cannot be written.
    """
    path = out / name(about)
    try:
        picture_file.write_over(path, content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"--out: {str(path)!r} cannot be written ({reason})") from error
    return path


def main() -> int:
    """Runs the command line; exit statuses as those of `janus-jax`."""
    try:
        with terminable():
            options = parse(Options, sys.argv[1:], prog="sharded_generate.py")
            enable_compile_cache()
            return run(options)
    except InputError as error:
        print(f"sharded_generate: error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("sharded_generate: interrupted", file=sys.stderr)
        status = 130
    except SystemExit as stop:  # --help, or SIGTERM
        status = int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        status = 1
    if jax.distributed.is_initialized():
        # The others wait for this process. An orderly end would wait for them in turn, so only a
        # sudden one lets them go.
        sys.stdout.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
