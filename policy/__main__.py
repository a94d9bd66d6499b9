"""The policy pack: `pulumi preview --policy-pack policy`. The rules are in rules.py; here they meet the Pulumi SDK.

An environment of its own: the policy SDK wants an older protobuf than the program's Kubernetes provider.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pulumi_policy import EnforcementLevel, PolicyPack, ReportViolation, StackValidationArgs, StackValidationPolicy

sys.path.insert(0, str(Path(__file__).parent))

import rules


def _resource(found: Any) -> rules.Resource:
    """The SDK hands over secrets in clear: what must be secret is left out before a rule can repeat it."""
    props: Mapping[str, Any] = dict(found.props)
    if found.resource_type == rules.KUBERNETES_SECRET:
        props = {key: value for key, value in props.items() if key not in ("data", "stringData")}
    if found.resource_type.startswith("pulumi:"):
        props = {}  # the stack's outputs and the providers' settings, kubeconfig included
    return rules.Resource(
        urn=found.urn, type=found.resource_type, name=found.name, props=props, protect=bool(found.opts.protect)
    )


def _policy(rule: rules.Rule) -> StackValidationPolicy:
    def validate(args: StackValidationArgs, report: ReportViolation) -> None:
        stack = rules.Stack([_resource(found) for found in args.resources])
        urns = {resource.name: resource.urn for resource in stack.resources}
        (found,) = [each for each in rules.run(stack, rules.exemptions()) if each.rule is rule]
        for violation in found.violations:
            report(f"{violation.resource or 'the stack'}: {violation.message}", urns.get(violation.resource))

    return StackValidationPolicy(
        name=rule.name,
        description=f"{rule.description} {rule.why}",
        enforcement_level=EnforcementLevel.MANDATORY if rule.mandatory else EnforcementLevel.ADVISORY,
        validate=validate,
    )


PolicyPack(name="aks-vllm", policies=[_policy(rule) for rule in rules.RULES])
