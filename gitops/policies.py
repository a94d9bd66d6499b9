"""The policy pack's rules on what the program declares, offline: recorded by the sandbox's engine, nothing is made."""

from __future__ import annotations

from pathlib import Path

from planning.diff_page import escaped
from policy import rules
from policy.rules import Outcome, Resource, Stack
from sandbox.__main__ import read_config
from sandbox.engine import Recording, record
from sandbox.values import masked

#: Takes the place of a token and of a kubeconfig: the program only hands them on.
STAND_IN = "not-a-secret"


def graph(root: Path, stack: str) -> Stack:
    """What the program declares for a stack file. Raises RefusedError and RunFailedError, as the sandbox does."""
    config = read_config(root / "stacks" / f"Pulumi.{stack}.yaml", (), STAND_IN, STAND_IN)
    return of_recording(record(root, stack, config.values, config.secret_keys))


def of_recording(recording: Recording) -> Stack:
    """Resources with their secrets masked."""
    return Stack(
        [
            Resource(
                urn=each.urn,
                type=each.type,
                name=each.name,
                props=masked(dict(each.inputs)),
                protect=bool(each.protect),
            )
            for each in recording.registrations
        ]
    )


def block(outcomes: list[Outcome]) -> str:
    """Markdown: every policy, and how many resources it has looked at."""
    lines = ["### Policies", "", "| | looked at | |", "|---|---:|---|"]
    for outcome in outcomes:
        texts = [f"**{each.resource or 'the stack'}** {each.message}" for each in outcome.violations]
        texts += [f"exempted: {each.resource or 'the stack'} {each.message} ({why})" for each, why in outcome.exempted]
        holds = "holds" if outcome.subjects else "nothing to look at"
        mark = "🛑 " if outcome.refuses else "⚠️ " if outcome.violations else ""
        name = outcome.rule.name
        lines.append(f"| {mark}{name} | {outcome.subjects} | {'<br>'.join(map(escaped, texts)) or holds} |")
    refusing = [outcome.rule.name for outcome in outcomes if outcome.refuses]
    if refusing:
        lines += ["", f"**Refused by {', '.join(refusing)}.** docs/policies.md says why each is there."]
    return "\n".join(lines)


def check(root: Path, stack: str) -> list[Outcome]:
    """Every policy on a stack. Raises also ExemptionError."""
    return rules.run(graph(root, stack), rules.exemptions())
