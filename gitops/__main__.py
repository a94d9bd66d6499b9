"""The steps of the workflows: what a change touches, previews, policies, deployment, drift, and the rehearsal of all.

Exit codes: 0 done, 1 failed, refused or rolled back, 2 the input is wrong. Words go to standard error; standard output
has what the next step takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gitops import comment, preview
from planning import diff, diff_page, revision, stack_file
from planning.diff_page import escaped
from planning.findings import InvalidStack, without_tokens

ROOT = Path(__file__).parents[1]

#: What every stack is made of: where one of these changes, each stack may.
EVERY_STACK = ("__main__.py", "Pulumi.yaml", "components/", "planning/", "presets/", "policy/", "requirements.txt")

say: Callable[[str], None] = lambda text: print(without_tokens(text), file=sys.stderr, flush=True)  # noqa: E731


class InputError(Exception):
    """The input is wrong; the text says what, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (InputError, revision.RevisionError) as error:
        say(str(error))
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gitops", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    stacks = command("stacks", _stacks, "the stacks that a change may touch, as a JSON list")
    stacks.add_argument("--base", required=True, help="the git revision before the change")

    shown = command("preview", _preview, "the comment for a pull request")
    words = "the stack before: a git revision, a stack file, or last-good: the revision that was deployed last"
    shown.add_argument("--base", required=True, help=words)
    shown.add_argument("--footer", default="", help="a last line, such as where the job's log is")

    checked = command("policy", _policy, "the policies on what the program declares, offline")
    deployed = command("deploy", _deploy, "update the stack, watch, verify, and roll back where that is safe")
    deployed.add_argument("--patience", type=float, metavar="SECONDS", help="until a pod that cannot start ends it")
    drifted = command("drift", _drift, "what is not as declared any more; writes --out only where there is something")
    for parser_ in (shown, checked, deployed, drifted):
        parser_.add_argument("--stack", required=True, help="stacks/Pulumi.STACK.yaml")
    for parser_ in (shown, deployed, drifted):
        with_ = ("pulumi", "sandbox", *(["nothing"] if parser_ is shown else []))
        parser_.add_argument(
            "--with", dest="tool", choices=with_, required=True, help="what asks Azure; nothing: offline"
        )
    for parser_ in (shown, checked, drifted):
        parser_.add_argument(
            "--out", type=Path, metavar="FILE", help="where the Markdown goes (default: standard output)"
        )

    posted = command("post", _post, "the comment on a pull request, edited in place")
    posted.add_argument("--number", required=True, type=int, help="of the pull request")
    issued = command("issue", _issue, "the issue on a stack's drift, opened or brought up to date")
    for parser_ in (posted, issued):
        parser_.add_argument("--stack", required=True, help="stacks/Pulumi.STACK.yaml")
        parser_.add_argument("--body", required=True, type=Path, metavar="FILE", help="the Markdown")

    rehearsed = command("rehearse", _rehearse, "preview, deploy, verify and roll back on this machine's sandbox")
    rehearsed.add_argument("--stack", default="prod", help="(default: %(default)s)")
    rehearsed.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="the change (default: max-model-len=65536)"
    )
    rehearsed.add_argument("--keep", action="store_true", help="leave the copy and its sandbox for a look")

    measured = command("benchmark", _benchmark, "measure what the stack serves, beside what the plan predicts")
    measured.add_argument("--stack", required=True, help="stacks/Pulumi.STACK.yaml")
    measured.add_argument("--with", dest="tool", choices=("pulumi", "sandbox"), required=True, help="what updates it")
    measured.add_argument("--format", choices=("text", "markdown", "json"), default="text")

    backend = command("backend", _backend, "the commands that make state and secrets storage in Azure; runs none")
    backend.add_argument("--stack", default="prod", help="(default: %(default)s)")
    return parser


