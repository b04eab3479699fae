"""The ``janus-jax`` command: picks the subcommand, turns failures into exit statuses.

Exit statuses: 0 done; 1 a run failed; 2 unusable arguments or input; 75 preempted and saved, start
again; 130 interrupted from the keyboard; 143 terminated. Results go to stdout, everything else to
stderr.
"""

import dataclasses
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import tyro

from janus_jax import __version__, hosts
from janus_jax.cli import assemble, chat, convert, data, doctor, generate, plan, train
from janus_jax.cli.common import end_quietly
from janus_jax.cli.parsing import parse
from janus_jax.cpu_threads import enough_cpu_threads
from janus_jax.errors import InputError, RunFailed

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130
NO_CACHE = "--no-compile-cache"


def _options(detail: bool) -> type:
    """The command line as a dataclass; `detail` adds the examples to each command's description."""

    def named(name: str, command: type):
        # The attributes are shown as flags; here they would be said twice.
        text = (inspect.getdoc(command) or "").split("\n\nAttributes:")[0]
        return tyro.conf.subcommand(name, description=text if detail else text.split("\n\n")[0])

    @dataclasses.dataclass(frozen=True)
    class Options:
        """Janus-JAX: draw pictures from text, ask about pictures, train the models.

        Attributes:
            command: What to do; each command has its own --help, with examples.
            debug: Show the full traceback when something fails.
            no_compile_cache: Keep no compiled programs on disk and use none from there.
            version: Print the version and end.
        """

        command: (
            Annotated[generate.Generate, named("generate", generate.Generate)]
            | Annotated[chat.Chat, named("chat", chat.Chat)]
            | Annotated[convert.Convert, named("convert", convert.Convert)]
            | Annotated[train.Train, named("train", train.Train)]
            | Annotated[plan.Plan, named("plan", plan.Plan)]
            | Annotated[data.Data, named("data", data.Data)]
            | Annotated[assemble.Assemble, named("assemble", assemble.Assemble)]
            | Annotated[doctor.Doctor, named("doctor", doctor.Doctor)]
        )
        debug: bool = False
        no_compile_cache: bool = False
        version: bool = False

    return Options


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    Args:
        argv: The arguments after the program's name; by default those of this process.

    Raises:
        SystemExit: always, with the status of the module's docstring.
    """
    status = run(sys.argv[1:] if argv is None else argv)
    if status in (0, EXIT_PREEMPTED):
        hosts.part()
    else:
        hosts.end(status)
    raise SystemExit(status)


def run(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit status; prints failures to stderr as one line.

    Of several processes that work as one, the first to fail prints, and all get its status.

    Args:
        argv: The arguments after the program's name.

    Returns:
        The exit status, as in the module's docstring.
    """
    debug = "--debug" in argv
    try:
        return _dispatch(argv)
    except InputError as error:
        return _report(error, str(error), debug, EXIT_INPUT)
    except RunFailed as error:
        return _report(error, str(error), debug, EXIT_FAILED)
    except KeyboardInterrupt:
        end_quietly()
        if hosts.leave(EXIT_INTERRUPTED):
            print("janus-jax: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has gone. Python would complain again when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        hint = f"{message} (add --debug for the traceback)"
        return _report(error, hint, debug, EXIT_FAILED)


def _dispatch(argv: Sequence[str]) -> int:
    argv = list(argv)
    if "--version" in argv:
        print(f"janus-jax {__version__}")
        return 0
    words = [word for word in argv if word not in ("--debug", NO_CACHE)]
    if NO_CACHE in argv:
        # Read by `enable_compile_cache`, and by JAX, should the user have set a cache there.
        os.environ["JANUS_JAX_COMPILE_CACHE"] = "off"
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if "--debug" not in argv:
        # Each program read back from the compile cache makes XLA log, as an error, that two tuning
        # hints of the compiler are no features of this processor. It is harmless, and it would bury
        # our own messages. What truly fails in XLA is raised as well as logged.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    enough_cpu_threads()
    # These parse their own flags, which only the trainer knows.
    handed_on = {"train": train, "plan": plan, "data": data}.get(words[0] if words else "")
    if handed_on is not None:
        if handed_on is not plan:
            from janus_jax.cache import enable_compile_cache

            enable_compile_cache()
        return handed_on.run(words[1:])
    command = _parse(argv)
    from janus_jax.cache import enable_compile_cache

    enable_compile_cache()
    match command:
        case generate.Generate():
            return generate.run(command) or 0
        case chat.Chat():
            return chat.run(command) or 0
        case assemble.Assemble():
            return assemble.run(command)
        case convert.Convert():
            return convert.run(command)
        case doctor.Doctor():
            return doctor.run(command)
    # `train`, `plan` and `data` stand among the subcommands only to be listed; see above.
    raise AssertionError(command)


def _parse(argv: list[str]) -> Any:
    """Parses what is not handed on; SystemExit(0) after --help, InputError on bad arguments."""
    top_level = argv[:1] in ([], ["-h"], ["--help"])
    return parse(
        _options(detail=not top_level),
        argv,
        prog="janus-jax",
        config=(
            tyro.conf.CascadeSubcommandArgs,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
        ),
    ).command


def _report(error: Exception, message: str, debug: bool, status: int) -> int:
    if hosts.leave(status):
        if debug:
            traceback.print_exception(error)
        print(f"janus-jax: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
