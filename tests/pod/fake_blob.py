"""Azure Blob Storage as far as pod/weights.py needs it, on loopback: one container, strict about what it does not know.

Blocks that are not committed are no blob, as in Azure; and a commit names every block it consists of.
"""

from __future__ import annotations

import threading
from base64 import b64encode
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

ACCOUNT, CONTAINER = "account", "models"
KEY = b64encode(b"not a real key").decode()
DATE = "Thu, 26 Nov 2026 00:00:00 GMT"


class FakeBlob:
    """`blobs` are what is committed, with their metadata; `refusals` are answered first: (status, code)."""

    def __init__(self) -> None:
        self.blobs: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.blocks: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.received: dict[str, int] = defaultdict(int)
        self.refusals: list[tuple[int, str]] = []
        self.lock = threading.Lock()

    def __enter__(self) -> FakeBlob:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def connection(self) -> str:
        """What AZURE_STORAGE_CONNECTION_STRING is to be."""
        endpoint = f"http://127.0.0.1:{self._server.server_address[1]}/{ACCOUNT}"
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"


def _handler(store: FakeBlob) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        def do_PUT(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def do_DELETE(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with store.lock:
                refused = store.refusals.pop(0) if store.refusals else None
            if refused:
                self._answer(refused[0], {"x-ms-error-code": refused[1]})
                return
            split = urlsplit(self.path)
            path, query = unquote(split.path), {key: values[0] for key, values in parse_qs(split.query).items()}
            prefix = f"/{ACCOUNT}/{CONTAINER}"
            if not self.headers.get("Authorization", "").startswith("SharedKey ") or not path.startswith(prefix):
                self._answer(403, {"x-ms-error-code": "AuthenticationFailed"})
                return
            name = path.removeprefix(prefix).removeprefix("/")
            call = f"{self.command} {query.get('comp', '')}".strip()
            known: dict[str, Any] = {
                "PUT block": self._put_block,
                "PUT blocklist": self._put_block_list,
                "PUT": self._put_blob,
                "GET list": self._list,
                "GET": self._get,
                "DELETE": self._delete,
            }
            known[call](name, query, body)

        def _put_block(self, name: str, query: dict[str, str], body: bytes) -> None:
            with store.lock:
                store.blocks[name][query["blockid"]] = body
                store.received[name] += len(body)
            self._answer(201)

        def _put_block_list(self, name: str, _query: dict[str, str], body: bytes) -> None:
            ids = [element.text or "" for element in ElementTree.fromstring(body)]  # noqa: S314  the SDK's own
            with store.lock:
                staged = store.blocks.pop(name, {})
                if not set(ids) <= set(staged):
                    self._answer(400, {"x-ms-error-code": "InvalidBlockList"})
                    return
                store.blobs[name] = (b"".join(staged[each] for each in ids), self._metadata())
            self._answer(201, {"ETag": '"1"', "Last-Modified": DATE})

        def _put_blob(self, name: str, _query: dict[str, str], body: bytes) -> None:
            with store.lock:
                store.blobs[name] = (body, self._metadata())
            self._answer(201, {"ETag": '"1"', "Last-Modified": DATE})

        def _metadata(self) -> dict[str, str]:
            named = {key.lower(): value for key, value in self.headers.items()}
            return {key[len("x-ms-meta-") :]: value for key, value in named.items() if key.startswith("x-ms-meta-")}

        def _list(self, _name: str, query: dict[str, str], _body: bytes) -> None:
            listed = ""
            for name, (data, metadata) in sorted(store.blobs.items()):
                if name.startswith(query.get("prefix", "")):
                    meta = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in metadata.items())
                    listed += (
                        f"<Blob><Name>{escape(name)}</Name><Properties><Content-Length>{len(data)}</Content-Length>"
                        f"<BlobType>BlockBlob</BlobType></Properties><Metadata>{meta}</Metadata></Blob>"
                    )
            document = (
                f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{listed}</Blobs><NextMarker />'
            )
            self._answer(200, {"Content-Type": "application/xml"}, (document + "</EnumerationResults>").encode())

        def _get(self, name: str, _query: dict[str, str], _body: bytes) -> None:
            if name not in store.blobs:
                self._answer(404, {"x-ms-error-code": "BlobNotFound"})
                return
            data = store.blobs[name][0]
            first, _, last = (self.headers.get("x-ms-range") or "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            content = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}", "ETag": '"1"'}
            self._answer(206, content | {"Last-Modified": DATE, "x-ms-blob-type": "BlockBlob"}, part)

        def _delete(self, name: str, _query: dict[str, str], _body: bytes) -> None:
            with store.lock:
                gone = store.blobs.pop(name, None)
            self._answer(202 if gone else 404)

        def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
