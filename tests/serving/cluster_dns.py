"""The cluster's DNS for one headless Service, as AKS runs it: CoreDNS with `ttl 30` and `cache 30`.

AKS does not let its users change either (Azure/AKS#3661), so an edge that asks DNS hears of a change up to 30 seconds
late. Here it is always as late as that can be: whatever changes was cached just before.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

TTL_SECONDS = 30
_A, _IN = 1, 1
_ANSWERS, _NO_SUCH_NAME = 0x8400, 0x8403  # response, authoritative; with NXDOMAIN


class ClusterDns:
    """Answers A questions for one name over UDP; `address` is where."""

    def __init__(self, name: str, ttl_seconds: float = TTL_SECONDS) -> None:
        self.name = name.rstrip(".").lower()
        self.ttl_seconds = ttl_seconds
        self.questions = 0
        self._cached: Sequence[str] = ()
        self._fresh: Sequence[str] = ()
        self._expires = 0.0
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def publish(self, addresses: Sequence[str]) -> None:
        """The addresses that are ready from now on; what is in the cache, or gets there last of all, is told first."""
        with self._lock:
            if list(addresses) == list(self._fresh):
                return
            if time.monotonic() >= self._expires:
                self._cached, self._expires = self._fresh, time.monotonic() + self.ttl_seconds
            self._fresh = list(addresses)

    def answer(self) -> Sequence[str]:
        """What a client hears now."""
        with self._lock:
            return self._now()

    def close(self) -> None:
        self._socket.close()

    def _now(self) -> Sequence[str]:
        return self._cached if time.monotonic() < self._expires else self._fresh

    def _serve(self) -> None:
        while True:
            try:
                question, client = self._socket.recvfrom(4096)
            except OSError:
                return
            if reply := _reply(question, self.name, self.answer, int(self.ttl_seconds)):
                self.questions += 1
                self._socket.sendto(reply, client)


def _reply(message: bytes, known: str, answer: Callable[[], Sequence[str]], ttl: int) -> bytes | None:
    """RFC 1035: the header, the question as it came, and one A record for each address. None for what is no question.

    A name without addresses does not exist, which is CoreDNS' answer for a headless Service without endpoints.
    """
    if len(message) < 17 or message[2] & 0x80:
        return None
    labels, at = [], 12
    while length := message[at]:
        labels.append(message[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    kind, _ = struct.unpack_from("!HH", message, at + 1)
    asked = message[12 : at + 5]
    name = ".".join(labels).lower()
    addresses = answer() if name == known else ()
    flags = _ANSWERS if addresses else _NO_SUCH_NAME
    records = [
        b"\xc0\x0c" + struct.pack("!HHIH", _A, _IN, ttl, 4) + socket.inet_aton(address)
        for address in addresses
        if kind == _A
    ]
    return message[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0) + asked + b"".join(records)
