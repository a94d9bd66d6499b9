"""What others must have before the stack can be created: prices, models and images."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from planning import catalogue
from planning.catalogue import Image
from planning.plan import ModelPlan, StackPlan
from planning.registry import images_of
from preflight import registry, web
from preflight.checks import Check, NotDone, Result, Status
from preflight.endpoints import PUBLIC, Endpoints

TOKEN_SECONDS = 30
BROKEN = "\\\n"  # how a shell's line goes on


@dataclass(frozen=True, kw_only=True)
class Token:
    """A Hugging Face token and where it was found; it is only ever sent to the Hub."""

    value: str
    source: str

    def __repr__(self) -> str:
        return f"a token from {self.source}"


def checks(plan: StackPlan, where: Endpoints = PUBLIC, entra: Callable[[], str] | None = None) -> list[Check]:
    """Everything that is asked elsewhere than at Resource Manager. `entra`: a token for a registry of one's own."""
    return [
        Check(name="price", find=lambda: _prices(plan, where.prices)),
        Check(name="hugging-face", find=lambda: _models(plan, where.hub)),
        Check(name="images", find=lambda: _images(plan, entra)),
    ]


def find_token(plan: StackPlan, environment: Mapping[str, str] = os.environ) -> Token | None:
    """The stack's own token, decrypted by the Pulumi CLI over a pipe, else HF_TOKEN; None where there is neither."""
    if plan.has_hf_token and shutil.which("pulumi"):
        command = ["pulumi", "config", "get", "aks-vllm:hf-token", "--stack", plan.stack, "--non-interactive"]
        try:
            said = subprocess.run(
                command, capture_output=True, text=True, timeout=TOKEN_SECONDS, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            said = None
        if said is not None and said.returncode == 0 and said.stdout.strip():
            return Token(value=said.stdout.strip(), source=f"stack {plan.stack}")
    if value := environment.get("HF_TOKEN", "").strip():
        return Token(value=value, source="HF_TOKEN")
    return None


# Prices.


def _prices(plan: StackPlan, endpoint: str) -> Iterator[Result]:
    for pool in plan.gpu_pools:
        vm, region = catalogue.vm_size(pool.vm_size), plan.cluster.location
        today, known = _price(endpoint, region, vm.name, spot=pool.spot), vm.price_per_hour.get(region)
        kind = "spot " if pool.spot else ""
        hours = f"{pool.count} × {kind}{vm.name} in {region}: {today * pool.count:,.2f} US dollars an hour today"
        if pool.spot:
            listed = f"; the report counts {known * pool.count:,.2f}, which is not for spot" if known else ""
            yield Result(check="price", status=Status.OK, message=f"{hours}{listed}")
        elif known is None:
            remedy = f"Add {region}: {today:g} with today's date to presets/vm-sizes.yaml."
            message = f"{hours}; the report has no price for it"
            yield Result(check="price", status=Status.WARNING, message=message, remedy=remedy)
        elif abs(today - known) > known / 1000:
            change = (today - known) / known
            message = (
                f"{hours}, {change:+.1%} from the report's {known * pool.count:,.2f} of {vm.price_date or 'no date'}"
            )
            remedy = f"Write {region}: {today:g} with today's date into presets/vm-sizes.yaml."
            yield Result(check="price", status=Status.WARNING, message=message, remedy=remedy)
        else:
            yield Result(check="price", status=Status.OK, message=f"{hours}, as the report says")


def _price(endpoint: str, region: str, size: str, *, spot: bool) -> float:
    """Pay as you go or spot, Linux, US dollars an hour for one VM.

    https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
    """
    what = f"the price of {size} in {region}"
    url: str | None = f"{endpoint}/api/retail/prices"
    terms = f"armRegionName eq '{region}' and armSkuName eq '{size}' and serviceName eq 'Virtual Machines'"
    parameters: Mapping[str, str] | None = {"$filter": f"{terms} and priceType eq 'Consumption'"}
    found: list[tuple[str, float]] = []
    while url:
        page = web.ask_json(url, what=what, parameters=parameters)
        try:
            for item in page["Items"]:
                words = f"{item['skuName']} {item['meterName']} {item['productName']}"
                other = any(word in words for word in ("Low Priority", "Windows")) or ("Spot" in words) != spot
                if item["type"] == "Consumption" and not other:
                    found.append((str(item["effectiveStartDate"]), float(item["retailPrice"])))
            url, parameters = page["NextPageLink"], None
        except (KeyError, TypeError, ValueError):
            raise NotDone(f"{what}: the answer has not the documented form", "Run it again.") from None
        if url and urlsplit(url).netloc != urlsplit(endpoint).netloc:
            break
    if not found:
        raise NotDone(f"{what}: Azure's price list has none", "Is the size sold in this region? See vm-sizes.")
    return max(found)[1]


# Models.


def _models(plan: StackPlan, hub: str) -> Iterator[Result]:
    token = find_token(plan) if plan.needs_hf_token else None
    if token is not None:
        yield from _token(token, hub)
    elif plan.needs_hf_token:
        gated = ", ".join(sorted({model.preset.model_id for model in plan.models if model.preset.gated}))
        remedy = (
            f"pulumi config set --secret aks-vllm:hf-token --stack {plan.stack}; or put one into HF_TOKEN for this."
        )
        if plan.key_vault is not None and plan.key_vault.token is not None:
            remedy = "Put it into HF_TOKEN for this: the vault is not read here."
        message = f"whether a token may read {gated}: there is no token here"
        yield Result(check="hugging-face", status=Status.NOT_DONE, message=message, remedy=remedy)
    seen: set[tuple[str, str | None]] = set()
    for model in plan.models:
        key = (model.preset.model_id, model.revision)
        if key in seen or (model.preset.gated and token is None):
            continue
        seen.add(key)
        try:
            yield _model(model, token, hub)
        except web.LookupFailed as failure:  # the next model may be told of all the same
            yield Result(check="hugging-face", status=Status.NOT_DONE, message=str(failure), remedy=failure.remedy)


def _token(token: Token, hub: str) -> Iterator[Result]:
    """https://huggingface.co/docs/hub/api: whoami-v2 takes any token that is valid."""
    try:
        said = web.ask_json(f"{hub}/api/whoami-v2", what="the Hugging Face token", headers=_bearer(token))
    except web.LookupFailed as failure:
        if failure.status != 401:
            raise
        message = f"the Hugging Face token of {token.source} is not valid (HTTP 401)"
        remedy = "Make another at https://huggingface.co/settings/tokens, and set aks-vllm:hf-token to it."
        yield Result(check="hugging-face", status=Status.PROBLEM, message=message, remedy=remedy)
        return
    name = said.get("name") if isinstance(said, Mapping) else None
    if not isinstance(name, str):
        raise NotDone("the Hugging Face token: the Hub does not say whose it is", "Run it again.")
    message = f"the token of {token.source} is valid, for the account {name}"
    yield Result(check="hugging-face", status=Status.OK, message=message)


def _model(model: ModelPlan, token: Token | None, hub: str) -> Result:
    """Whether the files may be read: the Hub answers a download of one with where it lies, and with why not.

    The header X-Error-Code is what huggingface_hub goes by: https://huggingface.co/docs/huggingface_hub/package_reference/utilities
    """
    name, revision = model.preset.model_id, model.revision or "main"
    url = f"{hub}/{quote(name)}/resolve/{quote(revision)}/config.json"
    what = f"{name} at {revision[:12]}"

    def result(status: Status, message: str, remedy: str = "") -> Result:
        return Result(check="hugging-face", status=status, message=message, remedy=remedy)

    try:
        web.ask(url, what=what, method="HEAD", headers=_bearer(token), redirects=False)
    except web.LookupFailed as failure:
        code = failure.status
        reason = "" if failure.answer is None else failure.answer.headers.get("X-Error-Code", "")
        if code in (401, 403) and reason in ("GatedRepo", "") and model.preset.gated:
            remedy = f"Accept its licence with the token's account at https://huggingface.co/{name}, and let a "
            remedy += "fine-grained token read public gated repositories."
            return result(Status.PROBLEM, f"{what}: this token may not read it (HTTP {code})", remedy)
        if code in (401, 403, 404):
            reason = reason or f"HTTP {code}"
            remedy = f"Look at https://huggingface.co/{name}/commits/main, and correct model-id or revision."
            return result(Status.PROBLEM, f"{what}: the Hub does not have it, or not for this token ({reason})", remedy)
        raise
    if model.revision is None:
        remedy = f"make pin PRESET={model.preset.name}"
        return result(Status.WARNING, f"{name} can be read, and is not pinned to a commit", remedy)
    return result(Status.OK, f"{what} can be read")


def _bearer(token: Token | None) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token.value}"} if token else {}


