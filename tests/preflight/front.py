"""An HTTP front of the simulated Azure, with a price list, a Hub and a registry beside it, all on 127.0.0.1.

The shapes are the documented ones (Microsoft Learn: Resource SKUs, Compute usages, AKS list Kubernetes versions, role
assignments and definitions, providers, subscriptions, Azure Retail Prices; Hugging Face Hub API; OCI distribution).
What there is comes from `sandbox/azure-rules.yaml` and `presets/vm-sizes.yaml`; tests change what a `Front` has.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from azure.core.credentials import AccessToken

from preflight.endpoints import Endpoints
from sandbox.azure import rules, vm_sizes

REGION = "eastus"
SUBSCRIPTION = rules()["client"]["subscriptionId"]
PRINCIPAL = rules()["client"]["objectId"]
DIGEST = "sha256:" + "ab" * 32
HF_TOKEN = "secret-of-the-hub-0123456789"  # noqa: S105  made up, and without the prefix that is hidden anyway
OWNER, CONTRIBUTOR = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635", "b24988ac-6180-42a0-ab88-20f7382dd24c"
ACCESS_ADMINISTRATOR = "f58310d9-a9f6-439a-9e8d-f62e7b41a168"
RBAC_CLUSTER_ADMIN = "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b"
#: Microsoft Learn, Azure built-in roles.
ROLES = {
    RBAC_CLUSTER_ADMIN: ("Azure Kubernetes Service RBAC Cluster Admin", ["*/read"], []),
    OWNER: ("Owner", ["*"], []),
    CONTRIBUTOR: (
        "Contributor",
        ["*"],
        ["Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write", "Microsoft.Blueprint/*/write"],
    ),
    ACCESS_ADMINISTRATOR: (
        "Role Based Access Control Administrator",
        ["Microsoft.Authorization/roleAssignments/write", "Microsoft.Authorization/roleAssignments/delete", "*/read"],
        [],
    ),
}

Json = Any


class Broken:
    """What an answer can be instead: a status with headers, silence, or something that is no JSON."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None, text: str | None = None) -> None:
        self.status, self.headers, self.text = status, headers or {}, text


SILENT = Broken(text=None, status=0)
#: Seconds that tests of it wait: busy machines need some for an answer that does come.
PATIENCE = 2
MALFORMED = Broken(text="<html>a proxy</html>")
OTHER_SHAPE = Broken(text='["not", "an", "object"]')


