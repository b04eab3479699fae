"""Objects of `s3://` and `gs://` buckets, listed and read like files.

s3fs and gcsfs do the work, with the credentials and settings that they find as their vendors' own
tools do. What goes wrong becomes one of three: `FileNotFoundError` and `PermissionError`, which are
about one object, and `InputError`, which is about the store: a package that is missing, credentials
that have expired, a server that does not answer.
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import posixpath
import re
import socket
from typing import Any, Literal
from urllib.parse import urlsplit

from janus_jax.errors import InputError

SCHEMES = ("s3", "gs")

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(.*)", re.DOTALL)
_BLOCK = 2**22
_TIMEOUT = 10.0
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_SIGN_IN = {
    "s3": "aws configure or aws sso login, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "SSOError",
    "GoogleAuthError",
}
# Of the codes that s3fs makes PermissionErrors of, those that are about one object; the others are
# about who asks. A number stands for an answer without a code.
_DENIED = ("AccessDenied", "AllAccessDisabled", "InvalidObjectState", "403")
# About who asks too, though no PermissionErrors.
_BAD_TOKEN = ("401", "InvalidToken", "TokenRefreshRequired")
# A 403 of Google's may be about how often was asked, of which gcsfs keeps only the text.
_TOO_OFTEN = re.compile(r"(rate|quota).*exceed|exceed.*(rate|quota)", re.IGNORECASE)


def is_address(name: str) -> bool:
    """Whether a name is an address, `scheme://...`, and no path of this machine."""
    return _ADDRESS.match(name) is not None


def kind_of(name: str) -> Literal["file", "directory"] | None:
    """What lies at an address; a directory is what objects' names begin with.

    Raises:
      InputError: there is no such bucket, or the store cannot be used.
      PermissionError: access is denied.
    """
    try:
        return _ask(name, "info", name)["type"]
    except FileNotFoundError:
        _check_bucket(name)
        return None


def list_directory(name: str) -> list[str]:
    """Addresses of the objects directly below an address, sorted.

    Raises:
      InputError: the store cannot be used.
      PermissionError: access is denied.
    """
    found = _ask(name, "ls", name, detail=True)
    return sorted(f"{_split(name)[0]}://{o['name']}" for o in found if o["type"] == "file")


def match(pattern: str) -> list[str]:
    """Addresses of the objects that match a pattern of `*`, `?` and `[...]`, sorted.

    Raises:
      InputError: `**`, no such bucket, or the store cannot be used.
      PermissionError: access is denied.
    """
    if "**" in pattern:
        raise InputError(f"{pattern!r} holds **", "*, ? and [...], each within one directory")
    scheme, bucket, key = _split(pattern)
    # The client takes a directory that it may not list for an empty one.
    kind_of(f"{scheme}://{bucket}" + posixpath.dirname(re.split(r"[*?\[]", key, maxsplit=1)[0]))
    found = _ask(pattern, "glob", pattern, detail=True)
    return sorted(f"{scheme}://{k}" for k, o in found.items() if o["type"] == "file")


def beside(name: str, other: str) -> str:
    """The address of what an object at `name` calls `other`, a relative path."""
    scheme, bucket, key = _split(name)
    # A store takes names literally: `..` is for us to resolve.
    return f"{scheme}://{bucket}" + posixpath.normpath(
        posixpath.join(posixpath.dirname(key), other)
    )


def read_object(name: str, limit: int) -> bytes:
    """The first `limit` bytes of an object, or all of it where it has fewer; one request.

    Raises:
      InputError: the store cannot be used.
      FileNotFoundError, PermissionError: no such object, or access is denied.
    """
    return _read(name, 0, limit)


def open_object(name: str) -> io.BufferedReader:
    """Opens an object for reading, anywhere in it.

    Raises:
      InputError: the store cannot be used; so do later reads, also of an object that has changed.
      FileNotFoundError, PermissionError: no such object, or access is denied; so do later reads.
    """
    return io.BufferedReader(_Object(name, _ask(name, "info", name)["size"]), _BLOCK)


def _check_bucket(name: str) -> None:
    scheme, bucket, _ = _split(name)
    try:
        _ask(name, "info", f"{scheme}://{bucket}")
    except FileNotFoundError as error:
        what = f"there is no bucket {f'{scheme}://{bucket}'!r}"
        raise InputError(what, fix="check its name") from error
    except PermissionError:
        pass  # so it exists


class _Object(io.RawIOBase):
    """An object of so many bytes, a range of which is fetched by each read."""

    def __init__(self, name: str, size: int):
        self._name, self._size, self._at = name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        stop = min(self._at + len(buffer), self._size)
        if self._at >= stop:
            return 0
        found = _read(self._name, self._at, stop)
        if len(found) != stop - self._at:
            raise InputError(
                f"{self._name!r} has changed while it was read "
                f"({len(found)} bytes where {stop - self._at} were)",
                fix="run the same command again",
            )
        buffer[: len(found)] = found
        self._at = stop
        return len(found)


class _NothingThereError(Exception):
    """A range of an object was asked for that has no byte in it."""


def _read(name: str, start: int, stop: int) -> bytes:
    try:
        return _ask(name, "cat_file", name, start=start, end=stop)
    except _NothingThereError:
        return b""


def _split(name: str) -> tuple[str, str, str]:
    """Scheme, bucket and `/key` of an address."""
    found = _ADDRESS.fullmatch(name)
    scheme, bucket, key = found.groups() if found else ("", "", "")
    if scheme not in SCHEMES or not bucket:
        raise InputError(
            f"{name!r} is no address that can be read",
            "a path of this machine, s3://BUCKET/OBJECT, gs://BUCKET/OBJECT",
        )
    return scheme, bucket, key


def _ask(name: str, method: str, *args: Any, **options: Any) -> Any:
    """Calls a method of the file system that an address belongs to, its errors made ours."""
    scheme, _, _ = _split(name)
    try:
        return getattr(_file_system(scheme), method)(*args, **options)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "does not exist", name) from error
    except ImportError as error:
        raise InputError(
            f"{name!r} needs {_PACKAGES[scheme]}, which is not installed ({error})",
            fix='pip install "janus-jax[remote]", or pip install -e ".[remote]" in the checkout',
        ) from error
    except Exception as error:
        if scheme == "s3" and method == "info" and _code(error) in ("400", "403"):
            _ask_for_code(name)
        raise _made_ours(name, scheme, error) from error


def _ask_for_code(name: str) -> None:
    """Raises what S3 says is wrong; the answers to HEAD have no room for it."""
    _, bucket, key = _split(name)
    if key.strip("/"):
        _read(name, 0, 1)
    else:
        _ask(name, "call_s3", "list_objects_v2", Bucket=bucket, MaxKeys=1)


def _code(error: Exception) -> str:
    """The code of a store's answer, or else its status; empty for other errors."""
    cause = getattr(error.__cause__, "response", None) or {}
    return str(getattr(error, "code", None) or cause.get("Error", {}).get("Code") or "")