# Images.


def _images(plan: StackPlan, entra: Callable[[], str] | None) -> Iterator[Result]:
    server = plan.registry.login_server if plan.registry else ""
    copied = {f"{server}/{each.target}": each.command for each in plan.registry.images} if plan.registry else {}
    for image in {image.reference: image for image in images_of(plan)}.values():
        yield _image(image, copied.get(f"{image.repository}:{image.tag}"), entra)


def _image(image: Image, copied: str | None, entra: Callable[[], str] | None) -> Result:
    """Whether a registry has it; `copied`: what puts it into one's own."""

    def result(status: Status, message: str, remedy: str = "") -> Result:
        return Result(check="images", status=status, message=message, remedy=remedy)

    named = f"{image.repository}:{image.tag}"
    try:
        found = registry.digest(image.repository, image.digest or image.tag, entra if copied else None)
    except web.LookupFailed as failure:
        if failure.status == 404:
            missing = f"{image.repository}@{image.digest}" if image.digest else named
            remedy = "Correct presets/images.yaml: a node could not pull it."
            if copied:
                remedy = f"Copy it: {' '.join(copied.replace(BROKEN, ' ').split())}"
            return result(Status.PROBLEM, f"the registry does not have {missing}", remedy)
        return result(Status.NOT_DONE, str(failure), failure.remedy)
    if image.digest is None:
        remedy = "make pin PRESET=... writes it down, so that it cannot change under the tag."
        return result(Status.WARNING, f"{named} is there, {found} today, and not pinned", remedy)
    return result(Status.OK, f"{named} is there under its digest {image.digest[:19]}…")
