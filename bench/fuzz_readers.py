"""Fuzzes the readers of weight files with random damage to valid ones.

    python bench/fuzz_readers.py --minutes 10 --json

Every file must be refused in one line or read within its bounds; the first that does anything else
is kept and its path printed, and the status is 1. The short form runs in the tests.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    # Python puts the script's own folder first, where `convert` would be bench/convert.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tests.convert.readers.mutations import damaged, seeds, survives


def main() -> int:
    """Fuzzes and prints the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()

    dice, files = random.Random(options.seed), seeds()
    counts = {name: {"refused": 0, "read": 0} for name in files}
    end = time.monotonic() + 60 * options.minutes
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            name = dice.choice(list(files))
            path = Path(folder) / name
            path.unlink(missing_ok=True)
            path.write_bytes(damaged(files[name], dice))
            start = time.process_time()  # A busy machine makes no file slow.
            try:
                counts[name]["refused" if survives(path) else "read"] += 1
            except BaseException as error:
                kept = Path(f"fuzz-{options.seed}-{name}")
                kept.write_bytes(path.read_bytes())
                print(f"{kept}: {type(error).__name__}: {error}", file=sys.stderr)
                return 1
            slowest = max(slowest, time.process_time() - start)
    report = {"minutes": options.minutes, "files": counts, "slowest_cpu_seconds": slowest}
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
