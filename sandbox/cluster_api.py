"""A cluster's API as the sandbox uses it: sign in with a kubeconfig, send JSON, get JSON or the server's message."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3
import yaml
from kubernetes import client
from kubernetes.config import ConfigException, new_client_from_config_dict
from kubernetes.config.exec_provider import ExecProvider
from kubernetes.config.kube_config import ConfigNode

Json = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
#: Seconds one request may take; a control plane on loopback answers in milliseconds.
REQUEST_TIMEOUT = 30
#: A busy server is asked again for about two seconds; never with a POST, which may have acted. One that is not there
#: takes longer to come back.
RETRIES = urllib3.Retry(
    total=4,
    connect=1,
    backoff_factor=0.15,
    status_forcelist=(429, 503, 504),
    allowed_methods=("GET", "PATCH", "DELETE"),
    raise_on_status=False,
)
# It would tell people about every one of those retries.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


class ClusterError(Exception):
    """The API server refused, or was not reached; the text is its own message."""


class NotFoundError(ClusterError):
    """There is no such object, or no such namespace to put it in, or the cluster does not serve its kind."""


class ConflictError(ClusterError):
    """Somebody else manages what was asked for."""


class UnreachableError(ClusterError):
    """Nobody answers at the API server's address."""


class ClusterApi:
    """Requests to one cluster. Safe to use from several threads."""

    def __init__(self, api_client: client.ApiClient) -> None:
        self._client = api_client
        self._resources: dict[str, list[Json]] = {}

    @classmethod
    def connect(cls, kubeconfig: str, path: Path | None = None) -> ClusterApi:
        """Sign in as kubectl does; an exec plug-in is looked for in the folder `path` first.

        Raises ClusterError when the kubeconfig is no kubeconfig or its plug-in refuses.
        """
        try:
            config = yaml.safe_load(kubeconfig)
            for user in config["users"]:
                _sign_in(user["user"], path)
            # The client keeps the cluster's certificate in a file; killed, it leaves that behind.
            return cls(new_client_from_config_dict(config, persist_config=False, temp_file_path=path and str(path)))
        except (ConfigException, yaml.YAMLError, KeyError, TypeError, ValueError) as problem:
            # Never the document: it holds credentials.
            reason = problem if isinstance(problem, ConfigException) else type(problem).__name__
            raise ClusterError(f"this kubeconfig gives no access: {reason}") from None

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """The answer to one request.

        Raises ClusterError.
        """
        prepared = self._client.param_serialize(
            method=method,
            resource_path=path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": content_type, "Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        verb, url, headers, *_ = prepared
        try:
            payload = None if body is None else json.dumps(body)
            response = self._client.rest_client.pool_manager.request(
                verb, url, headers=headers, body=payload, timeout=REQUEST_TIMEOUT, retries=RETRIES
            )
        except urllib3.exceptions.HTTPError as problem:
            host, reason = self._client.configuration.host, getattr(problem, "reason", None) or problem
            # The reason begins with the connection's address in memory.
            reason = str(reason).rpartition("object at ")[2].partition(": ")[2] or str(reason)
            raise UnreachableError(f"the API server at {host} cannot be reached: {reason}") from None
        try:
            answer = json.loads(response.data)
        except ValueError:
            answer = {"message": response.data.decode(errors="replace")}
        if response.status >= 400:
            refusal = {404: NotFoundError, 409: ConflictError}.get(response.status, ClusterError)
            raise refusal(str(answer.get("message") or f"HTTP {response.status}"))
        return answer

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Json | None:
        """An object, or None when there is none at this path.

        Raises ClusterError.
        """
        try:
            return self.request("GET", path, query=query)
        except NotFoundError:
            return None

    def path(self, api_version: str, kind: str, namespace: str, name: str) -> str:
        """The path of an object, wherever it is namespaced or not.

        Raises ClusterError for a kind that this cluster does not serve.
        """
        resource = self._resource(api_version, kind)
        scope = f"/namespaces/{quote(namespace or 'default')}" if resource["namespaced"] else ""
        return f"{_root(api_version)}{scope}/{resource['name']}/{quote(name)}"

    def _resource(self, api_version: str, kind: str) -> Json:
        if api_version not in self._resources:
            listed = self.get(_root(api_version))
            if listed is None:
                raise NotFoundError(f"this cluster does not serve {api_version}: is its operator or CRD installed?")
            self._resources[api_version] = listed["resources"]
        for resource in self._resources[api_version]:
            if resource["kind"] == kind and "/" not in resource["name"]:
                return resource
        # A CustomResourceDefinition may have come since.
        del self._resources[api_version]
        raise NotFoundError(f"this cluster does not serve {api_version} {kind}: is its operator or CRD installed?")


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _sign_in(user: Json, path: Path | None) -> None:
    """Run the user's exec plug-in and put its token in the plug-in's place.

    The official client would do it, but it only logs a plug-in's failure and goes on as an anonymous user.
    """
    plugin = user.pop("exec", None)
    if plugin is None:
        return
    found = ExecProvider(ConfigNode("exec", plugin), None)
    if path is not None:
        found.env["PATH"] = f"{path}:{found.env.get('PATH', '')}"
    try:
        user["token"] = found.run()["token"]
    except FileNotFoundError:
        raise ConfigException(f"it signs in with `{plugin['command']}`, which is not on PATH") from None
