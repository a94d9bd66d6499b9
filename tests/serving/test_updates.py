"""Updates and crashes under load: what clients lose, counted token by token on real engines behind the real edge."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.serving.clients import Load, Outcome, Request, kinds
from tests.serving.cluster import KEY, MODEL_ADDRESSES, START_SECONDS, Cluster, with_defaults
from tests.serving.engine_state import RUNNING, gauge
from tests.serving.kubelet import Pod

pytestmark = pytest.mark.engine

CLIENTS = 36
REQUESTS = 2000
LONG_SHARE, LONG_TOKENS, SHORT_TOKENS = 1 / 15, (500, 900), (8, 64)
#: By the time of SIGTERM the edge has long forgotten the replica, and most of its answers have ended. So that some are
#: under way for sure, so many clients ask it for one more, without the edge, just before.
LAST_CLIENTS, LAST_TOKENS = 8, 500
LOAD_SECONDS, LAST_SECONDS = 1800, 30  # at most


@dataclass(frozen=True, kw_only=True)
class Update:
    """Both replicas replaced under load."""

    requests: list[Request]
    under_way: dict[str, float]  # pod -> requests it worked on when SIGTERM came
    events: dict[str, list[str]]  # pod that was replaced -> what happened to it
    seconds: float

    @property
    def counts(self) -> Counter[Outcome]:
        return Counter(request.outcome for request in self.requests)

    @property
    def line(self) -> str:
        lost = len(self.requests) - self.counts[Outcome.COMPLETE]
        return (
            f"{len(self.requests)} requests, {lost} lost ({kinds(self.requests)}); "
            f"{sum(self.under_way.values()):.0f} under way at SIGTERM; {self.seconds:.0f} s"
        )


@dataclass(frozen=True, kw_only=True)
class Updates:
    """The same load over an update of pods that stop as rendered, and of pods that stop by everybody's defaults."""

    rendered: Update
    defaults: Update


def _tokens(chance: random.Random) -> int:
    return chance.randint(*(LONG_TOKENS if chance.random() < LONG_SHARE else SHORT_TOKENS))


def _load(cluster: Cluster, seed: int) -> Load:
    return Load(
        addresses=cluster.edges, model=cluster.served_model, key=KEY, clients=CLIENTS, tokens=_tokens, seed=seed
    )


def _replaced_under_load(cluster: Cluster, manifest: dict, seed: int) -> Update:
    under_way: dict[str, float] = {}
    last: list[Load] = []
    old = [pod.name for pod in cluster.models.pods]

    def ask_once_more(pod: Pod) -> None:
        load = Load(
            addresses=[(pod.address, pod.port)],
            model=cluster.served_model,
            key="none",
            clients=LAST_CLIENTS,
            tokens=lambda chance: LAST_TOKENS,
            seed=10 * seed + len(last),
        )
        last.append(load)
        load.start()
        until = time.monotonic() + LAST_SECONDS
        while (gauge(pod.address, RUNNING) or 0) < LAST_CLIENTS and time.monotonic() < until:
            time.sleep(0.05)
        load.stop()
        under_way[pod.name] = gauge(pod.address, RUNNING) or 0

    cluster.models.before_term = ask_once_more
    cluster.wait_known()
    started = time.monotonic()
    with _load(cluster, seed).running() as load:
        load.wait_for(2 * CLIENTS, LOAD_SECONDS)
        cluster.models.update(manifest, START_SECONDS)
        load.wait_for(REQUESTS, LOAD_SECONDS)
    seconds = time.monotonic() - started
    for asked in last:
        asked.join()
    events = {name: [event.what for event in cluster.models.events if event.pod == name] for name in old}
    requests = [request for each in (load, *last) for request in each.requests]
    return Update(requests=requests, under_way=under_way, events=events, seconds=seconds)


@pytest.fixture(scope="module")
def updates(cluster: Cluster) -> Updates:
    """Four starts of vLLM for both: the first update's new pods stop by the defaults in the second one."""
    rendered = dict(cluster.models.manifest)
    first = _replaced_under_load(cluster, with_defaults(rendered), seed=1)
    second = _replaced_under_load(cluster, rendered, seed=2)
    print(f"\nUpdate as rendered: {first.line}\nUpdate by the defaults: {second.line}")
    return Updates(rendered=first, defaults=second)


def test_an_update_of_both_replicas_loses_no_request_and_no_token(updates: Updates) -> None:
    update = updates.rendered
    lost = [request for request in update.requests if request.outcome is not Outcome.COMPLETE]
    assert not lost, f"{len(lost)} of {len(update.requests)}: {lost[:5]}"
    assert len(update.requests) >= REQUESTS
    streams = sum(request.stream for request in update.requests)
    assert 0.25 < streams / len(update.requests) < 0.75, "both kinds of answers must have been at risk"


def test_the_replicas_went_as_the_manifest_says_with_answers_under_way(updates: Updates) -> None:
    update = updates.rendered
    assert len(update.events) == len(MODEL_ADDRESSES)
    for pod, events in update.events.items():
        assert events[-4:] == ["deleted", "preStop", "SIGTERM", "gone"], f"{pod}: {events}"
    assert all(number >= 1 for number in update.under_way.values()), "with nothing under way, no drain was seen"


def test_the_same_load_loses_answers_by_the_usual_defaults(updates: Updates) -> None:
    update = updates.defaults
    assert len(update.requests) >= REQUESTS
    assert len(update.requests) > update.counts[Outcome.COMPLETE], "then the test above could not fail either"


def test_a_killed_engine_fails_only_what_it_was_working_on(cluster: Cluster) -> None:
    cluster.wait_known()
    victim = cluster.models.pods[0]
    with _load(cluster, seed=3).running() as load:
        load.wait_for(CLIENTS, LOAD_SECONDS)
        victim.crash()
        load.wait_for(len(load.requests) + 5 * CLIENTS, LOAD_SECONDS)
    replica = cluster.replicas_by_request()
    failed = [request for request in load.requests if request.outcome is not Outcome.COMPLETE]
    died = next(event.at for event in cluster.models.events if event.pod == victim.name and event.what == "ended")
    # Where a replica dies under a request that is not the first one on its connection, HAProxy closes that without a
    # word, and without a line in its log.
    others = [each for each in failed if replica.get(each.id, victim.address) != victim.address or each.sent > died]
    print(
        f"\nSIGKILL: {len(failed)} of {len(load.requests)} requests failed ({kinds(failed)}), {len(others)} of them "
        "without having been on the engine that was killed"
    )
    assert failed, "nobody was served by the engine that was killed"
    assert not others, f"{len(others)} could have been answered by the other replica: {others[:3]}"
    silent = [request for request in failed if request.outcome not in (Outcome.CUT, Outcome.ERROR)]
    assert not silent, f"{len(silent)} clients cannot see that, or were sent away: {silent[:3]}"