class Front:
    """The servers. `broken` and `weak` map the name of a question to what is answered instead."""

    def __init__(self, certificates: Path) -> None:
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.broken: dict[str, Broken] = {}  # for ever
        self.weak: dict[str, list[Broken]] = {}  # until they are used up
        self.assigned = [(f"/subscriptions/{SUBSCRIPTION}", OWNER, None)]
        self.used = {"cores": 40, "standardndsh100v5family": 0, "standardddsv5family": 8}
        self.limits = {"cores": 1000}
        self.restrictions: dict[str, list[Json]] = {}
        self.missing_sizes: set[str] = set()
        self.unregistered: dict[str, str] = {}
        self.grafana_in = ["East US", "West Europe"]
        self.state = "Enabled"
        self.cluster: Json = None
        self.pools: list[Json] = []
        self.versions = {"1.34": ["KubernetesOfficial"], "1.35": ["KubernetesOfficial"], "1.36": ["KubernetesOfficial"]}
        self.previews: set[str] = set()
        self.reserved: list[tuple[str, int, int, list[str]]] | None = None  # size, nodes, taken, zones
        self.reserved_in = REGION
        self.vault: Json = {"enableRbacAuthorization": True, "publicNetworkAccess": "Enabled"}
        self.vault_secrets: dict[str, Json] = {"hugging-face": {"enabled": True}}
        self.price: float | None = 98.32
        self.licence_accepted = True
        self.token_valid = True
        self.digests = {DIGEST}
        self.entra: str | None = None  # the only token that the registry then takes in exchange for one of its own
        self.stop_waiting = threading.Event()
        self._servers = [_Server(self, None), _Server(self, certificates)]
        plain, tls = self._servers
        self.registry = f"127.0.0.1:{plain.server_port}"
        here = f"http://{self.registry}"
        self.endpoints = Endpoints(arm=f"https://127.0.0.1:{tls.server_port}", prices=here, hub=here)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.stop_waiting.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def answer(self, path: str, query: dict[str, str], headers: dict[str, str]) -> tuple[str, Json | Broken]:
        """The name of what was asked for, and the answer."""
        for pattern, name, find in self._routes():
            if match := re.fullmatch(pattern, path, re.IGNORECASE):
                if waiting := self.weak.get(name):
                    return name, waiting.pop(0)
                if name in self.broken:
                    return name, self.broken[name]
                return name, find(*match.groups(), query=query, headers=headers)
        return "nothing", Broken(404)

    def _routes(self) -> list[tuple[str, str, Callable[..., Json | Broken]]]:
        own = f"/subscriptions/{SUBSCRIPTION}"
        cluster = rf"{own}/resourceGroups/([^/]+)/providers/Microsoft.ContainerService/managedClusters/([^/]+)"
        return [
            (own, "subscription", self._subscription),
            (rf"{own}/providers/Microsoft.Compute/skus", "skus", self._skus),
            (rf"{own}/providers/Microsoft.Compute/locations/(\w+)/usages", "usages", self._usages),
            (
                rf"{own}/providers/Microsoft.ContainerService/locations/(\w+)/kubernetesVersions",
                "versions",
                self._versions,
            ),
            (r"(/.+)/providers/Microsoft.Authorization/roleAssignments", "assignments", self._assignments),
            (r".*/providers/Microsoft.Authorization/roleDefinitions/([\w-]+)", "roles", self._role),
            (rf"{own}/providers/([\w.]+)", "providers", self._provider),
            (r".*/capacityReservationGroups/([\w-]+)", "reservation-group", self._reservation_group),
            (r".*/capacityReservationGroups/[\w-]+/capacityReservations", "reservations", self._reservations),
            (r".*/providers/Microsoft.KeyVault/vaults/([\w-]+)", "vault", self._vault),
            (r".*/providers/Microsoft.KeyVault/vaults/[\w-]+/secrets/([\w-]+)", "secret", self._secret),
            (cluster, "cluster", self._cluster),
            (rf"{cluster}/agentPools", "pools", lambda *_, **__: {"value": self.pools}),
            (r"/api/retail/prices", "prices", self._prices),
            (r"/api/whoami-v2", "whoami", self._whoami),
            (r"/([\w.-]+/[\w.-]+)/resolve/(\w+)/config.json", "model", self._model),
            (r"/token", "registry-token", lambda **_: {"token": "anonymous"}),
            (r"/oauth2/(exchange|token)", "registry-exchange", self._exchange),
            (r"/v2/(.+)/manifests/(.+)", "manifest", self._manifest),
        ]

    # Azure.

    def _subscription(self, **_: Any) -> Json:
        return {"subscriptionId": SUBSCRIPTION, "displayName": "Simulated", "state": self.state}

    def _skus(self, *, query: dict[str, str], **_: Any) -> Json:
        region = re.fullmatch(r"location eq '(\w+)'", query["$filter"])
        assert region is not None
        rows = [
            {
                "resourceType": "virtualMachines",
                "name": name,
                "family": size["quota-family"],
                "locations": [region[1]],
                "locationInfo": [{"location": region[1], "zones": ["1", "2", "3"]}],
                "capabilities": [{"name": "vCPUs", "value": str(size["vcpus"])}, {"name": "GPUs", "value": "12"}],
                "restrictions": self.restrictions.get(name, []),
            }
            for name, size in vm_sizes().items()
            if name not in self.missing_sizes
        ]
        half = len(rows) // 2  # in two pages, as Azure does with many
        if query.get("page") == "2":
            return {"value": rows[half:]}
        disks = {"resourceType": "disks", "name": "Premium_LRS", "locations": [region[1]]}
        following = f"{self.endpoints.arm}/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/skus"
        link = urllib.parse.urlencode({"$filter": query["$filter"], "page": "2", "api-version": query["api-version"]})
        return {"value": [disks, *rows[:half]], "nextLink": f"{following}?{link}"}

    def _usages(self, region: str, **_: Any) -> Json:
        quota = rules()["quota"]
        families = {size["quota-family"]: quota["default"] for size in vm_sizes().values()} | quota["families"]
        limits = {name.lower(): limit for name, limit in families.items()} | {"lowprioritycores": 100} | self.limits
        return {
            "value": [
                {
                    "unit": "Count",
                    "currentValue": self.used.get(name.lower(), 0),
                    "limit": limits[name.lower()],
                    "name": {"value": name, "localizedValue": f"{name} vCPUs in {region}"},
                }
                for name in (
                    "cores",
                    "lowPriorityCores",
                    *families,
                )
            ]
        }

    def _versions(self, _region: str, **_: Any) -> Json:
        return {
            "values": [
                {
                    "version": version,
                    "isPreview": True if version in self.previews else None,
                    "capabilities": {"supportPlan": plans},
                    "patchVersions": {f"{version}.{patch}": {"upgrades": []} for patch in (1, 2, 10)},
                }
                for version, plans in self.versions.items()
            ]
        }

    def _assignments(self, _scope: str, *, query: dict[str, str], **_: Any) -> Json:
        assert query["$filter"] == f"assignedTo('{PRINCIPAL}')"
        return {
            "value": [
                {
                    "id": f"{scope}/providers/Microsoft.Authorization/roleAssignments/{number}",
                    "properties": {
                        "scope": scope,
                        "principalId": PRINCIPAL,
                        "roleDefinitionId": f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization"
                        f"/roleDefinitions/{role}",
                        "condition": condition,
                    },
                }
                for number, (scope, role, condition) in enumerate(self.assigned)
            ]
        }

    def _role(self, role: str, **_: Any) -> Json:
        name, actions, not_actions = ROLES[role]
        inside = ["Microsoft.ContainerService/managedClusters/*"] if role == RBAC_CLUSTER_ADMIN else []
        permissions = [{"actions": actions, "notActions": not_actions, "dataActions": inside, "notDataActions": []}]
        return {"name": role, "properties": {"roleName": name, "type": "BuiltInRole", "permissions": permissions}}

    def _provider(self, namespace: str, **_: Any) -> Json:
        kinds = {"Microsoft.Dashboard": "grafana", "Microsoft.Monitor": "accounts"}
        return {
            "namespace": namespace,
            "registrationState": self.unregistered.get(namespace, "Registered"),
            "resourceTypes": [{"resourceType": kinds.get(namespace, "operations"), "locations": self.grafana_in}],
        }

    def _cluster(self, _group: str, name: str, **_: Any) -> Json | Broken:
        return self.cluster or Broken(404, text=json.dumps({"error": {"code": "ResourceNotFound", "message": name}}))

    def _reservation_group(self, name: str, **_: Any) -> Json | Broken:
        if self.reserved is None:
            return Broken(404, text=json.dumps({"error": {"code": "ResourceNotFound", "message": name}}))
        return {"name": name, "location": self.reserved_in}

    def _vault(self, name: str, **_: Any) -> Json | Broken:
        if not self.vault:
            return Broken(404, text=json.dumps({"error": {"code": "ResourceNotFound", "message": name}}))
        return {"name": name, "properties": self.vault}

    def _secret(self, name: str, **_: Any) -> Json | Broken:
        if name not in self.vault_secrets:
            return Broken(404, text=json.dumps({"error": {"code": "SecretNotFound", "message": name}}))
        return {"name": name, "properties": {"attributes": self.vault_secrets[name]}}

    def _reservations(self, **_: Any) -> Json:
        return {
            "value": [
                {
                    "name": f"reservation-{number}",
                    "location": self.reserved_in,
                    "zones": zones,
                    "sku": {"name": size, "capacity": capacity},
                    "properties": {"virtualMachinesAssociated": [{"id": f"/vm/{vm}"} for vm in range(taken)]},
                }
                for number, (size, capacity, taken, zones) in enumerate(self.reserved or [])
            ]
        }

    # Others.

    def _prices(self, *, query: dict[str, str], **_: Any) -> Json:
        assert "priceType eq 'Consumption'" in query["$filter"]
        size = re.search(r"armSkuName eq 'Standard_([^']+)'", query["$filter"])
        assert size is not None
        name = size[1].replace("_", " ")

        def row(price: float, sku: str, product: str = "Virtual Machines", since: str = "2023-08-01T00:00:00Z") -> Json:
            kinds = {"type": "Consumption", "skuName": sku, "meterName": sku, "productName": product}
            return {**kinds, "retailPrice": price, "effectiveStartDate": since}

        if query.get("$skip"):
            return {"Items": [row(self.price, name)] if self.price else [], "NextPageLink": None}
        others = [
            row(11.0, f"{name} Spot"),
            row(22.0, f"{name} Low Priority"),
            row(150.0, name, "Virtual Machines Windows"),
            {**row(33.0, name), "type": "DevTestConsumption"},
            *([row(120.0, name, since="2022-01-01T00:00:00Z")] if self.price else []),  # of before
        ]
        link = urllib.parse.urlencode({"$filter": query["$filter"], "$skip": "5"})
        return {"Items": others, "NextPageLink": f"{self.endpoints.prices}/api/retail/prices?{link}"}

    def _whoami(self, *, headers: dict[str, str], **_: Any) -> Json | Broken:
        good = self.token_valid and headers.get("authorization") == f"Bearer {HF_TOKEN}"
        return {"type": "user", "name": "someone", "auth": {"type": "access_token"}} if good else Broken(401)

    def _model(self, _name: str, revision: str, *, headers: dict[str, str], **_: Any) -> Broken:
        if revision == "0" * 40:
            return Broken(404, {"X-Error-Code": "RevisionNotFound"})
        if "authorization" in headers and not self.licence_accepted:
            return Broken(403, {"X-Error-Code": "GatedRepo"})
        return Broken(302, {"Location": "https://somewhere.invalid/a-file"})

    def _exchange(self, step: str, *, query: dict[str, str], **_: Any) -> Json | Broken:
        """An Azure registry: https://github.com/Azure/acr/blob/main/docs/AAD-OAuth.md"""
        if step == "exchange":
            good = query.get("grant_type") == "access_token" and query.get("access_token") == self.entra
            return {"refresh_token": "refresh"} if good else Broken(401)
        good = query.get("grant_type") == "refresh_token" and query.get("refresh_token") == "refresh"
        return {"access_token": "pull"} if good and query.get("scope") == "repository:x:pull" else Broken(401)

    def _manifest(self, _name: str, reference: str, *, headers: dict[str, str], **_: Any) -> Broken:
        if headers.get("authorization") != ("Bearer pull" if self.entra else "Bearer anonymous"):
            realm = f'Bearer realm="http://{self.registry}/token",service="here",scope="repository:x:pull"'
            return Broken(401, {"WWW-Authenticate": realm})
        if reference.startswith("sha256:") and reference not in self.digests:
            return Broken(404)
        found = reference if reference.startswith("sha256:") else DIGEST
        return Broken(200, {"Docker-Content-Digest": found})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, front: Front, certificates: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.front = front
        if certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
            self.socket = context.wrap_socket(self.socket, server_side=True)


