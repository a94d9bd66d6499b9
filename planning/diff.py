"""What a change means for the people served: two plans of a stack, compared. Pure.

A plan comes as the report's JSON (`docs/report.schema.json`), since the one before may be another revision's, made by
that revision's own planner and presets. A field that no line here knows is shown as it is, under `other`: nothing that
differs is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from planning.diff_lines import (
    STACK_LINES,
    FindingChange,
    Line,
    ModelDiff,
    api_server_text,
    as_said,
    differing,
    edge_text,
    finding_changes,
    finding_text,
    hourly_text,
    model_diffs,
    other_lines,
    setting_lines,
)
from planning.diff_update import Consequence, Kind, update_consequences
from planning.diff_words import Document, Side, at_once_in_all, by_name, percent_change, unused_gib
from planning.words import counted, listed, whole_minutes


@dataclass(frozen=True, kw_only=True)
class StackDiff:
    """Everything that differs, most important first."""

    stack: str
    before: str
    after: str
    verdict: tuple[str, ...]
    consequences: tuple[Consequence, ...]
    models: tuple[ModelDiff, ...]
    stack_lines: tuple[Line, ...]
    findings: tuple[FindingChange, ...]
    settings: tuple[Line, ...]
    other: tuple[Line, ...]
    problems_before: tuple[str, ...]
    problems_after: tuple[str, ...]
    steps: tuple[str, ...]  # still to do before an update, as the stack stands after the change

    @property
    def outage_minutes(self) -> int:
        """The longest time in which a model serves nobody, because of this change."""
        return max((each.outage_minutes for each in self.consequences), default=0)


NOTHING = "Nothing changes for users."


def compare(before: Side, after: Side, stack: str) -> StackDiff:
    """The difference between two sides of one stack."""
    old, new = before.plan or {}, after.plan or {}
    both = bool(old and new)
    consequences = tuple(sorted(update_consequences(before, after), key=lambda each: list(Kind).index(each.kind)))
    models = tuple(model_diffs(old, new)) if both else ()
    stack_lines = tuple(differing(STACK_LINES, old, new)) if both else ()
    findings = tuple(finding_changes(old, new)) if both else ()
    return StackDiff(
        stack=stack,
        before=before.label,
        after=after.label,
        verdict=tuple(_verdict(before, after, consequences)),
        consequences=consequences,
        models=models,
        stack_lines=stack_lines,
        findings=findings,
        settings=tuple(setting_lines(before.config, after.config)),
        other=tuple(other_lines(old, new)) if both else (),
        problems_before=before.problems,
        problems_after=after.problems,
        steps=tuple(finding_text(f) for f in new.get("findings", ()) if f["severity"] == "step"),
    )


def _verdict(before: Side, after: Side, consequences: Sequence[Consequence]) -> Iterator[str]:
    if after.problems:
        yield f"The plan does not stand: {counted(len(after.problems), 'problem')}. It cannot be deployed."
        if before.plan:
            yield "What runs is not touched."
        return
    if after.plan is None:
        yield (
            "The stack file is gone. That alone removes nothing in Azure: `pulumi destroy` does, from a revision that "
            "has the file."
        )
        return
    if before.problems:
        yield f"The plan before the change did not stand ({counted(len(before.problems), 'problem')}); now it does."
        yield from _summary(after.plan)
        return
    if before.plan is None:
        yield "The stack is new."
        yield from _summary(after.plan)
        return
    said = [each.sentence for each in consequences if each.kind not in (Kind.NONE, Kind.IN_PLACE)]
    said += [
        *_uploads(before.plan, after.plan),
        *_measured(before.plan, after.plan),
        *_news(before.plan, after.plan),
        *_endpoint(before.plan, after.plan),
    ]
    said += _exposure(before.plan, after.plan)
    yield from said or [NOTHING]
    yield from (each.sentence for each in consequences if each.kind is Kind.IN_PLACE)
    yield from _money(before.plan, after.plan)


def _summary(plan: Document) -> Iterable[str]:
    return plan.get("verdict", ())


def _uploads(old: Document, new: Document) -> Iterator[str]:
    """Jobs that copy weights before replicas of a new commit can start."""
    there = {upload["model_path"] for upload in old.get("uploads", ())}
    startup = {model["name"]: model["startup"] for model in new["models"]}
    for upload in new.get("uploads", ()):
        if upload["model_path"] not in there:
            name = upload["model"]
            minutes = whole_minutes(startup[name]["upload_seconds"])
            yield f"{name}: first its weights are uploaded to the storage account, about {minutes} minutes."


def _measured(old: Document, new: Document) -> Iterator[str]:
    """Jobs that put load on the models: a Job that was there already has done so."""
    there = {each["job"] for each in old.get("benchmarks", ())}
    for each in new.get("benchmarks", ()):
        if each["job"] not in there:
            yield f"{each['model']}: a benchmark sends it {each['requests']:,} requests; all others share it with them."


def _news(old: Document, new: Document) -> Iterator[str]:
    """What people notice who send requests."""
    olds = by_name(old["models"])
    for name, model in by_name(new["models"]).items():
        was = olds.get(name)
        if was is None:
            continue
        here, there = model["memory"], was["memory"]
        length, former = here["max_model_len"], there["max_model_len"]
        if model["preset"]["name"] != was["preset"]["name"]:
            yield f"{name}: another model answers, {model['preset']['name']} instead of {was['preset']['name']}."
        if model["served_model_name"] != was["served_model_name"]:
            yield (
                f"{name}: clients must ask for {model['served_model_name']}; requests for {was['served_model_name']} "
                "are answered 404, and while replicas of both versions run, either may be."
            )
        if length > former:
            yield f"{name}: requests may be up to {length:,} tokens long instead of {former:,}."
        elif length < former:
            yield f"{name}: requests longer than {length:,} tokens are refused; {former:,} was the limit."
        tokens, earlier = here["kv_cache_tokens"], there["kv_cache_tokens"]
        if tokens != earlier:
            yield (
                f"{name}: {abs(tokens - earlier):,} tokens of KV cache {'gained' if tokens > earlier else 'lost'} in "
                f"each replica ({percent_change(earlier, tokens)})."
            )
        at_once, then = at_once_in_all(model), at_once_in_all(was)
        if f"{at_once:.1f}" != f"{then:.1f}":
            yield (
                f"{name}: {at_once:.1f} requests of full length at once in all replicas instead of {then:.1f} "
                f"({percent_change(then, at_once)})."
            )
        if here["gpu_memory_utilization"] > there["gpu_memory_utilization"]:
            yield (
                f"{name}: risk: only {unused_gib(model):.1f} GiB of each GPU stay outside vLLM's share instead of "
                f"{unused_gib(was):.1f}; what its profile does not see, or the plan's error (± {here['error_gib']:g} "
                "GiB), then ends in an out-of-memory error at start-up or under load."
            )


def _endpoint(old: Document, new: Document) -> Iterator[str]:
    """What changes for clients that call as they did."""
    was, now = old["edge"], new["edge"]
    if "clients" not in was:  # a revision that did not know
        return
    for name, path in now["base_paths"].items():
        former = was["base_paths"].get(name, path)
        if former != path:
            yield f"{name}: clients must call {path} instead of {former}, which is answered 404 from then on."
    closed = [path for path in was["paths"] if path not in now["paths"]]
    opened = [path for path in now["paths"] if path not in was["paths"]]
    if closed:
        yield f"Requests to {listed(closed)} are refused from then on."
    if opened:
        yield f"Exposure: {listed(opened)} can be called, too."
    if was["clients"]:
        yield from _clients(was["clients"], now["clients"])
    if was["max_body_mib"] != now["max_body_mib"]:
        yield f"Requests may be up to {now['max_body_mib']} MiB large instead of {was['max_body_mib']}."


def _clients(was: Mapping[str, int | None], now: Mapping[str, int | None]) -> Iterator[str]:
    gone, added = [name for name in was if name not in now], [name for name in now if name not in was]
    if gone and now:
        yield f"Requests with the key of {listed(gone)} are refused from then on."
    if added:
        yield f"Exposure: {listed(added)} may use the models, too."
    for name in was:
        if name in now and was[name] != now[name]:
            limit, former = (f"{each:,}" if each else "any number" for each in (now[name], was[name]))
            yield f"Requests that {name} may make in a minute: {limit} instead of {former}."


def _exposure(old: Document, new: Document) -> Iterator[str]:
    """Who reaches what."""
    for what, words in (("the API server's access is", api_server_text), ("the models' endpoint is", edge_text)):
        before, after = as_said(words, old), as_said(words, new)
        if before != after:
            yield f"Exposure: {what} {after} instead of {before}."


def _money(old: Document, new: Document) -> Iterator[str]:
    then, now = old["cost"]["gpu_pools_per_hour"], new["cost"]["gpu_pools_per_hour"]
    if then == now:
        return
    if then is None or now is None:
        known = "is not known any more" if now is None else "is known now"
        yield f"The price of the GPU nodes {known}: {hourly_text(old)} → {hourly_text(new)} an hour."
        return
    more = "more" if now > then else "less"
    hours = new["cost"]["gpu_pools_per_month"] - old["cost"]["gpu_pools_per_month"]
    yield f"The GPU nodes cost ${abs(now - then):,.2f} an hour {more} (${abs(hours):,.0f} a month)."
