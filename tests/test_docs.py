"""The pages for users: commands, flags and messages are those of the code, links lead somewhere."""

import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from janus_jax.cli import assemble, chat, convert, doctor, generate
from janus_jax.cli.parsing import parse
from janus_jax.config import get_config
from janus_jax.errors import InputError
from train.arguments import parse_preset
from train.cli import RECIPES, Flags
from train.config import TrainConfig
from train.data.records import cli as data_cli
from train.init import PROCESSOR, TOKENIZER
from train.plan import cli as plan_cli
from train.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "docs/training.md", ROOT / "docs/troubleshooting.md", ROOT / "launch/README.md"]
ALL_PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *PAGES} - {ROOT / "docs/LOG.md"})
OTHERS = {"--debug", "--help", "--compile", "--worker"}  # of janus-jax, plan and gcloud


def flags_of(kind: type, prefix: str = "") -> set[str]:
    found = set()
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name.replace('_', '-')}"
        found.add(f"--{name}")
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default):
            found |= flags_of(type(default), f"{name}.")
    return found


KNOWN = OTHERS.union(
    *map(flags_of, (Flags, TrainConfig, data_cli.Pack, data_cli.Encode, data_cli.Inspect)),
    *map(flags_of, (data_cli.Ids, plan_cli.Flags)),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page):
    found = set(re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", page.read_text()))
    assert len(found) > 3
    assert found <= KNOWN


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", page.read_text()):
        found = page.parent / target if target else page
        assert found.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, (target, heading)


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `janus-jax` in the examples for a shell."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            starts = [i for i, word in enumerate(words) if word.split("/")[-1] == "janus-jax"]
            for start in starts:
                rest = words[start + 1 :]
                ends = [i for i, word in enumerate(rest) if word in ("&&", "|", "&")]
                yield rest[: ends[0]] if ends else rest


def read(argv: Sequence[str]) -> None:
    """Parses a command line as `janus-jax` does, without running it."""
    kinds: dict[str, Any] = {
        "generate": generate.Generate,
        "chat": chat.Chat,
        "convert": convert.Convert,
        "assemble": assemble.Assemble,
        "doctor": doctor.Doctor,
        "data pack": data_cli.Pack,
        "data encode": data_cli.Encode,
        "data inspect": data_cli.Inspect,
        "data ids": data_cli.Ids,
    }
    kinds |= {f"train {recipe}": Flags for recipe in RECIPES}
    argv = [word for word in argv if word != "--help"]
    for words in (1, 2):
        if kind := kinds.get(" ".join(argv[:words])):
            parse(kind, argv[words:], prog="janus-jax")
            return
    command, *rest = argv
    if rest:
        flags = {"train": Flags(), "plan": plan_cli.Flags()}[command]
        _, config = parse_preset(flags, rest, PRESETS, command=command)
        assert not config.model or get_config(config.model)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_commands_can_be_read(page):
    for argv in commands(page):
        read(argv)


def test_commands_that_cannot_be_read_would_be_found():
    assert sum(1 for page in ALL_PAGES for _ in commands(page)) > 40
    for line in (
        "train emoji-vq --no-such-flag",
        "train no-such-preset",
        "train emoji-stage1 --model NAME",
        "generate --no-such-flag",
    ):
        with pytest.raises(InputError):
            read(line.split())


def test_messages_are_those_of_the_code():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    code = "".join(
        path.read_text()
        for folder in ("train", "janus_jax")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    # String literals over several lines become one.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    code = code.replace("{TOKENIZER}", TOKENIZER).replace("{PROCESSOR}", PROCESSOR)
    theirs = ("RESOURCE_EXHAUSTED", "Terminating process", "Termination timeout")
    quoted = [
        " ".join(quote.split())
        for entry in re.findall(r"^\*\*(`.+?)\*\*", text, re.MULTILINE | re.DOTALL)
        for quote in re.findall(r"`([^`]+)`", entry)
    ]
    assert len(quoted) > 20
    for quote in quoted:
        if quote.startswith(theirs) or quote == "skipped":
            continue
        for part in re.split(r"\.\.\.|FILE|nan|\d+", quote):
            words = part.replace("Address already in use", "").strip(" ,;:()")  # the system's
            assert words in code, (quote, words)
