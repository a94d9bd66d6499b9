"""Comments and issues on GitHub, found again by their first line and edited in place. Asks `gh`, which runners have."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from gitops.comment import marker

TIMEOUT_SECONDS = 60


class GitHubError(Exception):
    """GitHub refused, or `gh` is not there; the text is its own message."""


def post(stack: str, number: int, body: Path) -> str:
    """Write the stack's comment on a pull request, or over the one that is there; where it is. Raises GitHubError."""
    repository = _repository()
    comments = _pages(f"repos/{repository}/issues/{number}/comments")
    mine = next((each for each in comments if each["body"].startswith(marker(stack))), None)
    if mine:
        written = _api("PATCH", f"repos/{repository}/issues/comments/{mine['id']}", body)
    else:
        written = _api("POST", f"repos/{repository}/issues/{number}/comments", body)
    return written["html_url"]


def issue(stack: str, title: str, body: Path) -> str:
    """Open an issue for a stack, or write over the open one; where it is. Raises GitHubError."""
    repository = _repository()
    open_ones = _pages(f"repos/{repository}/issues?state=open&creator=github-actions[bot]")
    mine = next((each for each in open_ones if (each.get("body") or "").startswith(marker(stack))), None)
    if mine:
        return _api("PATCH", f"repos/{repository}/issues/{mine['number']}", body)["html_url"]
    return _api("POST", f"repos/{repository}/issues", body, title)["html_url"]


def _repository() -> str:
    if not (name := os.environ.get("GITHUB_REPOSITORY")):
        raise GitHubError("GITHUB_REPOSITORY is not set: this step is for a job on GitHub")
    return name


def _pages(path: str) -> list[dict[str, str]]:
    return [each for page in json.loads(_gh(["api", "--paginate", "--slurp", path])) for each in page]


def _api(method: str, path: str, body: Path, title: str = "") -> dict[str, str]:
    # The body comes from a file: an argument list has less room than a comment.
    words = ["api", "--method", method, path, "--field", f"body=@{body}"]
    return json.loads(_gh([*words, *(["--raw-field", f"title={title}"] if title else [])]))


def _gh(words: list[str]) -> str:
    try:
        done = subprocess.run(["gh", *words], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except FileNotFoundError:
        raise GitHubError("`gh`, GitHub's command line, is not on this runner: https://cli.github.com") from None
    except subprocess.TimeoutExpired:
        raise GitHubError(f"GitHub did not answer within {TIMEOUT_SECONDS} seconds") from None
    if done.returncode != 0:
        raise GitHubError(done.stderr.strip() or f"gh ended with exit code {done.returncode}")
    return done.stdout
