"""The pages for users: flags and messages that they quote are in the code, links lead somewhere."""

import dataclasses
import re
from pathlib import Path

import pytest

from train.cli import Flags
from train.config import TrainConfig
from train.data.records import cli as data_cli
from train.init import PROCESSOR, TOKENIZER
from train.plan import cli as plan_cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "docs/training.md", ROOT / "docs/troubleshooting.md", ROOT / "launch/README.md"]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


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