class _Handler(BaseHTTPRequestHandler):
    def _any(self) -> None:
        assert isinstance(self.server, _Server)
        front, url = self.server.front, urllib.parse.urlsplit(self.path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        form = self.rfile.read(int(headers.get("content-length", 0))).decode()
        query = dict(urllib.parse.parse_qsl(f"{url.query}&{form}"))
        name, answer = front.answer(urllib.parse.unquote(url.path), query, headers)
        front.asked.append((self.command, name))
        front.headers.append(headers)
        if answer is SILENT:
            front.stop_waiting.wait(30)
            return
        answer = answer if isinstance(answer, Broken) else Broken(text=json.dumps(answer))
        body = (answer.text or "").encode()
        self.send_response(answer.status)
        for key, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815  names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's own name
        """Quiet."""


class SignedIn:
    """A credential that gives a token of the simulated subscription's client; `refusal` is raised instead."""

    def __init__(self, claims: Json = None, refusal: Exception | None = None) -> None:
        self.claims, self.refusal = {"oid": PRINCIPAL} if claims is None else claims, refusal
        self.given = 0

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        self.given += 1
        if self.refusal is not None:
            raise self.refusal
        body = base64.urlsafe_b64encode(json.dumps(self.claims).encode()).decode().rstrip("=")
        return AccessToken(f"header.{body}.signature", int(time.time()) + 3600)
