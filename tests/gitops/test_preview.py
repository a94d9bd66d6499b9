"""Previews for people: recorded from the Pulumi CLI 3.260 and from the sandbox, never a value in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gitops import comment, preview
from gitops.preview import Op, Preview, Step

RECORDED = Path(__file__).parent / "recorded"
DEPLOYMENT = "kubernetes:apps/v1:Deployment"
POOL = "azure-native:containerservice:AgentPool"


def recorded(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text())


def sandbox(*resources: tuple[str, str, str, list[str]]) -> dict[str, Any]:
    """A document as `python -m sandbox preview --format json` prints it."""
    made = [
        {"urn": f"urn:pulumi:prod::aks-vllm::aks-vllm:index:X${type_}::{name}", "type": type_, "op": op, "diff": diff}
        for op, type_, name, diff in resources
    ]
    return {"changes": {}, "resources": made}


def markdown(found: Preview) -> str:
    return "\n\n".join(preview.blocks(found, "What an update would do"))


def test_the_clis_digest_is_read() -> None:
    found = preview.read(recorded("cli-preview"))
    assert [(step.op, step.name) for step in found.changes] == [
        (Op.REPLACE, "pool"),
        (Op.DELETE, "old"),
        (Op.CREATE, "new"),
        (Op.UPDATE, "model"),
    ]
    pool, *_, model = found.changes
    assert pool.replaced_for == ("size",), "the reason of a replacement is what a reviewer looks for"
    assert model.changed == ("tag",), "without a provider's word, the inputs tell"


def test_what_is_lost_comes_first_and_loud() -> None:
    text = markdown(preview.read(recorded("cli-preview")))
    assert "**1 replaced**, 1 deleted, 1 created, 1 updated in place" in text
    assert text.index("🛑 **Replaced**") < text.index("🛑 **Deleted**") < text.index("Updated in place")
    assert "**pool**, because of `size`" in text


def test_no_value_of_a_preview_is_shown() -> None:
    document = recorded("cli-preview")
    assert "[secret]" in json.dumps(document), "the recording holds states and configuration"
    text = markdown(preview.read(document))
    for value in ("[secret]", "aks-vllm:mode", "'tag'", "x'"):
        assert value not in text


@pytest.mark.parametrize("where", ["message", "error"])
def test_a_token_in_an_error_is_hidden(where: str) -> None:
    token = "hf_" + "notARealToken" * 3
    document = {"error": token} if where == "error" else {"diagnostics": [{"severity": "error", "message": token}]}
    assert token not in markdown(preview.read(document))


def test_a_refused_update_says_why_and_nothing_else() -> None:
    found = preview.read(recorded("cli-refused"))
    assert found.problems == ("the stack cannot be deployed: max-model-len = 200000",)
    text = markdown(found)
    assert "The update would be refused" in text
    assert "replaced" not in text, "what a program that stopped had registered is not what would happen"


def test_a_replacement_in_three_steps_is_one_resource() -> None:
    urn = f"urn:pulumi:prod::aks-vllm::{POOL}::pool"
    steps = [{"op": op, "urn": urn} for op in ("create-replacement", "replace", "delete-replaced")]
    found = preview.read({"steps": [*steps, {"op": "same", "urn": urn.replace("pool", "other")}]})
    assert [(step.op, step.name) for step in found.changes] == [(Op.REPLACE, "pool")]


def test_every_word_of_the_cli_has_a_meaning() -> None:
    known = {"same", "read", "refresh", "discard-replaced", "remove-pending-replace"}
    every = {
        *("same", "create", "update", "delete", "replace", "create-replacement", "delete-replaced", "read", "refresh"),
        *("read-replacement", "discard", "discard-replaced", "remove-pending-replace", "import", "import-replacement"),
    }
    assert every - known == set(preview.OPS), "https://github.com/pulumi/pulumi, sdk/go/common/apitype/history.go"


def test_a_preview_without_changes_says_so() -> None:
    text = markdown(preview.read(sandbox(("same", DEPLOYMENT, "model-deployment", []))))
    assert "No resource changes (1 are as declared)." in text


def test_components_are_not_counted() -> None:
    urn = "urn:pulumi:prod::aks-vllm::aks-vllm:index:Cluster::cluster"
    assert not preview.read({"resources": [{"urn": urn, "op": "create", "diff": []}]}).changes


@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        ([("update", DEPLOYMENT, "model", ["spec"])], True),
        ([("update", DEPLOYMENT, "model", ["spec"]), ("same", POOL, "pool", [])], True),
        ([("update", DEPLOYMENT, "model", ["spec"]), ("update", POOL, "pool", ["count"])], False),
        ([("replace", "pulumi:providers:kubernetes", "access", ["clusterIdentifier"])], False),
    ],
    ids=["a Deployment", "beside an unchanged pool", "with a pool", "the provider"],
)
def test_only_workloads_may_be_put_back_without_a_person(changes: list[Any], alone: bool) -> None:
    assert preview.read(sandbox(*changes)).workloads_only is alone


def test_names_and_paths_are_text_and_not_markup() -> None:
    found = Preview(steps=(Step(op=Op.UPDATE, type="a:b:C", name="<img src=x>@team", changed=("a`b", "<b>")),))
    text = markdown(found)
    assert "<img" not in text
    assert "@team" not in text
    assert "`ab`" in text, "a backtick would end the code that the path stands in"


# The comment's size.


def big(count: int) -> list[str]:
    code = "\n".join(["### many", "", "```diff", *(f"+ --option-{at} {'x' * 80}" for at in range(count)), "```"])
    details = "\n".join(["<details><summary>s</summary>", "", *(f"- line {at}" for at in range(count)), "</details>"])
    return ["## head", "the answer", code, details, "### last"]


@pytest.mark.parametrize("count", [1, 500, 700, 800, 5000], ids=str)
def test_a_comment_fits_and_begins_with_its_mark(count: int) -> None:
    text = comment.write("prod", big(count), "footer")
    assert len(text) <= comment.LIMIT
    assert text.startswith(comment.marker("prod"))
    assert "the answer" in text
    assert text.rstrip().endswith("footer"), "where the whole log is must survive"
    assert text.count("```") % 2 == 0, "an open block would swallow the rest"
    assert text.count("<details>") == text.count("</details>")


def test_what_does_not_fit_is_counted() -> None:
    text = comment.write("prod", big(5000))
    kept = sum(line.startswith(("+ --option", "- line")) for line in text.splitlines())
    (said,) = [line for line in text.splitlines() if "more lines do not fit" in line]
    assert int(said.strip("*").split()[0]) >= 10000 - kept


def test_a_short_comment_is_whole() -> None:
    assert "do not fit" not in comment.write("prod", ["## head", "the answer"])