def _made_ours(name: str, scheme: str, error: Exception) -> Exception:
    # The classes of four libraries, none of which need be installed: told apart by what they say.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    code = _code(error)
    detail = " ".join(str(error).split()) or type(error).__name__
    forbidden = detail.startswith("Forbidden") or code == "403"
    if code in ("416", "InvalidRange"):
        return _NothingThereError()
    # Below a line with the object's name, which may hold these words.
    if scheme == "gs" and forbidden and _TOO_OFTEN.search(str(error).split("\n", 1)[-1]):
        return InputError(
            f"{name!r} cannot be read now: {detail}", fix="wait, then run the same command again"
        )
    refused = isinstance(error, PermissionError) and code not in _DENIED
    if refused or kinds & _NO_CREDENTIALS or code in _BAD_TOKEN:
        why = f"{code}: {detail}" if code else detail
        clock = code == "RequestTimeTooSkewed"
        return InputError(
            f"{name!r} cannot be read: no credentials that {scheme}:// takes ({why})",
            fix="set this machine's clock" if clock else _SIGN_IN[scheme],
        )
    if isinstance(error, PermissionError) or forbidden:
        return PermissionError(errno.EACCES, f"access is denied: {detail}", name)
    return InputError(
        f"{name!r} cannot be read: {type(error).__name__}: {detail}",
        fix="check the network and the address of the server, then run the same command again",
    )


@functools.cache
def _file_system(scheme: str) -> Any:
    # Listings are not kept: what is there is asked for when it is needed.
    common: dict[str, Any] = dict(use_listings_cache=False, skip_instance_cache=True)
    # What the clients log, tracebacks among it, they also raise.
    for library in ("s3fs", "aiobotocore", "botocore", "gcsfs", "google"):
        logging.getLogger(library).addHandler(logging.NullHandler())
    if scheme == "s3":
        from s3fs import S3FileSystem

        return S3FileSystem(**common)
    return _google(common)


def _google(common: dict[str, Any]) -> Any:
    import aiohttp
    import google.auth

    # Not the class that gcsfs exports: that asks, by gRPC and at every open, what sort of bucket it
    # is, for the sake of zonal ones, which emulators and read-only accounts cannot answer.
    from gcsfs.core import GCSFileSystem
    from google.auth.exceptions import DefaultCredentialsError

    token = "anon"
    if not os.environ.get("STORAGE_EMULATOR_HOST"):
        try:
            # gcsfs alone would look for a metadata server twice, with waits.
            token = google.auth.default(
                scopes=["https://www.googleapis.com/auth/devstorage.read_only"]
            )[0]
        except DefaultCredentialsError:
            if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
                raise
            # Public buckets can still be read.
    found = GCSFileSystem(
        token=token,
        # Its own limit on a silent server is none.
        requests_timeout=aiohttp.ClientTimeout(sock_connect=_TIMEOUT, sock_read=60),
        **common,
    )
    # It tries six times, over half a minute, whether or not a server was ever there.
    server = urlsplit(found.base)
    port = server.port or (443 if server.scheme == "https" else 80)
    try:
        socket.create_connection((server.hostname or "", port), timeout=_TIMEOUT).close()
    except OSError as error:
        raise ConnectionError(
            f"{server.scheme}://{server.netloc} does not answer ({error})"
        ) from None
    return found
