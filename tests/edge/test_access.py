"""Who gets in, to what, and what everybody else is told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import ssl
import string
from pathlib import Path
from typing import Any

import pytest

from tests.edge import certificates
from tests.edge.stand import CHAT, VAULT, plan, standing
from tests.edge.stand_in import Answer, ask, connection, read_answer, request

KEY, OTHER, SLOW = "key-of-team-a", "key-of-team-b", "key-of-team-c"
PROMPT = "a prompt that nobody else may read"


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


KEYS = {
    "team-a": {"sha256": _hash(KEY)},
    "team-b": {"sha256": _hash(OTHER)},
    "team-c": {"sha256": _hash(SLOW), "requests-per-minute": 6},
}

#: Ways to write a route that is closed, or that is open only as it is written.
TRICKS = (
    "//invocations",
    "/v1/../invocations",
    "/v1/chat/completions/../../../invocations",
    "/v1/chat/completions/",
    "/V1/chat/completions",
    "/v1%2fchat/completions",
    "/v1/chat/completions;x=1",
    "/./v1/chat/completions",
    "http://edge/v1/chat/completions",
    "/invocations?/v1/chat/completions",
)


def test_only_who_has_a_key_gets_to_the_open_routes_and_no_further(tmp_path: Path) -> None:
    asyncio.run(_routes(tmp_path))


async def _routes(folder: Path) -> None:
    async with standing(folder, edge=plan(edge={"keys": KEYS, "max-body-mib": 1})) as stand:
        closed = ["/invocations", "/metrics", "/tokenize", "/v1/responses", "/load", "/sleep", "/docs", "/health"]
        for path in [*closed, *TRICKS, CHAT]:
            for key in (None, "wrong", _hash(KEY)):
                answer = await stand.ask(path, {"prompt": PROMPT}, key=key)
                assert answer.status == 401, f"{path} with {key}: strangers must not tell routes apart"
        for path in [*closed, *TRICKS]:
            answer = await stand.ask(path, {"prompt": PROMPT}, key=KEY)
            assert answer.status == 404, path
        assert (await stand.ask(CHAT, None, key=KEY)).status == 404, "GET on a route that is POST"
        seen = {line.split()[1] for replica in stand.replicas for line, _ in replica.requests}
        assert seen == set(), "nothing that was refused may reach a replica"

        for key in (KEY, OTHER):
            assert (await stand.ask(CHAT, {"prompt": PROMPT}, key=key)).status == 200
        assert (await stand.ask("/v1/models?limit=1", key=KEY)).status == 200, "a query is no other route"
        lower = await stand.ask(CHAT, {}, Authorization=f"bearer {KEY}")
        assert lower.status == 200, "the scheme's case is free"
        twice = await stand.ask(CHAT, {}, key="wrong", Authorization=f"Bearer {KEY}")
        assert twice.status == 401, "of two keys neither counts"
        for replica in stand.replicas:
            for line, headers in replica.requests:
                assert "authorization" not in headers, f"{line}: the key is the edge's business"

        # Bodies.
        allowed = {"prompt": "x" * ((1 << 20) - 14)}
        assert len(json.dumps(allowed)) == 1 << 20
        assert (await stand.ask(CHAT, allowed, key=KEY)).status == 200, "as large as allowed"
        # Before the body is sent: as with curl, which asks first.
        large = request(CHAT, b"", key=KEY).replace(b"Content-Length: 0", b"Content-Length: 1048577")
        assert (await ask(stand.address, large)).status == 413
        # Who sends it all the same may find the connection closed under it.
        assert (await stand.ask(CHAT, b"x" * ((1 << 20) + 1), key=KEY)).status in (413, 0)
        chunked = request(CHAT, None, method="POST", key=KEY, Transfer_Encoding="chunked") + b"2\r\n{}\r\n0\r\n\r\n"
        assert (await ask(stand.address, chunked)).status == 411, "a body of unknown size cannot be bounded"

        # The rate, of which each of two pods lets half through.
        first = [await stand.ask(CHAT, {}, key=SLOW) for _ in range(5)]
        assert [answer.status for answer in first] == [200, 200, 200, 429, 429]
        assert first[-1].headers["retry-after"]
        assert (await stand.ask(CHAT, {}, key=KEY)).status == 200, "the others are not held up"

        # The request's id.
        named = await stand.ask(CHAT, {}, key=KEY, X_Request_Id="abc-1")
        assert named.headers["x-request-id"] == "abc-1"
        forged = await stand.ask(CHAT, {}, key=KEY, X_Request_Id='"},{"key":"')
        assert len(forged.headers["x-request-id"]) == 36, "what could break the log is replaced"
        assert any(headers.get("x-request-id") == "abc-1" for r in stand.replicas for _, headers in r.requests)

        # The log.
        await stand.until(lambda: len(stand.lines()) >= 60, "the log is written")
        lines = stand.lines()
        text = stand.log.read_text()
        assert not [secret for secret in (KEY, OTHER, SLOW, PROMPT, "wrong", "invocations") if secret in text]
        assert {"team-a", "team-b", "team-c", "-"} == {line["key"] for line in lines}
        assert [line["id"] for line in lines].count("abc-1") == 1
        whole = next(line for line in lines if line["id"] == "abc-1")
        assert (whole["status"], whole["state"], whole["route"]) == (200, "--", f"POST:{CHAT}")
        assert whole["replica"] in stand.ready


def test_a_refusal_is_json_as_openais_clients_read_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path, edge=plan(edge={"keys": KEYS}), replicas=0) as stand:
            answers = [
                await stand.ask(CHAT, {}),
                await stand.ask("/x", {}, key=KEY),
                await stand.ask(CHAT, {}, key=KEY),
            ]
            assert [answer.status for answer in answers] == [401, 404, 503]
            for answer in answers:
                assert json.loads(answer.body)["error"]["message"]
            assert answers[2].headers["retry-after"], "with no replica there, a client should come back"

    asyncio.run(run())


def test_several_models_each_have_their_own_routes(tmp_path: Path) -> None:
    models = {name: {"preset": "qwen3-8b", "vm-size": "Standard_NC40ads_H100_v5"} for name in ("chat", "code")}

    async def run() -> None:
        async with standing(tmp_path, edge=plan(models=models), replicas=1) as stand:
            assert (await stand.ask(f"/chat{CHAT}?x=1", {})).status == 200
            ((line, _),) = stand.replicas[0].requests
            assert line.startswith(f"POST {CHAT}?x=1 "), "vLLM knows its own routes only"
            assert (await stand.ask(f"/code{CHAT}", {})).status == 503, "the other model has no replica here"
            for path in (CHAT, f"/other{CHAT}", f"/chat/chat{CHAT}", "/chat/invocations"):
                assert (await stand.ask(path, {})).status == 404, path

    asyncio.run(run())


def test_rubbish_is_refused_and_leaves_the_edge_as_it_was(tmp_path: Path) -> None:
    asyncio.run(_rubbish(tmp_path))


async def _rubbish(folder: Path) -> None:
    malformed = (
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"GET /v1/models#x HTTP/1.1\r\nHost: edge\r\n\r\n",
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: edge\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: edge\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost : edge\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: edge\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    async with standing(folder, edge=plan(edge={"keys": KEYS})) as stand:
        for data in malformed:
            answer = await ask(stand.address, data)
            assert answer.status in (0, 400, 401, 431, 505), f"{data[:40]!r}: {answer}"
        # Slow heads, slow bodies, and connections on which nothing is ever said: many at once, and others are served.
        head = request(CHAT, {"prompt": PROMPT}, key=KEY)
        pieces = [head[:60]] * 20 + [head[:-5]] * 20 + [b""] * 20
        slow = [asyncio.ensure_future(_slow(stand.address, data)) for data in pieces]
        await asyncio.sleep(0.5)
        assert (await stand.ask(CHAT, {}, key=KEY)).status == 200, "slow clients hold nobody up"
        assert max(replica.active for replica in stand.replicas) == 0, "half a request takes no replica's place"

        # 10,000 paths that nobody has, on a few connections.
        await _paths(stand.address, 500)
        before = stand.memory_mib()
        done = await asyncio.gather(*(_paths(stand.address, 2_375) for _ in range(4)))
        assert {status for statuses in done for status in statuses} <= {404, 400}, "a path was found that nobody has"
        assert stand.memory_mib() - before < 8, "memory grows with what strangers send"
        assert {answer.status for answer in await asyncio.gather(*slow)} <= {408, 0}
        assert (await stand.ask(CHAT, {}, key=KEY)).status == 200, "the edge is as it was"
        assert not [replica for replica in stand.replicas if len(replica.requests) > 2]


async def _slow(address: tuple[str, int], data: bytes) -> Answer:
    async with connection(address) as (reader, writer):
        writer.write(data)
        return await asyncio.wait_for(read_answer(reader), 60)


async def _paths(address: tuple[str, int], count: int) -> set[int]:
    """Statuses of so many random paths, on kept connections."""
    chance = random.Random(count)  # noqa: S311  nothing secret
    statuses: set[int] = set()
    left = count
    while left > 0:
        async with connection(address) as (reader, writer):
            while left > 0:
                left -= 1
                path = "/" + "".join(chance.choices(string.ascii_letters + "/.%;~0123456789", k=24))
                writer.write(request(path, key=KEY))
                answer = await read_answer(reader)
                statuses.add(answer.status)
                if answer.headers.get("connection") == "close" or answer.status in (0, 400):
                    break
    return statuses - {0}


@pytest.mark.parametrize("vaulted", [False, True], ids=["Secret", "vault"])
def test_a_renewed_certificate_is_taken_up_while_streams_go_on(tmp_path: Path, vaulted: bool) -> None:
    asyncio.run(_renewal(tmp_path / "haproxy", vaulted))


async def _renewal(folder: Path, vaulted: bool) -> None:
    folder.mkdir()
    certificates.put(folder, "llm.example.com", vaulted=vaulted)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    options: dict[str, Any] = {"ssl": context, "server_hostname": "llm.example.com"}

    edge = plan(edge={"keys": KEYS}, key_vault=VAULT) if vaulted else plan(edge={"keys": KEYS, "tls-secret": "tls"})
    async with standing(folder, edge=edge) as stand:

        async def presented() -> str:
            async with connection(stand.address, **options) as (_, writer):
                found = writer.get_extra_info("ssl_object")
                assert found.selected_alpn_protocol() in (None, "http/1.1")
                return ssl.DER_cert_to_PEM_cert(found.getpeercert(binary_form=True))

        async def renewed(certificate: str) -> bool:
            return await presented() == certificate

        data = request(CHAT, {"chunks": 140, "every": 0.1}, key=KEY)
        streams = [asyncio.ensure_future(ask(stand.address, data, **options)) for _ in range(16)]
        first = await presented()
        second = certificates.put(folder, "llm.example.com", vaulted=vaulted)
        assert second != first
        await stand.until(lambda: renewed(second), "the renewed certificate is in use")
        certificates.place(folder, vaulted).write_text("half a certif")
        await stand.until(lambda: "cannot be used" in stand.log.read_text(), "what cannot be used is told")
        assert await presented() == second, "the one before stays in use"
        assert all(answer.done for answer in await asyncio.gather(*streams)), "a renewal cuts nobody off"
        old = ssl.create_default_context()
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        refused = await _refused(stand.address, ssl=old, server_hostname="x")
        assert refused, "TLS 1.1 must be refused"


async def _refused(address: tuple[str, int], **options: Any) -> bool:
    try:
        async with connection(address, **options):
            return False
    except (OSError, ssl.SSLError):
        return True
