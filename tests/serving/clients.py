"""Clients of the endpoint: many at once, half of them streaming, each answer looked at to its last token.

One asyncio loop and bare HTTP/1.1. Headers and body travel in two packets, as Python's `http.client` sends them, and a
connection is used for several requests, as client libraries do. Nothing is ever tried again: what fails is counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: Seconds after which a request that is still not answered counts as failed.
PATIENCE_SECONDS = 300
#: Requests on one connection.
KEPT_FOR = 8
#: Seconds between an answer and the next question, at most: an engine that starts needs some of the processors.
PAUSE_SECONDS = 2.5


class Outcome(StrEnum):
    """What became of a request."""

    COMPLETE = "complete"  # 200, every token that was asked for, the end said
    TRUNCATED = "truncated"  # 200 and an ordinary end, but tokens are missing
    ABORTED = "aborted"  # 200 and finish_reason "abort"
    REFUSED = "refused"  # 429 or 503 with Retry-After
    ERROR = "error"  # another status, or an error inside a stream
    CUT = "cut"  # the connection ended before the answer did


@dataclass(kw_only=True)
class Request:
    """One request and its answer; times are `time.monotonic()`."""

    id: str
    stream: bool
    tokens: int  # asked for, and not to end before
    sent: float = 0
    first_byte: float | None = None
    ended: float = 0
    status: int | None = None
    received: int = 0  # tokens
    finish: str | None = None
    outcome: Outcome = Outcome.CUT
    detail: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Load:
    """Clients that ask one question after the other until they are stopped; `requests` are those that have ended."""

    addresses: Sequence[tuple[str, int]]
    model: str
    key: str
    clients: int
    #: Tokens of an answer, drawn for each request.
    tokens: Callable[[random.Random], int]
    seed: int = 5
    streams: float = 0.5  # share of requests
    requests: list[Request] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Ask in a thread of its own."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No further question; those that were asked still get their answers."""
        self._stop.set()

    def join(self) -> None:
        """Until every question that was asked has its answer."""
        if self._thread:
            self._thread.join(PATIENCE_SECONDS + 30)

    @contextmanager
    def running(self) -> Generator[Load]:
        """Clients for the block, which ends when the last question has its answer."""
        self.start()
        try:
            yield self
        finally:
            self.stop()
            self.join()

    def wait_for(self, count: int, seconds: float) -> None:
        """Until so many requests have ended; raises TimeoutError."""
        until = time.monotonic() + seconds
        while len(self.requests) < count:
            if time.monotonic() > until:
                raise TimeoutError(f"only {len(self.requests)} of {count} requests in {seconds:.0f} s")
            time.sleep(0.2)

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self.seed}-{number}")  # noqa: S311  repeatable on purpose
        connection: Connection | None = None
        asked = 0
        while not self._stop.is_set():
            if connection is None or asked % KEPT_FOR == 0:
                if connection:
                    connection.close()
                connection = Connection(*self.addresses[number % len(self.addresses)])
            request = Request(
                id=f"{self.seed}-{number}-{asked}", stream=chance.random() < self.streams, tokens=self.tokens(chance)
            )
            asked += 1
            await ask(connection, request, self.model, self.key)
            self.requests.append(request)
            await asyncio.sleep(chance.uniform(0, PAUSE_SECONDS))
            if connection.closed:
                connection = None
        if connection:
            connection.close()


def kinds(requests: Iterable[Request]) -> str:
    """How many of each outcome, in words."""
    counts = Counter(request.outcome for request in requests)
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))


class Connection:
    """A kept connection; opened at the first request."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.closed = False
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, head: str, body: bytes) -> asyncio.StreamReader:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
        self._writer.write(head.encode())
        await self._writer.drain()
        if body:
            await asyncio.sleep(0)
            self._writer.write(body)
            await self._writer.drain()
        return self._reader

    def close(self) -> None:
        self.closed = True
        if self._writer:
            self._writer.close()


async def ask(connection: Connection, request: Request, model: str, key: str) -> None:
    """Send one request and read its answer to the end; what came of it is in `request`."""
    request.sent = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await _exchange(connection, request, model, key)
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        request.detail = request.detail or repr(error)
        connection.close()
    request.ended = time.monotonic()


async def _exchange(connection: Connection, request: Request, model: str, key: str) -> None:
    question: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"Say something, {request.id}."}],
        "max_tokens": request.tokens,
        "ignore_eos": True,
        "stream": request.stream,
    }
    if request.stream:
        question |= {"stream_options": {"include_usage": True}, "return_token_ids": True}
    body = json.dumps(question).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {connection.host}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nX-Request-Id: {request.id}\r\n\r\n"
    )
    reader = await connection.send(head, body)
    request.status, request.headers = await read_head(reader)
    request.first_byte = time.monotonic()
    if request.headers.get("connection", "").lower() == "close":
        connection.closed = True
    if request.status == 200 and request.stream:
        await _read_stream(reader, request)
    else:
        _judge(request, await read_body(reader, request.headers))


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status, and headers with names in lower case."""
    status = (await _line(reader)).split(" ", 2)[1]
    headers = {}
    while line := await _line(reader):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(status), headers


async def read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return b"".join([chunk async for chunk in _chunks(reader)])


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readuntil(b"\r\n")
    return line[:-2].decode("latin-1")


async def _chunks(reader: asyncio.StreamReader) -> Any:
    """The chunks of a body; it ends only where the server says so, and raises EOFError where it does not."""
    while size := int(await _line(reader), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await _line(reader)


def _judge(request: Request, body: bytes) -> None:
    """An answer that came in one piece."""
    if request.status in (429, 503) and "retry-after" in request.headers:
        request.outcome = Outcome.REFUSED
        return
    if request.status != 200:
        request.outcome, request.detail = Outcome.ERROR, f"{request.status} {body[:200]!r}"
        return
    answer = json.loads(body)
    request.received, request.finish = answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]
    request.outcome = _complete(request)


async def _read_stream(reader: asyncio.StreamReader, request: Request) -> None:
    """Server-sent events, counting the tokens themselves; usage and the end must agree with them."""
    said_end, text = False, b""
    usage: Mapping[str, Any] = {}
    async for chunk in _chunks(reader):
        text += chunk
        while b"\n\n" in text:
            event, _, text = text.partition(b"\n\n")
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                said_end = True
                continue
            told = json.loads(data)
            if "error" in told:
                request.outcome, request.detail = Outcome.ERROR, f"in the stream: {data[:200]!r}"
                continue
            usage = told.get("usage") or usage
            for choice in told["choices"]:
                request.received += len(choice.get("token_ids") or ())
                request.finish = choice.get("finish_reason") or request.finish
    if request.outcome is not Outcome.ERROR:
        request.outcome = _complete(request)
        if request.outcome is Outcome.COMPLETE and not (said_end and usage.get("completion_tokens") == request.tokens):
            request.outcome, request.detail = Outcome.TRUNCATED, "no [DONE], or usage says another number"


def _complete(request: Request) -> Outcome:
    if request.finish == "abort":
        return Outcome.ABORTED
    whole = request.received == request.tokens and request.finish == "length"
    return Outcome.COMPLETE if whole else Outcome.TRUNCATED
