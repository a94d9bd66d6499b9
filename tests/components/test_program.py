"""What `__main__.py` does around the declarations: refuse, warn, and import no more than it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.engine import Engine, InputRefusedError, record
from sandbox.state import Store
from tests.components.harness import ROOT, TOKEN, TOKEN_KEY, Record, stack_config


def test_all_problems_are_told_at_once_and_none_is_told_twice() -> None:
    config = stack_config({"max-model-len": "many", "replicas": 0, "presset": "x"})
    with pytest.raises(InputRefusedError) as refusal:
        record(ROOT, "test", config, secret_keys=[TOKEN_KEY])
    text = str(refusal.value)
    assert [text.count(f"{key} = ") for key in ("max-model-len", "replicas", "presset")] == [1, 1, 1], text
    assert TOKEN not in text


def test_a_token_in_clear_is_refused_without_repeating_it() -> None:
    with pytest.raises(InputRefusedError) as refusal:
        record(ROOT, "test", stack_config({}), secret_keys=[])
    assert "hf-token" in str(refusal.value)
    assert TOKEN not in str(refusal.value), "an error message is where tokens leak into build logs"


def test_a_missing_token_is_a_warning_in_a_preview(recorded: Record) -> None:
    config = {key: value for key, value in stack_config({}).items() if key != TOKEN_KEY}
    warnings = [text for severity, text in record(ROOT, "test", config).messages if severity == "warning"]
    assert any("hf-token" in text for text in warnings), "the preview must say what the update will refuse"


def test_an_update_with_steps_still_to_do_declares_nothing(tmp_path: Path) -> None:
    config = {key: value for key, value in stack_config({}).items() if key != TOKEN_KEY}
    engine = Engine(project="aks-vllm", stack="test", store=Store(tmp_path), packages={})
    with pytest.raises(InputRefusedError, match="hf-token"):
        engine.up(ROOT / "__main__.py", root=ROOT, config=config, secret_keys=[])
    declared = [resource.urn for resource in engine.store.load() if resource.type != "pulumi:pulumi:Stack"]
    assert declared == [], "an update that will be refused must not begin"


def test_every_model_has_an_endpoint_among_the_outputs(recorded: Record) -> None:
    outputs = recorded().outputs
    assert set(outputs["endpoints"]) == {"model"}
    assert {"cluster", "kubeconfig", "readme"} <= set(outputs)


def test_the_network_module_is_not_loaded_where_the_subnet_is_somebody_elses() -> None:
    """It costs most of a second in every preview."""
    subnet = (
        f"/subscriptions/{'0' * 8}-0000-0000-0000-{'0' * 12}/resourceGroups/rg/providers/Microsoft.Network"
        "/virtualNetworks/hub/subnets/aks"
    )
    program = (
        "import sys; from tests.components.harness import recorded_preview; "
        f"recorded_preview(network={{'subnet-id': {subnet!r}}}); "
        "print(*(name for name in sys.modules if name.startswith('pulumi_azure_native.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "pulumi_azure_native.containerservice._inputs" in loaded, "the check looks at the wrong names"
    assert "pulumi_azure_native.network._inputs" not in loaded
