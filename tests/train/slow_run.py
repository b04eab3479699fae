"""`janus-jax`, with the settings of the tests and half a second between two batches.

Started as a process by the tests that stop runs from outside: a tiny model's run is over before a
signal arrives.
"""

import sys
import time

import tests.conftest  # noqa: F401  (devices, precision and compile cache, as in the tests)

PAUSE = 0.5


def main() -> None:
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    from janus_jax.cli.main import main
    from train import loop

    batches_of = loop.prefetch

    def slowly(*args, **how):
        for batch in batches_of(*args, **how):
            time.sleep(PAUSE)
            yield batch

    loop.prefetch = slowly
    main(sys.argv[1:])


if __name__ == "__main__":
    main()
