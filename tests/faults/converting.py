"""What the processes of the conversion's fault tests run; its imports are made once for all."""

import os
import resource
import signal
from pathlib import Path

import convert.pipeline
import convert.source  # noqa: F401
from janus_jax.cli import main


def converting(source: Path, target: Path, *flags: str, log: Path, file_limit: int = 0) -> None:
    """Runs `janus-jax convert` and ends the process with its status.

    Args:
      source: what is converted.
      target: the destination.
      flags: further arguments.
      log: file that gets what is printed.
      file_limit: most bytes of a file, as of a disk that fills up; 0 is none.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails with EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    main.main(["convert", str(source), str(target), *flags])