def _stacks(options: argparse.Namespace) -> int:
    names = subprocess.run(
        ["git", "diff", "--name-only", "--relative", "--end-of-options", options.base, "--"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if names.returncode != 0:
        raise InputError(f"--base {options.base}: git cannot compare with it: {names.stderr.strip()}")
    print(json.dumps(touched(names.stdout.splitlines(), stack_file.stacks())))
    return 0


def touched(files: Sequence[str], stacks: Sequence[str]) -> list[str]:
    """The stacks that changed files may change: all, or those whose own file is among them; not the sandbox's."""
    real = [stack for stack in stacks if stack != "sandbox"]
    if any(file.startswith(EVERY_STACK) for file in files):
        return real
    return [stack for stack in real if f"stacks/Pulumi.{stack}.yaml" in files]


def _preview(options: argparse.Namespace) -> int:
    """The comment, whatever it has to say; 1 where an update would be refused."""
    before = _before(options)
    compared = diff.compare(before, revision.working_tree(options.stack), options.stack)
    head, *details = diff_page.markdown_blocks(compared)
    blocks, refused = [head], bool(compared.problems_after)
    if not refused and options.stack in stack_file.stacks():
        policies, breaks = _policies(options.stack)
        shown, stops = _shown(options.tool, options.stack)
        refused = breaks or stops
        blocks += [*shown[:1], policies, *details, *shown[1:]]
        if options.tool == "pulumi":
            blocks.append(_preflight(options.stack))
    _write(options.out, comment.write(options.stack, blocks, options.footer))
    return 1 if refused else 0


def _before(options: argparse.Namespace) -> diff.Side:
    """The stack before the change; a stack that was never deployed is new."""
    base = options.base
    if base == "last-good":
        from gitops import tools

        base = tools.of(options.tool, options.stack, ROOT).last_good() if options.tool != "nothing" else None
        if base is None:
            return diff.Side(label="nothing deployed", config={})
    return revision.of_base(base, options.stack)


def _shown(name: str, stack: str) -> tuple[list[str], bool]:
    if name == "nothing":
        words = "No preview of resources: this run has no access to Azure."
        return [words], False
    from gitops import tools

    found = preview.read(tools.of(name, stack, ROOT).preview())
    title = "What an update would do" + (", on the sandbox" if name == "sandbox" else "")
    return preview.blocks(found, title), bool(found.problems)


def _policies(stack: str) -> tuple[str, bool]:
    from gitops import policies
    from policy.rules import ExemptionError
    from sandbox.__main__ import RefusedError
    from sandbox.engine import RunFailedError

    try:
        outcomes = policies.check(ROOT, stack)
    except (ExemptionError, RefusedError, RunFailedError) as error:
        return f"### Policies\n\n🛑 Not checked: {escaped(without_tokens(str(error)))}", True
    return policies.block(outcomes), any(outcome.refuses for outcome in outcomes)


def _preflight(stack: str) -> str:
    """The live checks, which change nothing and refuse nothing here: `make preflight` explains each."""
    command = [sys.executable, "-m", "preflight", "--stack", stack, "--format", "markdown"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = without_tokens((done.stdout or done.stderr).strip()) or "it said nothing"
    return f"<details><summary>Preflight: exit code {done.returncode}</summary>\n\n{said}\n\n</details>"


def _policy(options: argparse.Namespace) -> int:
    _known(options.stack)
    text, refused = _policies(options.stack)
    _write(options.out, text)
    return 1 if refused else 0


def _deploy(options: argparse.Namespace) -> int:
    from gitops import deploy, tools

    _known(options.stack)
    patience = deploy.PATIENCE_SECONDS if options.patience is None else options.patience
    try:
        deploy.deploy(tools.of(options.tool, options.stack, ROOT), say, patience=patience)
    except deploy.DeployError as error:
        say(str(error))
        return 1
    return 0


def _drift(options: argparse.Namespace) -> int:
    from gitops import tools

    _known(options.stack)
    found = preview.read(tools.of(options.tool, options.stack, ROOT).preview(refresh=True))
    if not found.changes and not found.problems:
        say(f"{options.stack} is as declared")
        return 0
    title = f"Drift of {options.stack}: what is there is not what is declared"
    text = comment.write(options.stack, preview.blocks(found, title), "docs/drift.md says what to do.")
    _write(options.out, text)
    return 1 if found.problems else 0


def _post(options: argparse.Namespace) -> int:
    from gitops import github

    try:
        say(github.post(options.stack, options.number, options.body))
    except github.GitHubError as error:
        say(str(error))
        return 1
    return 0


def _issue(options: argparse.Namespace) -> int:
    from gitops import github

    try:
        say(github.issue(options.stack, f"Stack {options.stack} is not as declared", options.body))
    except github.GitHubError as error:
        say(str(error))
        return 1
    return 0


def _rehearse(options: argparse.Namespace) -> int:
    from gitops import rehearse

    _known(options.stack)
    return rehearse.rehearse(options.stack, options.set or ["max-model-len=65536"], keep=options.keep)


def _benchmark(options: argparse.Namespace) -> int:
    from gitops import benchmark, tools
    from sandbox.cluster_api import ClusterError

    _known(options.stack)
    try:
        plan = benchmark.planned(options.stack)
    except InvalidStack as invalid:
        raise InputError(str(invalid)) from None
    try:
        outcomes = benchmark.measure(tools.of(options.tool, options.stack, ROOT), plan, say)
    except (benchmark.MeasureError, ClusterError) as error:
        say(str(error))
        if options.format == "json":
            print(json.dumps({"error": str(error)}))
        return 1
    pages = {"text": benchmark.as_text, "markdown": benchmark.as_markdown}
    page = pages.get(options.format)
    print(page(plan, outcomes) if page else benchmark.as_json(outcomes))
    return 1 if any(outcome["wrong"] for outcome in outcomes.values()) else 0


def _backend(options: argparse.Namespace) -> int:
    from gitops import backend

    print(backend.text(options.stack))
    return 0


def _known(stack: str) -> None:
    if stack not in stack_file.stacks():
        raise InputError(f"--stack {stack}: there is no such stack file; there are {', '.join(stack_file.stacks())}")


def _write(file: Path | None, text: str) -> None:
    if file is None:
        print(text)
        return
    file.write_text(text, encoding="utf-8")
    say(f"{os.fspath(file)}: {len(text):,} characters")


if __name__ == "__main__":
    sys.exit(main())
