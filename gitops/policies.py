"""The policy pack's rules on what the program declares, offline: recorded by the sandbox's engine, nothing is made."""

from __future__ import annotations

from pathlib import Path

from planning.diff_page import escaped
from policy import rules
from policy.rules import Outcome, Resource, Stack, Violation
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
    """Markdown: what is broken or exempted, then, folded, every policy and how many resources it has looked at."""
    told = [outcome for outcome in outcomes if outcome.violations or outcome.exempted]
    holding = sum(1 for outcome in outcomes if outcome.subjects and outcome not in told)
    lines = ["### Policies", ""]
    for outcome in told:
        mark = "🛑 " if outcome.refuses else "⚠️ " if outcome.violations else ""
        texts = [_words(each) for each in outcome.violations]
        texts += [f"exempted: {_words(each)} ({why})" for each, why in outcome.exempted]
        lines += [f"- {mark}{outcome.rule.name}: {escaped(text)}" for text in texts]
    lines += [
        "",
        f"<details><summary>{holding} of {len(outcomes)} hold</summary>",
        "",
        "| | looked at | |",
        "|---|---:|---|",
    ]
    for outcome in outcomes:
        state = "holds" if outcome.subjects else "nothing to look at"
        lines.append(f"| {outcome.rule.name} | {outcome.subjects} | {'see above' if outcome in told else state} |")
    lines += ["", "</details>"]
    refusing = [outcome.rule.name for outcome in outcomes if outcome.refuses]
    if refusing:
        lines += ["", f"**Refused by {', '.join(refusing)}.** docs/policies.md says why each is there."]
    return "\n".join(lines)


def _words(violation: Violation) -> str:
    """The message, and whose it is; where that is the stack itself, the message says so."""
    return f"{violation.resource}: {violation.message}" if violation.resource else violation.message


def check(root: Path, stack: str) -> list[Outcome]:
    """Every policy on a stack. Raises also ExemptionError."""
    return rules.run(graph(root, stack), rules.exemptions())
