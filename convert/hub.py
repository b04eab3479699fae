"""Checkpoints of the Hugging Face hub, fetched into its own cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import InputError

# Nothing that could run is fetched.
_FILES = ("*.json", "*.jinja", "tokenizer.model")
_SAFETENSORS = (*_FILES, "*.safetensors")
_BIN = (*_FILES, "pytorch_model*.bin")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class Snapshot:
    """One revision of a repository, on this machine.

    Attributes:
      path: the directory.
      revision: the commit it is of.
    """

    path: Path
    revision: str


def is_id(name: str) -> bool:
    """Whether a text has the form of a repository's id, `org/name` or `org/name@revision`."""
    return _ID.fullmatch(name) is not None


def fetch(name: str) -> Snapshot:
    """Fetches a repository, or finds it in the cache.

    huggingface_hub shows its own progress and honours `HF_HUB_OFFLINE`, `HF_HOME` and the token of
    `hf auth login`.

    Args:
      name: `org/name`, with `@revision` (a branch, tag or commit) where it is not `main`.

    Raises:
      InputError: no such repository or revision, no access to it, or no network and no copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    try:
        path = Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=list(_SAFETENSORS))
        )
        # A repository may hold its weights twice; the second copy, of gigabytes, is not fetched.
        if not any(path.glob("*.safetensors")):
            path = Path(snapshot_download(repo, revision=path.name, allow_patterns=list(_BIN)))
    except GatedRepoError as error:
        raise InputError(
            f"{name!r} asks for its terms to be accepted",
            fix="accept them on its page, then run: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no model {name!r} on the Hugging Face hub, or none you may see",
            fix="check the name, or run: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{repo!r} has no revision {revision!r}", fix="check it") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"{name!r} is not in the Hugging Face cache, and the hub cannot be reached",
            fix="go online once, or unset HF_HUB_OFFLINE, or name a directory",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{name!r} cannot be fetched ({reason})", fix="try again") from error
    return Snapshot(path, path.name)
