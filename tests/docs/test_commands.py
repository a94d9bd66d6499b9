"""Every command of the README and of docs/: run here, covered by a test that is named, or one that needs Azure."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.__main__ import SECTIONS
from tests import hf_configs
from tests.sandbox.project import ROOT, copied

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
#: The first line of an indented block of settings, or of a folder's content; all others are of commands.
SETTINGS = re.compile(r"\s+[\w:-]+[:/](\s|$)")
#: Nothing can be tried of these without a subscription, or without somebody else's server.
AZURE_PROGRAMS = ("pulumi", "az", "kubectl", "kubelogin")
AZURE = "# needs Azure"

#: The beginning of a command, and the test that does what it does. The longest beginning counts.
COVERED = {
    "make up": "tests/sandbox/test_main_job.py::test_up_places_two_replicas_of_four_gpus_on_one_node",
    "make up STACK=dev": "tests/sandbox/test_existing_cluster.py::test_a_guest_adds_a_pool_and_a_namespace_"
    "and_leaves_the_cluster_as_it_was",
    "make up STACK=guest": "tests/sandbox/test_existing_cluster.py::test_a_guest_adds_a_pool_and_a_namespace_"
    "and_leaves_the_cluster_as_it_was",
    'AKS_VLLM_FAULTS="create AgentPool=AllocationFailed" make up': "tests/sandbox/test_faults.py::"
    "test_a_failure_at_any_resource_is_overcome_by_running_it_again",
    ".venv/bin/python -m sandbox up --set": "tests/sandbox/test_main_job.py::"
    "test_a_new_context_length_changes_the_deployment_alone_and_keeps_serving",
    "make benchmark": "tests/sandbox/test_benchmark.py::"
    "test_figures_become_a_stacks_output_and_the_next_update_takes_the_job_away",
    "make rehearse": "tests/sandbox/test_rehearsal.py::test_the_bad_image_is_seen_stopped_and_rolled_back",
    "make pin": "tests/preflight/test_pin.py::test_every_null_is_filled_and_nothing_else_changes",
    "make preflight": "tests/preflight/test_preflight_command.py::"
    "test_nothing_in_the_way_is_exit_code_0_and_one_json_document",
    ".venv/bin/python -m preflight": "tests/preflight/test_preflight_command.py::"
    "test_nothing_in_the_way_is_exit_code_0_and_one_json_document",
}
#: These run tests and measurements themselves; their names are checked.
LONG = ("make test", "make test-engine", "make bench")
#: What a benchmark is compared with, and where it comes from.
COMPARED = ("pip install git+https://github.com/vllm-project/production-stack", "PRODUCTION_STACK_ROUTER=")
#: Shown because they are refused.
REFUSED = ('make plan STACK=prod SET="vllm.swap-space=4 max-model-len=200000"',)
#: What a reader puts in for what the page leaves open.
FILLED_IN = {
    "/subscriptions/.../managedClusters/platform": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups"
    "/rg-platform/providers/Microsoft.ContainerService/managedClusters/platform",
}
CONFIG = "path/to/config.json"


@dataclass(frozen=True)
class Block:
    """The commands of one block of a page, without comments, one a line."""

    page: str
    number: int
    commands: tuple[str, ...]
    needs_azure: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.number}"

    @property
    def to_run(self) -> tuple[str, ...]:
        return () if self.needs_azure else tuple(command for command in self.commands if known_by(command) == "run")


def known_by(command: str) -> str:
    """How a command is known to work: run here, by a test, by needing Azure. Nothing where nobody knows."""
    program = command.split()[0]
    if _covering(command):
        return "a test"
    if command.startswith(COMPARED) or re.fullmatch(rf"({'|'.join(LONG)})( ARGS=\w+)?", command):
        return "a long run"
    if program in AZURE_PROGRAMS or "--with pulumi" in command:
        return "Azure"
    offline = ("plan", "diff", "fit", "size", "presets", "policy", "bootstrap-backend")
    if program == "make" and command.split()[1] in offline:
        return "run"
    if re.match(r"\.venv/bin/python -m (planning|gitops) |cp stacks/|KEY=\$\(openssl |printf %s ", command):
        return "run"
    return ""


def _covering(command: str) -> str:
    beginnings = [each for each in COVERED if command == each or command.startswith(f"{each} ")]
    return COVERED[max(beginnings, key=len)] if beginnings else ""


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Fenced blocks of shell, and indented ones."""
    fenced = r"^```(?P<language>\w*)\n(?P<fenced>(?s:.*?))^```$"
    indented = r"(?<=\n\n)(?P<indented>(?: {4}.*\n)+)"
    for match in re.finditer(f"{fenced}|{indented}", text, re.MULTILINE):
        number = text[: match.start()].count("\n") + 1
        if match["fenced"] is not None:
            if match["language"] not in ("yaml", "json", "diff"):
                yield _block(page, number, match["fenced"])
            continue
        if not SETTINGS.match(match["indented"]):
            yield _block(page, number, match["indented"])


