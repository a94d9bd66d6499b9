"""What people read: the plan with paths and values, steps as lines, and no secret."""

from __future__ import annotations

import io

import pytest

from sandbox.deployment import Op, Step
from sandbox.display import Display, change_text
from sandbox.values import UNKNOWN, Change, Secret

THING = "urn:pulumi:dev::test::fake:index:Thing::thing"


def step(op: Op, *changes: Change, because: str = "") -> Step:
    return Step(urn=THING, type="fake:index:Thing", op=op, custom=True, changes=changes, because=because)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(stream: io.StringIO) -> Display:
    return Display(stream)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Change(path=("spec", "args", 5), old="16384", new="32768"), '~ spec.args[5]: "16384" → "32768"'),
        (Change(path=("count",), old=1, new=2), "~ count: 1 → 2"),
        (Change(path=("tags", "a.b/c"), old=None, new="x"), '+ tags["a.b/c"]: "x"'),
        (Change(path=("zone",), old="a", new=None), '- zone: "a"'),
        (Change(path=("token",), old=Secret("one"), new=Secret("two")), '~ token: "[secret]" → "[secret]"'),
        (Change(path=("id",), old="x", new=UNKNOWN), '~ id: "x" → "[unknown]"'),
    ],
    ids=str,
)
def test_a_change_is_shown_with_its_path_and_both_values(change: Change, text: str):
    assert change_text(change) == text


def test_a_long_value_is_cut(display: Display):
    assert len(change_text(Change(path=("env",), old=None, new="x" * 5000))) < 120


def test_the_plan_has_the_symbols_of_the_pulumi_cli_and_the_reasons(display: Display, stream: io.StringIO):
    path = Change(path=("zone",), old="a", new="b")
    display.plan(
        [
            step(Op.CREATE),
            step(Op.UPDATE, path),
            step(Op.REPLACE, path, because="zone cannot change in place"),
            step(Op.DELETE),
            step(Op.SAME),
        ]
    )
    assert stream.getvalue().splitlines() == [
        " +  fake:index:Thing  thing  create",
        " ~  fake:index:Thing  thing  update",
        '      ~ zone: "a" → "b"',
        " +- fake:index:Thing  thing  replace (zone cannot change in place)",
        '      ~ zone: "a" → "b"',
        " -  fake:index:Thing  thing  delete",
    ]


def test_the_summary_counts_what_happens(display: Display, stream: io.StringIO):
    display.summary({"create": 2, "same": 3}, done=False)
    display.summary({"update": 1, "delete": 4}, done=True, elapsed=75.2)
    display.summary({}, done=True)
    assert stream.getvalue().splitlines() == [
        "Resources: 2 to create, 3 unchanged",
        "Resources: 1 updated, 4 deleted in 1 min 15 s",
        "Resources: none",
    ]


def test_without_a_terminal_every_piece_of_news_is_one_plain_line(display: Display, stream: io.StringIO):
    with display.running():
        display.started(step(Op.CREATE))
        display.progress("model: 1/2 ready")
        display.progress("model: 1/2 ready")
        display.finished(step(Op.CREATE), 3.24)
        display.failed(step(Op.UPDATE), "the reason comes at the end")
    assert stream.getvalue().splitlines() == [
        " +  fake:index:Thing  thing  creating",
        "    model: 1/2 ready",
        " +  fake:index:Thing  thing  created (3.2 s)",
        " ~  fake:index:Thing  thing  failed",
    ]
    assert "\x1b" not in stream.getvalue(), "a log file has no use for colours"


def test_what_the_program_says_twice_is_shown_once(display: Display, stream: io.StringIO):
    for _ in range(2):
        display.logged("warning", "no price is known")
    display.report_shown = True
    display.logged("warning", "the report has said this")
    assert stream.getvalue() == "warning: no price is known\n"


def test_workloads_are_a_table_and_outputs_are_masked(display: Display, stream: io.StringIO):
    row = {"name": "model", "namespace": "vllm", "replicas": 2, "ready": 2, "gpus_per_replica": 4, "nodes": ["aks-1"]}
    display.workloads([row])
    display.outputs({"kubeconfig": Secret("abc"), "replicas": 2, "url": "http://x", "readme": "two\nlines"})
    text = stream.getvalue()
    for word in ("model", "vllm", "2/2 ready", "4 GPUs each", "aks-1", "kubeconfig: [secret]", "replicas: 2"):
        assert word in text
    assert "abc" not in text
    assert "two" not in text, "the readme has its own place, after everything else"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_what_is_under_way_is_shown_with_its_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    display = Display(stream, width=100)
    with display.running():
        display.started(step(Op.CREATE))
        display.progress("model: 1/2 ready")
    assert "creating thing, 0 s" in stream.getvalue()
    assert "model: 1/2 ready" in stream.getvalue()
    display.finished(step(Op.CREATE), 1)
    assert stream.getvalue().rstrip().endswith("\x1b[0m")
