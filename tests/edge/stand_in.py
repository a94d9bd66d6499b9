"""What stands around the edge in these tests: replicas, the cluster's DNS, clients. One event loop, loopback only."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

PORT = 8000  # of every replica, as vLLM's


class Dns(asyncio.DatagramProtocol):
    """Answers for one name with the addresses of its ready replicas, and NXDOMAIN where there is none."""

    def __init__(self, name: str, ready: list[str]) -> None:
        self.name, self.ready = name, ready

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        question = data[12 : at + 5]
        found = self.ready if ".".join(labels) == self.name and data[at + 1 : at + 3] == b"\x00\x01" else []
        flags = 0x8580 if found else 0x8583
        answer = data[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + question
        for address in found:
            answer += struct.pack(">HHHIH", 0xC00C, 1, 1, 1, 4) + bytes(map(int, address.split(".")))
        self.transport.sendto(answer, addr)


class Replica:
    """Behaves as vLLM does where the edge can tell: /health, streams, silent answers, both ways of draining.

    The body says what to do: `{"chunks": n, "every": seconds}` streams, `{"after": seconds}` answers in one piece.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.active = self.peak = self.served = 0
        self.hang_ups: list[float] = []  # loop times
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.refusing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Replica:
        self.server = await asyncio.start_server(self._connection, self.address, PORT, backlog=512)
        return self

    def close_listener(self) -> None:
        """SIGTERM of a server that closes its listener and drains."""
        self.server.close()

    def kill(self) -> None:
        """SIGKILL."""
        self.server.close()
        for task in self._tasks:
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._answer(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *rest = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest if one)}
        path = line.split()[1]
        if path == "/health":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((line, headers))
        if self.refusing:
            writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}")
            return
        asked = json.loads(body or b"{}")
        self.active += 1
        self.peak = max(self.peak, self.active)
        gone = asyncio.ensure_future(reader.read(1))  # ends when the edge hangs up
        try:
            if "chunks" in asked:
                await self._stream(writer, gone, asked["chunks"], asked["every"])
            else:
                await asyncio.wait([gone], timeout=asked.get("after", 0))
                if gone.done():
                    raise ConnectionResetError
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()
            self.served += 1
        except ConnectionResetError:
            self.hang_ups.append(asyncio.get_running_loop().time())
        finally:
            gone.cancel()
            self.active -= 1

    async def _stream(
        self, writer: asyncio.StreamWriter, gone: asyncio.Future[bytes], chunks: int, every: float
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(chunks):
            await asyncio.wait([gone], timeout=every)
            if gone.done():
                raise ConnectionResetError
            writer.write(b"6\r\ndata x\r\n")
            await writer.drain()
        writer.write(b"6\r\n[DONE]\r\n0\r\n\r\n")


@dataclass
class Answer:
    """What a client got. `cut`: the connection ended before the answer did."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False

    @property
    def done(self) -> bool:
        """A whole, successful answer."""
        return self.status == 200 and not self.cut


NOTHING = Answer(status=0, cut=True)


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One HTTP answer; NOTHING where the connection ended without one."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (OSError, asyncio.IncompleteReadError):
        return NOTHING
    line, *rest = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest if one)}
    answer = Answer(status=int(line.split()[1]), headers=headers)
    try:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                answer.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            answer.body = await reader.readexactly(int(headers.get("content-length", 0)))
    except (OSError, asyncio.IncompleteReadError):
        answer.cut = True
    return answer


@asynccontextmanager
async def connection(
    address: tuple[str, int], **options: Any
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection, closed afterwards whatever happened."""
    reader, writer = await asyncio.open_connection(*address, **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def request(path: str, body: Any = None, *, method: str | None = None, key: str | None = None, **headers: str) -> bytes:
    """The bytes of a request; with a body a POST."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", "Host: edge"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Content-Length: {len(content)}"] if body is not None else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


async def ask(address: tuple[str, int], data: bytes, *, split: bool = True, **options: Any) -> Answer:
    """One request on a connection of its own. Head and body in two packets, as Python's http.client sends them."""
    try:
        async with connection(address, **options) as (reader, writer):
            head, _, body = data.partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            if body:
                await writer.drain()
                await asyncio.sleep(0.005 if split else 0)
                with suppress(OSError):
                    writer.write(body)
                    await writer.drain()
            return await read_answer(reader)
    except OSError:
        return NOTHING
