"""Hugging Face as far as pod/weights.py needs it, on loopback: the API, the files, a CDN of another origin, and faults.

Counts every byte that it sends and notes every request, so that a test can say what was transferred twice.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

MODEL = "maker/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "notARealToken" * 3
LARGE = 10_000  # bytes from which a file is in large file storage, behind a redirect


@dataclass(frozen=True)
class Fault:
    """What happens to one answer. `status`: nothing but this; `after` bytes the connection ends, or `stalls` first."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None
    stalls: bool = False  # until the hub's `released` is set
    corrupt: bool = False
    no_ranges: bool = False


@dataclass
class FakeHub:
    """One model with these files. `faults` are used up in order, by path; the path "" is the API."""

    files: Mapping[str, bytes]
    gated: bool = False
    accepted: bool = True
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    bytes_a_second: int = 0  # of each connection; 0: as fast as it goes

    def __post_init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.ranges: dict[str, list[int]] = defaultdict(list)
        self.times: dict[str, list[float]] = defaultdict(list)
        self.tokens_elsewhere: list[str] = []
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._servers: list[ThreadingHTTPServer] = []

    def __enter__(self) -> FakeHub:
        for host in ("127.0.0.1", "127.0.0.2"):
            server = ThreadingHTTPServer((host, 0), _handler(self))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._servers.append(server)
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return "http://{}:{}".format(*self._servers[0].server_address[:2])

    @property
    def cdn(self) -> str:
        """The other origin, which must never see the token."""
        return "http://{}:{}".format(*self._servers[1].server_address[:2])

    def fault(self, path: str) -> Fault:
        """The next one of a path."""
        with self._lock:
            waiting = self.faults.get(path)
            return waiting.pop(0) if waiting else Fault()

    def note(self, path: str, offset: int) -> None:
        """A request for a file from a byte on."""
        with self._lock:
            self.ranges[path].append(offset)
            self.times[path].append(time.monotonic())

    def tree(self) -> list[dict[str, object]]:
        """As /api/models/<model>/tree answers."""
        listed = []
        for path, data in self.files.items():
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(data)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324  git's
            if len(data) >= LARGE:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            listed.append(entry)
        return listed


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            elsewhere = f"http://{self.headers['Host']}" == hub.cdn
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if elsewhere:
                hub.tokens_elsewhere += [token] if token else []
                self._file(path.removeprefix("/"))
            elif refused := self._refusal(path, token):
                self._answer(*refused)
            elif path.startswith(f"/api/models/{MODEL}/revision/") or path == f"/api/models/{MODEL}":
                self._json({"id": MODEL, "sha": COMMIT, "gated": "auto" if hub.gated else False})
            elif path.startswith(f"/api/models/{MODEL}/tree/"):
                fault = hub.fault("")
                hub.note("", 0)
                if fault.status:
                    self._answer(fault.status, fault.headers)
                else:
                    self._json(hub.tree())
            elif path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
                name = path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
                if len(hub.files.get(name, b"")) >= LARGE:
                    self._answer(302, {"Location": f"{hub.cdn}/{name}?Signature=secret"})
                else:
                    self._file(name)
            else:
                self._answer(404, {"X-Error-Code": "EntryNotFound"})

        def _refusal(self, path: str, token: str) -> tuple[int, dict[str, str]] | None:
            if MODEL not in path:
                return 404, {"X-Error-Code": "RepoNotFound"}
            if token and token != TOKEN:
                return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
            revision = [part for part in ("/revision/", "/tree/", "/resolve/") if part in path]
            if revision and path.split(revision[0])[1].split("/")[0] not in (COMMIT, "main"):
                return 404, {"X-Error-Code": "RevisionNotFound"}
            if hub.gated and "/resolve/" in path and not token:
                return 401, {"X-Error-Code": "GatedRepo"}
            if hub.gated and "/resolve/" in path and not hub.accepted:
                return 403, {"X-Error-Code": "GatedRepo"}
            return None

        def _file(self, name: str) -> None:
            data, fault = hub.files[name], hub.fault(name)
            asked = self.headers.get("Range", "")
            offset = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and not fault.no_ranges else 0
            hub.note(name, offset)
            if fault.status:
                self._answer(fault.status, fault.headers)
                return
            body = bytes(byte ^ 255 for byte in data[:64]) + data[64:] if fault.corrupt else data
            body = body[offset:]
            self.send_response(206 if offset else 200)
            self.send_header("Content-Length", str(len(body)))
            if offset:
                self.send_header("Content-Range", f"bytes {offset}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self._send(name, body, fault)

        def _send(self, name: str, body: bytes, fault: Fault) -> None:
            piece = 16 << 10
            left = body if fault.after is None else body[: fault.after]
            while left:
                try:
                    self.wfile.write(left[:piece])
                except OSError:
                    self.close_connection = True
                    return
                hub.sent[name] += len(left[:piece])
                left = left[piece:]
                if hub.bytes_a_second:
                    time.sleep(piece / hub.bytes_a_second)
            if fault.after is not None:
                self.wfile.flush()
                if fault.stalls:
                    hub.released.wait(60)
                self.close_connection = True
                self.connection.close()

        def _json(self, value: object) -> None:
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
