"""The jobs of the workflows, run on this machine: a change is previewed, deployed and verified; a bad image goes back.

In a copy of the project, with a git history and a sandbox of its own. What the copy has and the project has not is told
in `PREPARED`: without it a production stack could not be deployed before its images are pinned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from planning import catalogue, stack_file

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".rehearsal"
PREPARED = (
    "images have a digest that is made from their name and exists nowhere, as far as they have none",
    "the stack file has a Hugging Face token that is none, as far as it has neither one nor a vault",
)
#: A repository that no registry has; the sandbox's kubelets fail to pull it (sandbox/kwok-stages.yaml).
MISSING = "does-not-exist"
PATIENCE_SECONDS = 8  # of the bad image; simulated kubelets have no bad minutes


class RehearsalError(Exception):
    """A step did not do what it should."""


def rehearse(stack: str, changes: Sequence[str], *, keep: bool) -> int:
    """All of it; the exit code. Writes `.rehearsal/comment.md` and `.rehearsal/comment-bad-image.md`."""
    began = time.monotonic()
    project = _Copy(FOLDER / "project", stack)
    try:
        if project.folder.exists():
            _title("Remove what the last rehearsal left")
            project.destroy()
        _walk(project, changes)
    except RehearsalError as error:
        _say(f"\nThe rehearsal failed: {error}")
        _say(f"The copy is kept: {project.folder.relative_to(ROOT)}; `make rehearse` begins anew.")
        return 1
    if keep:
        _say(f"\nKept: {project.folder.relative_to(ROOT)}. Remove it: cd there, protect: false, up, destroy.")
    else:
        _title("Remove it all")
        project.destroy()
    _say(f"\nRehearsed in {time.monotonic() - began:.0f} s. The comments:")
    for name in ("comment.md", "comment-bad-image.md"):
        _say(f"    .rehearsal/{name}")
    return 0


def _walk(project: _Copy, changes: Sequence[str]) -> None:
    _title("Prepare a copy")
    for words in PREPARED:
        _say(f"    only in the copy: {words}")
    project.make()

    _title("Job deploy: the stack as it is")
    project.expect(0, "gitops", "deploy", "--with", "sandbox")

    _title(f"Change {', '.join(changes)}")
    project.change(changes)
    _title("Job preview: the comment")
    project.expect(0, "gitops", "preview", "--with", "sandbox", "--base", "HEAD~1", "--out", "../comment.md")
    _show_head(FOLDER / "comment.md")
    _title("Job deploy: the change")
    project.expect(0, "gitops", "deploy", "--with", "sandbox")

    _title("Break the image")
    project.break_image()
    _title("Job preview: the comment")
    out = ("--out", "../comment-bad-image.md")
    project.expect(0, "gitops", "preview", "--with", "sandbox", "--base", "HEAD~1", *out)
    _show_head(FOLDER / "comment-bad-image.md")
    _title("Job deploy: it fails, and the last good revision comes back")
    patience = ("--patience", str(PATIENCE_SECONDS))
    project.expect(1, "gitops", "deploy", "--with", "sandbox", *patience, saying="which runs again")

    _title("Job drift: the stack against what runs")
    project.run("git", "revert", "--no-edit", "HEAD")
    found = json.loads(project.output("sandbox", "preview", "--stack", project.stack, "--format", "json"))
    changed = {op: count for op, count in found["changes"].items() if op != "same"}
    if changed:
        raise RehearsalError(f"the last good revision does not run: a preview of it shows {changed}")
    _say("    a preview of the last good revision shows no change")


class _Copy:
    """A checkout of its own with its own history."""

    def __init__(self, folder: Path, stack: str) -> None:
        self.folder, self.stack = folder, stack

    def make(self) -> None:
        """Copy the project as it is on disk, prepare it, and commit."""
        self.folder.mkdir(parents=True)
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RehearsalError(f"the project is no git checkout: {done.stderr.strip()}")
        for name in filter(None, done.stdout.split("\0")):
            source, copy = ROOT / name, self.folder / name
            if source.is_file() and not source.is_symlink():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)
        (self.folder / ".gitignore").write_text(".venv\n.sandbox\n__pycache__/\npolicy/venv\n")
        (self.folder / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
        self._pin_images()
        config = stack_file.config_of(self._file)
        if not (config.get("aks-vllm:key-vault") or {}).get("hf-token"):
            config.setdefault("aks-vllm:hf-token", {"secure": "none: the sandbox puts its own in this place"})
        self._write(config)
        self.run("git", "init", "--quiet", "--initial-branch=main")
        self.run("git", "add", ".")
        self._commit("The stack as it is")

    def change(self, changes: Sequence[str]) -> None:
        """Commit settings."""
        self._write(stack_file.config_of(self._file, changes))
        self._commit(f"Set {', '.join(changes)}")

    def break_image(self) -> None:
        """Commit an image of vLLM that cannot be pulled."""
        images = self.folder / "presets" / "images.yaml"
        line = f"repository: {catalogue.image('vllm').repository}\n"
        images.write_text(images.read_text().replace(line, f"{line.rstrip()}-{MISSING}\n", 1))
        self._commit("An image that does not exist")

    def destroy(self) -> None:
        """As docs/deploy.md says: protection off, then the removal."""
        config = stack_file.config_of(self._file)
        config["aks-vllm:protect"] = False
        self._write(config)
        for verb in ("up", "destroy"):
            self.output("sandbox", verb, "--stack", self.stack, "--format", "json")
        shutil.rmtree(self.folder)
        _say("    nothing is left but the comments")

    def expect(self, code: int, module: str, verb: str, *words: str, saying: str = "") -> None:
        """Run a step as a job does, its words shown. Raises RehearsalError for another exit code, or other words."""
        command = ["-m", module, verb, "--stack", self.stack, *words]
        shown = f"`python {' '.join(command)}`"
        _say(f"    $ {shown[1:-1]}")
        said = []
        with subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=_ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as step:
            for line in step.stdout or ():
                said.append(line)
                _say(line.rstrip("\n"))
        if step.returncode != code:
            raise RehearsalError(f"{shown} ended with exit code {step.returncode}, not {code}")
        if saying not in "".join(said):
            raise RehearsalError(f"{shown} has not said {saying!r}")

    def output(self, module: str, *words: str) -> str:
        """Standard output of a module. Raises RehearsalError."""
        return self.run(sys.executable, "-m", module, *words)

    def run(self, *command: str) -> str:
        """Standard output of a command. Raises RehearsalError."""
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=_ENVIRONMENT, check=False)
        if done.returncode != 0:
            raise RehearsalError(f"`{' '.join(command)}`: {done.stderr.strip()[-800:]}")
        return done.stdout

    def _commit(self, message: str) -> None:
        self.run("git", "commit", "--quiet", "--all", "--message", message)

    @property
    def _file(self) -> Path:
        return self.folder / "stacks" / f"Pulumi.{self.stack}.yaml"

    def _write(self, config: dict[str, Any]) -> None:
        self._file.write_text(yaml.safe_dump({"config": config}, sort_keys=False))

    def _pin_images(self) -> None:
        """Digests in the place of unknown ones, in the text, so that the rest of the file stays."""
        images = self.folder / "presets" / "images.yaml"

        def pinned(match: re.Match[str]) -> str:
            digest = hashlib.sha256(f"rehearsal {match['name']}".encode()).hexdigest()
            return f"{match['before']}sha256:{digest}"

        pattern = re.compile(r"(?P<before>repository: (?P<name>\S+)\n(?:(?!repository:).*\n)*?\s*digest: )null")
        images.write_text(pattern.sub(pinned, images.read_text()))


_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": "",
    **{
        f"GIT_{who}_{what}": f"{word}"
        for who in ("AUTHOR", "COMMITTER")
        for what, word in (("NAME", "rehearsal"), ("EMAIL", "rehearsal@localhost"))
    },
}


def _show_head(file: Path) -> None:
    """The answer of a comment: what stands before its first table."""
    for line in file.read_text().split("\n### ")[0].splitlines()[1:]:
        if line.strip():
            _say(f"    | {line}")


def _title(text: str) -> None:
    _say(f"\n== {text}")


def _say(text: str) -> None:
    print(text, flush=True)
