"""Azure Resource Manager through its official clients: only reading, with timeouts and retries, failures in words."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import ContentDecodePolicy, RetryPolicy, SansIOHTTPPolicy, UserAgentPolicy
from azure.core.pipeline.transport import RequestsTransport
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

from preflight import web
from preflight.account import SCOPE, SIGN_IN, Account
from preflight.checks import NotDone

LOOK = "Look at the network, and run it again."

# Says on standard error what NotDone says already.
logging.getLogger("azure").addHandler(logging.NullHandler())
logging.getLogger("azure").propagate = False


class ResourceManager:
    """The clients of one subscription, made when they are first needed."""

    def __init__(self, account: Account, endpoint: str) -> None:
        self._account, self._endpoint = account, endpoint

    def _client(self, kind: type, *before: Any) -> Any:
        # Their own pipeline would register a resource provider that is missing: a check must change nothing.
        policies = [
            UserAgentPolicy("aks-vllm"),
            ContentDecodePolicy(),
            _OnlyReading(),
            # A server that is silent for so long is silent the second time too.
            _Retries(retry_total=web.TRIES - 1, retry_read=0, retry_backoff_factor=web.PAUSE_SECONDS),
            ARMChallengeAuthenticationPolicy(self._account, SCOPE),
        ]
        transport = RequestsTransport(connection_timeout=web.TIMEOUT_SECONDS, read_timeout=web.TIMEOUT_SECONDS)
        options = {"base_url": self._endpoint, "policies": policies, "transport": transport}
        return kind(self._account, *before, credential_scopes=[SCOPE], **options)

    @property
    def signed_in(self) -> bool:
        """Whether there are a sign-in and a subscription at all."""
        try:
            self._account.token(), self._account.subscription()
        except NotDone:
            return False
        return True

    @property
    def subscription(self) -> str:
        """Its id. Raises NotDone."""
        return self._account.subscription()

    @property
    def principal(self) -> str:
        """The object id of the deployer. Raises NotDone."""
        return self._account.principal

    @property
    def compute(self) -> Any:
        """Microsoft.Compute: sizes and quota."""
        return self.compute_of(self.subscription)

    def compute_of(self, subscription: str) -> Any:
        """The same of any subscription: a capacity reservation may be shared with this one."""
        from azure.mgmt.compute import ComputeManagementClient

        return self._client(ComputeManagementClient, subscription)

    @property
    def containers(self) -> Any:
        """Microsoft.ContainerService: clusters, pools, Kubernetes versions."""
        from azure.mgmt.containerservice import ContainerServiceClient

        return self._client(ContainerServiceClient, self.subscription)

    @property
    def authorization(self) -> Any:
        """Microsoft.Authorization: roles."""
        from azure.mgmt.authorization import AuthorizationManagementClient

        return self._client(AuthorizationManagementClient, self.subscription)

    @property
    def resources(self) -> Any:
        """Microsoft.Resources: the registration of resource providers."""
        return self.resources_of(self.subscription)

    def resources_of(self, subscription: str) -> Any:
        """The same of any subscription: a vault may be in another one than the stack."""
        from azure.mgmt.resource.resources import ResourceManagementClient

        return self._client(ResourceManagementClient, subscription)

    @property
    def subscriptions(self) -> Any:
        """Microsoft.Resources: the subscription itself."""
        from azure.mgmt.resource.subscriptions import SubscriptionClient

        return self._client(SubscriptionClient)


class _OnlyReading(SansIOHTTPPolicy):
    """Refuses everything but GET."""

    def on_request(self, request: PipelineRequest) -> None:
        if request.http_request.method != "GET":
            raise AssertionError(f"a check tried to {request.http_request.method} {request.http_request.url}")


class _Retries(RetryPolicy):
    """Azure's own, which would wait as long as a server asks it to."""

    def is_retry(self, settings: dict[str, Any], response: PipelineResponse) -> bool:
        pause = self.get_retry_after(response) or 0
        return pause <= web.LONGEST_PAUSE_SECONDS and super().is_retry(settings, response)


@contextmanager
def asking(what: str) -> Generator[None]:
    """Around a question about `what`: whatever goes wrong becomes NotDone, but for ResourceNotFoundError."""
    try:
        yield
    except (ResourceNotFoundError, NotDone):
        raise
    except ClientAuthenticationError:
        raise NotDone(f"{what}: Azure does not take the sign-in (HTTP 401)", SIGN_IN) from None
    except DecodeError:
        raise NotDone(f"{what}: Azure did not answer with JSON", "Run it again; is there a proxy in between?") from None
    except HttpResponseError as error:
        status, code = error.status_code, getattr(error.error, "code", None) or "no code"
        if status == 403:
            reason = f"{what}: Azure refuses to tell ({code}, HTTP 403)"
            raise NotDone(reason, "Ask for the role Reader on the subscription.") from None
        if status == 429:
            reason = f"{what}: Azure has had too many requests ({code}, HTTP 429)"
            raise NotDone(reason, "Wait some minutes, and run it again.") from None
        raise NotDone(f"{what}: Azure answered {code} (HTTP {status})", "Run it again.") from None
    except ServiceRequestError as error:
        raise NotDone(
            f"{what}: cannot reach Azure: {error.message}", "Look at the network, and run it again."
        ) from None
    except ServiceResponseError:
        reason = f"{what}: Azure did not answer within {web.TIMEOUT_SECONDS} seconds"
        raise NotDone(reason, LOOK) from None
    except (AzureError, AttributeError, KeyError, TypeError, ValueError):
        raise NotDone(f"{what}: Azure's answer has not the documented form", "Run it again.") from None