def _block(page: str, number: int, text: str) -> Block:
    lines = text.replace("\\\n", " ").splitlines()
    commands = [
        " ".join(part.split())
        for line in lines
        for part in re.sub(r"(^|\s+)# .*", "", line).split(" && ")
        if part.strip()
    ]
    return Block(page, number, tuple(commands), any(line.strip() == AZURE for line in lines))


BLOCKS = [block for page in PAGES for block in blocks_of(page.name, page.read_text())]


def first_told() -> dict[str, tuple[str, ...]]:
    """Block -> commands that no block before it has had."""
    seen: set[str] = set()
    found = {}
    for block in BLOCKS:
        new = tuple(command for command in block.to_run if command not in seen)
        seen.update(new)
        if new:
            found[str(block)] = new
    return found


TO_RUN = first_told()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone as a reader has it after `make` has made the environment; with a configuration of a model's own."""
    folder = tmp_path_factory.mktemp("reader")
    with copied(folder):
        for name in ("Makefile", "requirements-dev.txt", ".gitignore"):
            shutil.copy(ROOT / name, folder)
        for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
            git(folder, *words)
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        (folder / ".venv" / ".ready").touch()
        config = folder / CONFIG
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps(hf_configs.load("Qwen--Qwen3-8B")[0]))
        yield folder


def git(folder: Path, *words: str) -> None:
    who = {f"GIT_{role}_{what}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *words], cwd=folder, env={**os.environ, **who}, check=True, capture_output=True)


def shell(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    script = "\n".join(["set -e", *commands])
    for open_, filled in FILLED_IN.items():
        script = script.replace(open_, filled)
    outside = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(["sh", "-c", script], cwd=folder, env=outside, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("block", TO_RUN)
def test_a_documented_command_does_what_it_says(reader: Path, block: str) -> None:
    commands = [command for command in TO_RUN[block] if command not in REFUSED]
    done = shell(reader, *commands)
    assert done.returncode == 0, f"{block}: {commands}\n{done.stdout}\n{done.stderr}"
    assert not commands or done.stdout.strip(), f"{block}: {commands} say nothing"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", REFUSED)
def test_a_command_that_is_shown_for_its_refusal_is_refused(reader: Path, command: str) -> None:
    assert any(command in commands for commands in TO_RUN.values()), "no page shows it any more"
    done = shell(reader, command)
    assert done.returncode == 2
    assert "swap-space" in done.stderr
    assert "131072" in done.stderr.replace(",", "")


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_somebody_knows_that_a_command_works(block: Block) -> None:
    unknown = [command for command in block.commands if not known_by(command)]
    assert block.needs_azure or not unknown, f"{block}: {unknown}: run it here, name its test, or say '{AZURE}'"


def test_a_command_that_nobody_knows_is_found() -> None:
    (fenced, indented) = blocks_of("page.md", "x\n\n```sh\nmake coffee\n```\n\nAnd\n\n    make plan && rm -rf /\n")
    assert [known_by(command) for command in fenced.commands] == [""]
    assert [known_by(command) for command in indented.commands] == ["run", ""]


def test_the_tests_that_are_named_are_there() -> None:
    for command, test in COVERED.items():
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{command}: there is no {test}"
        assert any(_covering(each) == test for block in BLOCKS for each in block.commands), f"no page has {command}"


def test_targets_benchmarks_and_settings_that_are_named_are_there() -> None:
    """Of the commands that are not run here, as far as that can be told without running them."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    settings = json.loads((ROOT / "stacks" / "schema.json").read_text())["properties"]["config"]["properties"]
    found = {"make": 0, "bench": 0, "config": 0}
    for block in BLOCKS:
        for command in block.commands:
            words = shlex.split(command)
            if "make" in words[:2]:
                found["make"] += 1
                assert words[words.index("make") + 1] in targets, f"{block}: {command}"
            if section := re.match(r"make bench ARGS=(\w+)", command):
                found["bench"] += 1
                assert section[1] in SECTIONS, f"{block}: {command}"
            if words[:3] == ["pulumi", "config", "set"]:
                found["config"] += 1
                (key,) = [word for word in words if word.startswith("aks-vllm:")]
                assert key in settings, f"{block}: {command}"
    assert all(found.values()), found
