"""Questions over HTTP, with timeouts and retries, and what went wrong in words."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from preflight.checks import NotDone

#: Seconds until a server that is connected to counts as not answering.
TIMEOUT_SECONDS = 20
TRIES = 3
#: Seconds before another try where the server names none, and the longest that it may ask for.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 10.0
#: Too many requests, and what a server says that is unwell for a moment.
TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_WORDS = {
    401: "wants a sign-in",
    403: "refuses",
    404: "does not know it",
    429: "has had too many requests from this address; wait some minutes",
}


class LookupFailed(NotDone):
    """Something could not be found out; the text says what, where and why. `answer` is what the server said, if any."""

    def __init__(self, text: str, answer: httpx.Response | None = None) -> None:
        super().__init__(text, "Run it again.")
        self.answer = answer

    @property
    def status(self) -> int | None:
        """The HTTP status, where there was an answer."""
        return None if self.answer is None else self.answer.status_code


def ask(
    url: str,
    *,
    what: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    redirects: bool = True,
) -> httpx.Response:
    """The answer to a question about `what`, a redirection too unless `redirects`. Raises LookupFailed.

    `form` is the body of a POST, for what does not belong into an address: tokens.
    """
    host = urlsplit(url).netloc
    sent = {"User-Agent": "aks-vllm", **(headers or {})}
    answer = None
    for left in range(TRIES - 1, -1, -1):
        try:
            answer = httpx.request(
                method,
                url,
                params=parameters,
                data=form,
                headers=sent,
                timeout=TIMEOUT_SECONDS,
                follow_redirects=redirects,
                verify=_trusted(),
            )
        except httpx.TimeoutException:
            raise LookupFailed(f"{what}: {host} did not answer within {TIMEOUT_SECONDS} seconds") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            if left:
                time.sleep(PAUSE_SECONDS)
                continue
            raise LookupFailed(f"{what}: cannot reach {host}: {error or type(error).__name__}") from None
        pause = _pause(answer)
        if answer.status_code not in TRY_AGAIN or not left or pause > LONGEST_PAUSE_SECONDS:
            break
        time.sleep(pause)
    assert answer is not None
    if answer.status_code >= 400:
        reason = _WORDS.get(answer.status_code, "failed")
        raise LookupFailed(f"{what}: {host} {reason} (HTTP {answer.status_code})", answer)
    return answer


def ask_json(url: str, *, what: str, **options: Any) -> Any:
    """The JSON of an answer, None where it is empty. Raises LookupFailed."""
    answer = ask(url, what=what, **options)
    try:
        return answer.json() if answer.content else None
    except ValueError:
        raise LookupFailed(f"{what}: {urlsplit(url).netloc} did not answer with JSON") from None


@cache
def _trusted() -> ssl.SSLContext:
    """Whom to trust, SSL_CERT_FILE honoured; made once, because reading the certificates takes longer than asking."""
    return httpx.create_ssl_context()


def _pause(answer: httpx.Response) -> float:
    """Seconds that the server asks for; RFC 9110 allows a date too, which nobody asked here sends."""
    try:
        return max(0.0, float(answer.headers.get("Retry-After", PAUSE_SECONDS)))
    except ValueError:
        return PAUSE_SECONDS
