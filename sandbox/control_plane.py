"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler, and KWOK in place of kubelets.

What is simulated, and how it differs from AKS:

* Nodes are objects that KWOK keeps Ready. Their GPUs are there at once, while on AKS the device plugin offers them.
* Pods start, become ready after a delay, and end as `kwok-stages.yaml` says; nothing runs in them.
* Users sign in through `bin/kubelogin`, a stand-in for Azure/kubelogin with its flags. Roles in Azure are not asked.
* NetworkPolicies, and Cilium's, are stored and not enforced, and there is no DNS.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import shlex
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import yaml
from kubernetes import client

from sandbox.certificates import make_certificates, write_private
from sandbox.cluster_api import MERGE, ClusterApi, Json, NotFoundError
from sandbox.processes import Processes

#: In the order of their start.
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
PORTS = ("etcd", "etcd-peer", "kube-apiserver")
STAGES = Path(__file__).parent / "kwok-stages.yaml"

#: Seconds until the API server must be ready: 3 when idle, more on a busy machine.
START_LIMIT = 90
#: Seconds to wait for a port before another one is chosen, and kubeconfigs handed out earlier lead nowhere.
PORT_LIMIT = 3
#: Seconds until KWOK must have made a new node Ready.
NODE_LIMIT = 30

#: The server application of AKS and the public client of kubelogin, the same for every tenant
#: (https://azure.github.io/kubelogin/concepts/aks.html).
AKS_SERVER_ID = "6dae42f8-4368-4678-94ff-3960e28e3630"
KUBELOGIN_CLIENT_ID = "80faf920-1908-4b52-b5ef-a8e7bedfc67a"
TENANT_ID = "00000000-0000-0000-0000-000000000000"


