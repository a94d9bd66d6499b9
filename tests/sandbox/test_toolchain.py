"""Where the control plane's executables come from; `go` is a script here, for the real builds take minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import toolchain
from sandbox.toolchain import TOOLS, ToolchainError, binaries
from tests.sandbox.conftest import ROOT
from tests.sandbox.managed import eventually

NAMES = [tool.name for tool in TOOLS]

#: Says its version, writes down what it is asked to build, and builds at once unless a `hold` file lies beside it.
GO = """#!/bin/sh
here=$(dirname "$0")
if [ "$1" = env ]; then echo "$GO_SAYS"; exit; fi
while [ "$1" != -o ]; do shift; done
echo "$3" >> "$here/built"
while [ -e "$here/hold" ]; do /bin/sleep 0.05; done
if [ -e "$here/broken" ]; then echo "undefined: everything"; exit 1; fi
printf '#!/bin/sh\\n' > "$2"; /bin/chmod +x "$2"
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a `go` that is new enough, the only one on PATH; the cache is the test's own."""
    folder = tmp_path / "go"
    folder.mkdir()
    executable(folder / "go", GO)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("GO_SAYS", "go1.99.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return folder


@pytest.fixture
def said() -> list[str]:
    return []


def executable(path: Path, content: str = "#!/bin/sh\n") -> None:
    path.write_text(content)
    path.chmod(0o755)


def built(go: Path) -> list[str]:
    """The last parts of the packages that were built, in their order."""
    log = go / "built"
    return [line.rsplit("/", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


def test_everything_is_built_once_with_progress_and_then_found(go: Path, said: list[str]):
    folder = binaries(said.append)
    assert sorted(path.name for path in folder.iterdir() if os.access(path, os.X_OK)) == sorted(NAMES)
    assert len(built(go)) == len(TOOLS)
    assert [line.split(",")[0] for line in said] == [
        f"building {name} ({number} of 5)" for number, name in enumerate(NAMES, 1)
    ]
    (go / "go").unlink()
    assert binaries(said.append) == folder, "with a full cache nobody needs Go"
    assert len(said) == len(TOOLS)


def test_only_what_is_missing_is_built(go: Path, said: list[str]):
    """A build that was killed goes on where it stopped."""
    folder = binaries(said.append)
    (folder / "kwok").unlink()
    (go / "built").unlink()
    assert binaries(said.append) == folder
    assert built(go) == ["kwok"]
    assert "(1 of 1)" in said[-1]


def test_what_a_killed_build_has_left_is_cleaned_away(go: Path, said: list[str]):
    folder = binaries(said.append)
    (folder / "etcd").unlink()
    executable(folder / ".partial-etcd-1", "half a program")
    binaries(said.append)
    assert not list(folder.glob(".partial-*"))
    assert (folder / "etcd").read_text() == "#!/bin/sh\n", "half a program must never be taken for a whole one"


def test_other_sources_make_another_cache(go: Path, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = binaries(said.append)
    module = tmp_path / "toolchain"
    module.mkdir()
    for name in ("go.mod", "go.sum"):
        text = (toolchain.MODULE / name).read_text()
        (module / name).write_text(text + ("// one version further\n" if name == "go.mod" else ""))
    monkeypatch.setattr(toolchain, "MODULE", module)
    assert binaries(said.append) != before, "executables of an older go.mod would be run as the new version"


def test_the_users_own_executables_are_taken(
    go: Path, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assets = tmp_path / "assets"
    assets.mkdir()
    for name in NAMES:
        executable(assets / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert binaries(said.append) == assets
    assert built(go) == []


def test_what_the_users_folder_lacks_is_built_beside_links_to_it(
    go: Path, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`setup-envtest` gives etcd, kube-apiserver and kubectl; the folder is the user's and not written to."""
    assets = tmp_path / "assets"
    assets.mkdir()
    for name in ("etcd", "kube-apiserver", "kubectl"):
        executable(assets / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    folder = binaries(said.append)
    assert built(go) == ["kwok", "kube-scheduler", "kube-controller-manager"]
    assert (folder / "etcd").resolve() == (assets / "etcd").resolve()
    assert sorted(path.name for path in assets.iterdir()) == ["etcd", "kube-apiserver", "kubectl"]


def test_a_wrong_folder_of_the_users_is_refused_in_words(go: Path, said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KUBEBUILDER_ASSETS", "/nonexistent/assets")
    with pytest.raises(
        ToolchainError, match=r"KUBEBUILDER_ASSETS = /nonexistent/assets: .*no executable etcd.*unset it"
    ):
        binaries(said.append)


def test_missing_go_is_said_with_both_remedies(go: Path, said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolchainError, match=r"no `go` on PATH\. Go 1\.\d+ or newer .*go\.dev/dl.*KUBEBUILDER_ASSETS"):
        binaries(said.append)


def test_a_go_that_is_too_old_is_said_with_both_versions(go: Path, said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GO_SAYS", "go1.19.2")
    with pytest.raises(ToolchainError, match=r"go1\.19\.2 is too old\. Go 1\.2\d or newer"):
        binaries(said.append)
    assert built(go) == [], "not after minutes of building"


def test_what_go_says_about_itself_reaches_the_user(go: Path, said: list[str], monkeypatch: pytest.MonkeyPatch):
    """With GOTOOLCHAIN=local an older Go answers with a sentence instead of a version."""
    monkeypatch.setenv("GO_SAYS", "go.mod requires go >= 1.26 (running go 1.22; GOTOOLCHAIN=local)")
    with pytest.raises(ToolchainError, match=r"GOTOOLCHAIN=local.*or newer builds"):
        binaries(said.append)


def test_a_failed_build_shows_the_compilers_words_and_its_log(go: Path, said: list[str]):
    (go / "broken").touch()
    with pytest.raises(
        ToolchainError, match=r"(?s)`go build go\.etcd\.io/.*exit code 1.*etcd\.log.*undefined: everything"
    ):
        binaries(said.append)
    (go / "broken").unlink()
    assert binaries(said.append), "the next call tries again"


def test_another_system_is_refused_before_minutes_of_building(
    go: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ToolchainError, match="runs on Linux"):
        binaries(said.append)
    assert built(go) == []


@pytest.mark.parametrize("first_is_killed", [False, True])
def test_a_second_process_waits_for_the_build_of_the_first(go: Path, first_is_killed: bool):
    """Killed without a chance to clean up, the first leaves its compiler behind, which holds the lock until it ends."""
    code = "from sandbox.toolchain import binaries; print(binaries(lambda text: print(text, flush=True)), flush=True)"

    def start(log: Path) -> subprocess.Popen[bytes]:
        with log.open("w") as output:
            return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=output, start_new_session=True)

    (go / "hold").touch()
    logs = [go / "first.log", go / "second.log"]
    first = start(logs[0])
    second = None
    try:
        eventually(lambda: built(go), "the first process must build")
        if first_is_killed:
            first.send_signal(signal.SIGKILL)
            first.wait()
        second = start(logs[1])
        eventually(lambda: "waiting for it" in logs[1].read_text(), "the second process must say that it waits")
        assert len(built(go)) == 1, "two builds at once take twice the memory and no less time"
        (go / "hold").unlink()
        assert second.wait(timeout=30) == 0
        assert first_is_killed or first.wait(timeout=30) == 0
    finally:
        (go / "hold").unlink(missing_ok=True)
        for process in filter(None, (first, second)):
            process.kill()
            process.wait()
    repeated = 1 if first_is_killed else 0
    assert len(built(go)) == len(TOOLS) + repeated, (
        "what was built is not built again, but for what the killed one began"
    )
