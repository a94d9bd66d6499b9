"""What a running vLLM says of itself in its metrics."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


def gauge(address: str, name: str, port: int = 8000) -> float | None:
    """One number of `/metrics`; None where the engine does not answer."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", connection.getresponse().read().decode(), re.M)
        return float(found[1]) if found else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@contextmanager
def peaks(addresses: Sequence[str], names: Sequence[str]) -> Generator[Mapping[str, float]]:
    """The largest sum of these gauges that each engine shows while the block runs."""
    largest: dict[str, float] = dict.fromkeys(addresses, 0)
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for address in addresses:
                values = [gauge(address, name) for name in names]
                largest[address] = max(largest[address], sum(value or 0 for value in values))
            time.sleep(0.2)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield largest
    finally:
        stop.set()
        thread.join(30)
