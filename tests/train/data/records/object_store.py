"""A small object store on this machine, for the real clients: the read half of S3 and of GCS.

Buckets are the folders of a directory. Listings come in short pages, as those of large buckets do.
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 5
GCS, GCS_MEDIA = "/storage/v1/b/", "/download/storage/v1/b/"


class Store(ThreadingHTTPServer):
    """Serves the buckets in `root` on a free port.

    Attributes:
      refused: bucket/key -> status that every request for it gets.
      reason: what such answers say: S3's code, Google's message; the usual ones where it is empty.
      lost: bucket/key -> how many bytes of it are gone between asking its size and reading it.
      closed: asked of without credentials, it says 401.
      asked: of requests, method and path.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.refused: dict[str, int] = {}
        self.reason = ""
        self.lost: dict[str, int] = {}
        self.closed = False
        self.asked: list[tuple[str, str]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has what it wanted may hang up; anything else is a bug of this file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def page(self, bucket: str, query: dict[str, str]) -> tuple[list[str], list[str], str]:
        """Keys, common prefixes and the next page's token of a listing."""
        folder, prefix, delimiter = self.root / bucket, query.get("prefix", ""), query["delimiter"]
        found: dict[str, bool] = {}
        for file in folder.rglob("*"):
            key = file.relative_to(folder).as_posix()
            if file.is_file() and key.startswith(prefix):
                rest, cut, _ = (
                    key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                )
                found[prefix + rest + cut if delimiter else key] = bool(cut)
        after = query.get("pageToken") or query.get("continuation-token") or ""
        names = [name for name in sorted(found) if name > after]
        now, more = names[:PAGE], names[PAGE:]
        keys, folders = ([n for n in now if found[n] is is_folder] for is_folder in (False, True))
        return keys, folders, now[-1] if more else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets
    server: Store

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.server.asked.append((self.command, unquote(url.path)))
        query = {"delimiter": "", **dict(parse_qsl(url.query, keep_blank_values=True))}
        for start in (GCS_MEDIA, GCS):
            if url.path.startswith(start):
                bucket, _, rest = url.path.removeprefix(start).partition("/")
                return self.gcs(bucket, unquote(rest[2:]), rest, query, start == GCS_MEDIA)
        bucket, _, key = unquote(url.path[1:]).partition("/")
        return self.s3(bucket, key, query)

    def do_POST(self) -> None:
        """The token that a service account is given for its signature, /token."""
        self.rfile.read(int(self.headers["Content-Length"]))
        body = {"access_token": "token", "expires_in": 3600, "token_type": "Bearer"}
        self.answer(200, json.dumps(body).encode(), "application/json")

    def gcs(self, bucket: str, key: str, rest: str, query: dict[str, str], media: bool) -> None:
        def item(name: str) -> dict[str, str]:
            size = (self.server.root / bucket / name).stat().st_size
            return {
                "kind": "storage#object",
                "bucket": bucket,
                "name": name,
                "size": str(size),
            }

        if status := self.status(bucket, key):
            error = {"code": status, "message": self.server.reason or "refused"}
            self.answer(status, json.dumps({"error": error}).encode(), "application/json")
        elif media:
            self.content(bucket, key)
        elif rest == "o":
            keys, folders, token = self.server.page(bucket, query)
            body = {"kind": "storage#objects", "items": [*map(item, keys)], "prefixes": folders}
            body |= {"nextPageToken": token} if token else {}
            self.answer(200, json.dumps(body).encode(), "application/json")
        else:
            body = item(key) if key else {"name": bucket}
            self.answer(200, json.dumps(body).encode(), "application/json")

    def s3(self, bucket: str, key: str, query: dict[str, str]) -> None:
        if status := self.status(bucket, key):
            missing = "NoSuchKey" if (self.server.root / bucket).is_dir() else "NoSuchBucket"
            code = {404: missing, 403: "AccessDenied"}.get(status, "InternalError")
            code = self.server.reason if status in (400, 403) and self.server.reason else code
            text = f"<Error><Code>{code}</Code><Message>refused</Message></Error>"
            self.answer(status, text.encode(), "application/xml")
        elif key:
            self.content(bucket, key)
        else:
            keys, folders, token = self.server.page(bucket, query)
            sizes = {k: (self.server.root / bucket / k).stat().st_size for k in keys}
            lines = [
                *(
                    f"<Contents><Key>{escape(k)}</Key><Size>{n}</Size></Contents>"
                    for k, n in sizes.items()
                ),
                *(
                    f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>"
                    for f in folders
                ),
                f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated>",
                f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else "",
            ]
            text = f"<ListBucketResult>{''.join(lines)}</ListBucketResult>"
            self.answer(200, text.encode(), "application/xml")

    def status(self, bucket: str, key: str) -> int:
        """What to refuse a request with; 0: nothing."""
        if self.server.closed and "Authorization" not in self.headers:
            return 401
        if refused := self.server.refused.get(f"{bucket}/{key}"):
            return refused
        path = self.server.root / bucket / key
        return 0 if (path.is_file() if key else path.is_dir()) else 404

    def content(self, bucket: str, key: str) -> None:
        body = (self.server.root / bucket / key).read_bytes()
        if self.command != "HEAD":
            body = body[: len(body) - self.server.lost.get(f"{bucket}/{key}", 0)]
        asked = self.headers.get("Range", "")
        if not asked:
            return self.answer(200, body, "application/octet-stream")
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if int(first) >= len(body):
            return self.answer(416, b"", "application/octet-stream")
        part = body[int(first) : int(last or len(body)) + 1]
        end = int(first) + len(part) - 1
        span = f"bytes {first}-{end}/{len(body)}"
        return self.answer(206, part, "application/octet-stream", span)

    def answer(self, status: int, body: bytes, kind: str, span: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Sat, 01 Nov 2025 00:00:00 GMT")
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serve(root: Path) -> Iterator[Store]:
    """Serves the buckets in `root` until the block is left."""
    with Store(root) as store:
        thread = threading.Thread(target=store.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield store
        store.shutdown()