def _kind(group: str, version: str, kind: str, plural: str) -> Json:
    """A kind that an AKS cluster has from its add-ons; its schema is theirs, and is not checked here."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


#: https://docs.cilium.io/en/stable/network/kubernetes/policy/,
#: https://secrets-store-csi-driver.sigs.k8s.io/concepts#secretproviderclass and
#: https://learn.microsoft.com/azure/azure-monitor/containers/prometheus-metrics-scrape-crd
KINDS = (
    _kind("cilium.io", "v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies"),
    _kind("azmonitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
    _kind("secrets-store.csi.x-k8s.io", "v1", "SecretProviderClass", "secretproviderclasses"),
)

KUBELOGIN = Path(__file__).parent / "kubelogin.sh"


class ControlPlaneError(Exception):
    """The control plane is not what it should be; the message names the component and its log."""


class ControlPlane:
    """One control plane. All that it writes is under `folder`; the same folder is the same cluster."""

    def __init__(self, folder: Path, progress: Callable[[str], None], *, pod_ready_delay_seconds: float = 3) -> None:
        self.folder = folder.resolve()
        self.bin = self.folder / "bin"
        self._ready_delay = pod_ready_delay_seconds
        self._processes = Processes(self.folder, COMPONENTS, progress)

    def start(self, binaries: Path) -> None:
        """Start what does not run yet, adopt what does, and wait until the API server is ready.

        Raises ControlPlaneError when a component does not come up.
        """
        with self._only_one():
            ports_moved = self._choose_ports()
            make_certificates(self._made("certificates"))
            stages_changed = self._write_files()
            if ports_moved:
                self._processes.end(COMPONENTS)
            elif stages_changed:
                self._processes.end(["kwok"])
            commands = self._commands(binaries.resolve())
            for name in ("etcd", "kube-apiserver"):
                self._processes.ensure(name, commands[name])
            self._wait_until(self._api_ready, "kube-apiserver", COMPONENTS[:2])
            if not self._processes.runs("kwok", commands["kwok"]):
                self._processes.end(["kwok"])
                # A former KWOK's leases would keep the nodes from the new one for the rest of their 40 s.
                self._api().request("DELETE", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")
            for name in COMPONENTS[2:]:
                self._processes.ensure(name, commands[name])
            self._wait_until(self._controllers_work, "kube-controller-manager", COMPONENTS)
            self._serve_kinds()

    def _serve_kinds(self) -> None:
        """The kinds that add-ons bring to an AKS cluster; stored, and acted upon by nobody here."""
        api, path = self._api(), "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for kind in KINDS:
            if api.get(f"{path}/{kind['metadata']['name']}") is None:
                api.request("POST", path, body=kind)

    def stop(self) -> None:
        """End every process of this control plane and wait until they are gone. The data stays."""
        if self.folder.exists():
            with self._only_one():
                self._processes.end(COMPONENTS)

    def running(self) -> bool:
        """Whether all five components run. Whoever asks also keeps their logs short: they may run for weeks."""
        self._processes.trim_logs()
        return set(self.processes()) == set(COMPONENTS)

    def processes(self) -> dict[str, int]:
        """The process id of each running component."""
        return self._processes.ids()

    def admin_client(self) -> client.ApiClient:
        """The official client, signed in as a member of system:masters."""
        configuration = client.Configuration()
        configuration.host = self._server
        configuration.ssl_ca_cert = str(self.folder / "certificates/ca.crt")
        configuration.api_key = {"authorization": f"Bearer {self._token('admin')}"}
        return client.ApiClient(configuration)

    def user_kubeconfig(self) -> str:
        """The kubeconfig that AKS hands to users of a cluster with Microsoft Entra ID: `kubelogin`, no credential."""
        login = {"--environment": "AzurePublicCloud", "--server-id": AKS_SERVER_ID, "--client-id": KUBELOGIN_CLIENT_ID}
        login |= {"--tenant-id": TENANT_ID, "--login": "devicecode"}
        plugin = {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "command": "kubelogin",
            "args": ["get-token", *(part for option in login.items() for part in option)],
            "env": None,
            "provideClusterInfo": False,
        }
        return self._kubeconfig({"exec": plugin})

    # Nodes.

    def add_node(self, name: str, labels: dict[str, str], taints: list[Json], capacity: dict[str, str]) -> None:
        """A node with these labels, taints (`key`, `value`, `effect`) and capacity (`nvidia.com/gpu: "8"`), Ready.

        An existing node is brought to them. Raises ControlPlaneError when it does not become Ready.
        """
        api = self._api()
        well_known = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        status = {"capacity": capacity, "allocatable": capacity}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": well_known | labels},
            "spec": {"taints": taints},
            "status": status,
        }
        path = f"/api/v1/nodes/{name}"
        live = api.get(path)
        if live is None:
            api.request("POST", "/api/v1/nodes", body=node)
        else:
            gone = {key: None for key in live["metadata"]["labels"] if key not in well_known | labels}
            conditions = [taint for taint in live["spec"].get("taints", []) if _is_condition(taint)]
            change = {"metadata": {"labels": well_known | labels | gone}, "spec": {"taints": [*taints, *conditions]}}
            api.request("PATCH", path, body=change, content_type=MERGE)
            extra = {key: None for key in live["status"]["capacity"] if key not in capacity}
            status = dict.fromkeys(status, capacity | extra)
            api.request("PATCH", f"{path}/status", body={"status": status}, content_type=MERGE)
        deadline = time.monotonic() + NODE_LIMIT
        while not _node_ready(api.get(path)):
            if time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"node {name} is not Ready after {NODE_LIMIT} s{self._processes.last_words('kwok')}"
                )
            time.sleep(0.1)

    def remove_node(self, name: str) -> None:
        """Take a node away, with the pods on it, as deleting its virtual machine does."""
        api = self._api()
        if api.get(f"/api/v1/nodes/{name}") is None:
            return
        api.request("DELETE", f"/api/v1/nodes/{name}")
        for pod in api.request("GET", "/api/v1/pods", query={"fieldSelector": f"spec.nodeName={name}"})["items"]:
            metadata = pod["metadata"]
            with contextlib.suppress(NotFoundError):  # its controller or KWOK was quicker
                path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
                api.request("DELETE", path, query={"gracePeriodSeconds": "0"})

    # Files.

    def _made(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def _write_files(self) -> bool:
        """Everything the components read, but certificates; true when the pods' behaviour has changed."""
        certificates, bin_ = self.folder / "certificates", self._made("bin")
        users = [f"{self._token(name)},{name},{name},system:masters" for name in ("admin", "deployer")]
        write_private(certificates / "tokens.csv", "\n".join(users) + "\n")
        write_private(self.folder / "admin.kubeconfig", self._kubeconfig({"token": self._token("admin")}))
        credential = {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "kind": "ExecCredential",
            "status": {"token": self._token("deployer")},
        }
        write_private(certificates / "deployer.json", json.dumps(credential))
        script = KUBELOGIN.read_text().replace("@SERVER_ID@", AKS_SERVER_ID)
        script = script.replace("@CREDENTIAL@", shlex.quote(str(certificates / "deployer.json")))
        write_private(bin_ / "kubelogin", script)
        (bin_ / "kubelogin").chmod(0o700)
        stages = STAGES.read_text().replace("READY_DELAY_MILLISECONDS", str(round(self._ready_delay * 1000)))
        path = self.folder / "kwok-stages.yaml"
        changed = not path.exists() or path.read_text() != stages
        write_private(path, stages)
        return changed

    def _choose_ports(self) -> bool:
        """Ports are kept while they are ours or free; true when others had to be chosen."""
        path = self._made("data").parent / "ports.json"
        ports = json.loads(path.read_text()) if path.exists() else {}
        running = self.processes()
        if ports and all(
            ("kube-apiserver" if name == "kube-apiserver" else "etcd") in running or _is_free(ports[name])
            for name in PORTS
        ):
            return False
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
            numbers = [opened.getsockname()[1] for opened in sockets]
        write_private(path, json.dumps(dict(zip(PORTS, numbers, strict=True))))
        return bool(ports)

    @property
    def _ports(self) -> dict[str, int]:
        try:
            return json.loads((self.folder / "ports.json").read_text())
        except FileNotFoundError:
            raise ControlPlaneError(f"no control plane was started in {self.folder}") from None

    @property
    def _server(self) -> str:
        return f"https://127.0.0.1:{self._ports['kube-apiserver']}"

    def _token(self, user: str) -> str:
        return (self.folder / "certificates" / f"{user}.token").read_text()

    def _kubeconfig(self, user: Json) -> str:
        authority = base64.b64encode((self.folder / "certificates/ca.crt").read_bytes()).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "sandbox", "cluster": {"certificate-authority-data": authority, "server": self._server}}
            ],
            "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": "clusterUser_sandbox"}}],
            "current-context": "sandbox",
            "users": [{"name": "clusterUser_sandbox", "user": user}],
            "preferences": {},
        }
        return yaml.safe_dump(document, sort_keys=False)

    # Processes.

    def _commands(self, binaries: Path) -> dict[str, list[str]]:
        """Every command line holds the folder: that is how a process is recognised as this control plane's."""
        ports, certificates = self._ports, self.folder / "certificates"
        etcd, peer = f"https://127.0.0.1:{ports['etcd']}", f"http://127.0.0.1:{ports['etcd-peer']}"
        key = f"{certificates}/service-account.key"
        client_of_api = [f"--kubeconfig={self.folder}/admin.kubeconfig"]
        without_server = ["--leader-elect=false", "--secure-port=0"]
        arguments = {
            "etcd": [
                f"--data-dir={self.folder}/data/etcd",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                f"--cert-file={certificates}/server.crt",
                f"--key-file={certificates}/server.key",
                f"--trusted-ca-file={certificates}/ca.crt",
                "--client-cert-auth",
                "--enable-grpc-gateway=false",
            ],
            "kube-apiserver": [
                f"--etcd-servers={etcd}",
                f"--etcd-cafile={certificates}/ca.crt",
                f"--etcd-certfile={certificates}/server.crt",
                f"--etcd-keyfile={certificates}/server.key",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={ports['kube-apiserver']}",
                f"--tls-cert-file={certificates}/server.crt",
                f"--tls-private-key-file={certificates}/server.key",
                # Loopback may not stand in Endpoints, so the `kubernetes` Service has none.
                "--endpoint-reconciler-type=none",
                "--authorization-mode=RBAC",
                f"--token-auth-file={certificates}/tokens.csv",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.0.0.0/16",
                "--allow-privileged=true",
            ],
            "kube-controller-manager": [
                *client_of_api,
                *without_server,
                f"--service-account-private-key-file={key}",
                f"--root-ca-file={certificates}/ca.crt",
            ],
            "kube-scheduler": [*client_of_api, *without_server],
            "kwok": [
                *client_of_api,
                f"--config={self.folder}/kwok-stages.yaml",
                "--manage-all-nodes=true",
                "--cidr=10.244.0.0/16",
                "--node-ip=10.224.0.4",
                "--node-lease-duration-seconds=40",
            ],
        }
        return {name: [str(binaries / name), *arguments[name]] for name in COMPONENTS}

    def _wait_until(self, done: Callable[[], bool], name: str, needed: tuple[str, ...]) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not done():
            for other in needed:
                if other not in self.processes():
                    raise ControlPlaneError(f"{other} stopped during the start{self._processes.last_words(other)}")
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"{name} is not ready after {START_LIMIT} s{self._processes.last_words(name)}")
            time.sleep(0.1)

    def _api_ready(self) -> bool:
        trust = ssl.create_default_context(cafile=self.folder / "certificates/ca.crt")
        request = urllib.request.Request(  # noqa: S310 (always https on loopback)
            f"{self._server}/readyz", headers={"Authorization": f"Bearer {self._token('admin')}"}
        )
        try:
            with urllib.request.urlopen(request, context=trust, timeout=5) as response:  # noqa: S310
                return response.status == 200
        except OSError:
            return False

    def _controllers_work(self) -> bool:
        """No pod is admitted to a namespace before a controller has given it its default service account."""
        if not self.running():
            return False
        return self._api().get("/api/v1/namespaces/default/serviceaccounts/default") is not None

    def _api(self) -> ClusterApi:
        return ClusterApi(self.admin_client())

    @contextmanager
    def _only_one(self) -> Generator[None]:
        """Two programs may not start or stop the same control plane at once."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _is_free(port: int) -> bool:
    """Whether a port can be had, given a moment: a killed process leaves the process table before it lets go of it."""
    until = time.monotonic() + PORT_LIMIT
    while True:
        try:
            socket.create_server(("127.0.0.1", port)).close()
            return True
        except OSError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)


def _node_ready(node: Json | None) -> bool:
    """Ready, and its controllers have taken notice: until they lift their taints nothing is scheduled there."""
    node = node or {}
    conditions = node.get("status", {}).get("conditions", [])
    tainted = any(_is_condition(taint) for taint in node.get("spec", {}).get("taints", []))
    return not tainted and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _is_condition(taint: Json) -> bool:
    return taint["key"].startswith("node.kubernetes.io/")
