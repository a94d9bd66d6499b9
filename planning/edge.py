"""The edge: two HAProxy pods in front of the models, and the configuration they run with.

The same text runs unchanged in the cluster and in the tests: what differs between the two, addresses, comes from the
environment. It holds on HAProxy 2.6 (Debian's, for tests) and on the pinned image, without a warning from either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planning.catalogue import Image
from planning.findings import Finding, Severity

if TYPE_CHECKING:
    from planning.plan import ModelPlan
    from planning.settings import EdgeSettings

NAME = "edge"  # of its Kubernetes objects; no model can have it
CERTIFICATE_FILE = "edge.pem"
#: Of what a vault holds, seen from the other files: one mount for each source.
VAULT_FOLDER = "../certificate"
ADMIN_PORT = 8404  # health and metrics: for the kubelet and Prometheus, not in the Service
#: Two, so that one can go: every limit that is counted in a pod's memory is divided by this.
REPLICAS = 2
#: Seconds between leaving the load balancer and SIGUSR1, which ends the listening.
PRE_STOP_SECONDS = 20
#: A new pod asks the DNS for the replicas first: seconds before it counts as ready.
FIRST_LOOKUP_SECONDS = 5
#: Prompt and answer of a request as benchmarks shape it (1024 + 1024). It only sizes how many a replica is given at
#: once: longer ones wait inside vLLM, which then holds them in its own queue.
REQUEST_TOKENS = 2048
#: Seconds a request may wait for a replica with room before it is told to come back.
QUEUE_SECONDS = 30
#: Seconds of silence after which a replica is given up, at least. Only an answer that is not streamed is ever silent
#: so long; twice the longest one that an update lets finish where that is more.
SHORTEST_SILENCE_SECONDS = 600
#: Seconds for the first token and the last bytes of an answer, on top of the longest answer itself.
SLACK_SECONDS = 30
#: Client connections that only wait for their next request.
IDLE_CONNECTIONS = 2000
#: KiB that a connection takes: two buffers of 16 KiB and the TLS session, doubled.
KIB_PER_CONNECTION = 64
BASE_MIB = 96
THREADS = 2  # explicit: the default is every CPU of the node, whatever the pod may use
CPU = "500m"
#: Seconds after which a refused client may try again.
RETRY_AFTER_SECONDS = 5

#: Routes of vLLM's server that may be opened, by path. `/invocations`, `/metrics` and every route that administers
#: the server are not among them and cannot be opened. https://docs.vllm.ai/en/stable/serving/openai_compatible_server/
ROUTES = {
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/embeddings": "POST",
    "/v1/responses": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
}
OPEN = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")

#: What each refusal says, by status. Clients of OpenAI's API read `error.message`.
REFUSALS = {
    400: ("invalid_request_error", "This is not a valid HTTP request."),
    401: ("authentication_error", "No valid API key: send it as Authorization: Bearer KEY."),
    404: ("not_found_error", "There is no such route."),
    408: ("timeout_error", "The request did not arrive in time."),
    411: ("invalid_request_error", "A body needs a Content-Length."),
    413: ("invalid_request_error", "The body is larger than this endpoint takes."),
    429: ("rate_limit_error", "Too many requests: come back after the seconds in Retry-After."),
    500: ("server_error", "The edge failed."),
    502: ("server_error", "The replica failed before it answered."),
    503: ("overloaded_error", "No replica can take the request now: come back after the seconds in Retry-After."),
    504: ("timeout_error", "The replica did not answer in time."),
}


@dataclass(frozen=True, kw_only=True)
class EdgePlan:
    """The edge's Deployment, Service, disruption budget and files. Sizes of one pod unless said otherwise."""

    image: Image
    command: tuple[str, ...]  # exec form: HAProxy is PID 1 and gets the image's stop signal, SIGUSR1
    files: Mapping[str, str]  # name -> text, beside each other in one folder, which is the working directory
    env: Mapping[str, str]
    replicas: int
    port: int  # of the container
    service_port: int
    admin_port: int  # /healthz and /metrics; not in the Service
    public: bool
    host: str | None  # the name that clients use; None: the load balancer's address
    tls: bool  # else clear text
    tls_secret: str | None  # a Secret of type kubernetes.io/tls; None: the certificate is in a vault, or nowhere
    keys: str | None  # keys.map: SHA-256 of each key and its name; None: whoever reaches the edge may use it
    base_paths: Mapping[str, str]  # model -> path of its base URL
    paths: tuple[str, ...]  # open routes, each after the model's prefix
    clients: Mapping[str, int | None]  # name of each key -> requests a minute; None: any number
    max_body_mib: int
    concurrency: Mapping[str, int]  # model -> requests that this pod gives one replica at once
    queue: Mapping[str, int]  # model -> requests that wait in this pod, at most
    node_selector: Mapping[str, str]
    tolerated_taints: tuple[str, ...]  # keys, tolerated with operator Exists
    cpu: str  # request; no limit, as throttling delays every stream
    memory_mib: int  # request and limit
    pre_stop_seconds: int  # the load balancer forgets the pod before HAProxy stops listening
    hard_stop_seconds: int  # from SIGUSR1 on, answers under way may finish for so long
    termination_grace_seconds: int
    first_lookup_seconds: int

    @property
    def scheme(self) -> str:
        """Of the base URLs."""
        return "https" if self.tls else "http"

    @property
    def service_annotations(self) -> Mapping[str, str]:
        """What makes Azure's load balancer an internal one: https://learn.microsoft.com/azure/aks/internal-lb"""
        return {} if self.public else {"service.beta.kubernetes.io/azure-load-balancer-internal": "true"}


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """What the configuration is written from."""

    models: Sequence[ModelPlan]
    prefixes: Mapping[str, str]  # model -> what stands before /v1 in its paths
    namespace: str
    concurrency: Mapping[str, int]
    queue: Mapping[str, int]
    connections: int
    hard_stop_seconds: int
    silence_seconds: int
    max_body_bytes: int
    certificate: str | None  # its file; None: clear text
    keys: bool
    dns: str  # line of the resolvers

    @staticmethod
    def slots(model: ModelPlan) -> int:
        """Places for addresses: an update's new replica gets one before the old one's is free."""
        return 2 * model.layout.replicas


def decide(
    settings: EdgeSettings,
    models: Sequence[ModelPlan],
    *,
    flat: bool,
    namespace: str,
    image: Image,
    dns_service_ip: str | None,
    system_taints: Sequence[str],
    vaulted: bool,
) -> EdgePlan:
    """The edge of these models. `flat`: there is one, and its base URL has no prefix. `vaulted`: so is its certificate.

    `dns_service_ip` None: the cluster's DNS server is the one that Kubernetes names to the pod.
    """
    prefixes = {model.name: "" if flat else f"/{model.name}" for model in models}
    # Each pod counts alone; together they stay within what the replicas take.
    concurrency = {model.name: max(1, _at_once(model) // REPLICAS) for model in models}
    queue = {model.name: concurrency[model.name] * model.layout.replicas for model in models}
    longest = max(model.rollout.shutdown_timeout_seconds for model in models)
    certificate = CERTIFICATE_FILE if settings.tls_secret else None
    if vaulted:
        certificate = f"{VAULT_FOLDER}/{CERTIFICATE_FILE}"
    draft = _Draft(
        models=models,
        prefixes=prefixes,
        namespace=namespace,
        concurrency=concurrency,
        queue=queue,
        # As many wait as are served; each is a client's connection.
        connections=IDLE_CONNECTIONS + 2 * sum(queue.values()),
        hard_stop_seconds=longest + QUEUE_SECONDS + SLACK_SECONDS,
        silence_seconds=max(SHORTEST_SILENCE_SECONDS, 2 * longest),
        max_body_bytes=settings.max_body_mib << 20,
        certificate=certificate,
        keys=bool(settings.keys),
        dns='nameserver dns "${CLUSTER_DNS}"' if dns_service_ip else "parse-resolv-conf",
    )
    port, service_port = (8443, 443) if draft.certificate else (8080, 80)
    routes = {f"{ROUTES[path]}:{prefixes[m.name]}{path}": m.name for m in models for path in settings.paths}
    files = {"haproxy.cfg": _configuration(draft), "routes.map": _map(routes)}
    limits = {name: key.requests_per_minute for name, key in settings.keys.items()}
    if draft.keys:
        # Divided, and rounded up: the pods' sum is never below what was promised.
        files["limits.map"] = _map({name: math.ceil(limit / REPLICAS) for name, limit in limits.items() if limit})
    if draft.certificate:
        files["certificate.lua"] = f'local FILE = "{draft.certificate}"\n{CERTIFICATE_LUA}'
    return EdgePlan(
        image=image,
        command=("haproxy", "-W", "-db", "-f", "haproxy.cfg"),
        files=files,
        env={
            "EDGE_ADDRESS": f":{port}",
            "EDGE_ADMIN_ADDRESS": f":{ADMIN_PORT}",
        }
        | ({"CLUSTER_DNS": f"{dns_service_ip}:53"} if dns_service_ip else {}),
        replicas=REPLICAS,
        port=port,
        service_port=service_port,
        admin_port=ADMIN_PORT,
        public=settings.access == "public",
        host=settings.host,
        tls=draft.certificate is not None,
        tls_secret=settings.tls_secret,
        keys=_map({key.sha256: name for name, key in settings.keys.items()}) if draft.keys else None,
        base_paths={name: f"{prefix}/v1" for name, prefix in prefixes.items()},
        paths=settings.paths,
        clients=limits,
        max_body_mib=settings.max_body_mib,
        concurrency=concurrency,
        queue=queue,
        # Not on GPU nodes: they are dear, and draining one would take the way to all the others along.
        node_selector={"kubernetes.azure.com/mode": "system"},
        tolerated_taints=tuple(taint.partition("=")[0] for taint in system_taints),
        cpu=CPU,
        memory_mib=_up_to(64, BASE_MIB + draft.connections * KIB_PER_CONNECTION // 1024),
        pre_stop_seconds=PRE_STOP_SECONDS,
        hard_stop_seconds=draft.hard_stop_seconds,
        termination_grace_seconds=PRE_STOP_SECONDS + draft.hard_stop_seconds + 10,
        first_lookup_seconds=FIRST_LOOKUP_SECONDS,
    )


def findings(edge: EdgePlan, environment: str) -> Iterator[Finding]:
    """Who may use the models, where that is more people than have a key."""
    if edge.keys is None:
        yield Finding(
            severity=Severity.WARNING if environment == "production" else Severity.NOTE,
            subject="stack",
            message="No API key is asked for: the models serve whoever reaches the internal load balancer, from the "
            "cluster's network and from every network connected to it.",
            remedy="Set aks-vllm:edge.keys; docs/edge.md says how.",
        )
    if not edge.tls:
        yield Finding(
            severity=Severity.WARNING if environment == "production" else Severity.NOTE,
            subject="stack",
            message="Prompts, answers and API keys travel to the load balancer in clear text.",
            remedy="Set aks-vllm:edge.tls-secret or key-vault.certificate; docs/edge.md says how.",
        )


def _at_once(model: ModelPlan) -> int:
    """Requests that one replica works on together: what its scheduler takes, and what its KV cache has room for."""
    memory = model.memory
    fit = max(math.ceil(memory.max_concurrency), memory.kv_cache_tokens // REQUEST_TOKENS)
    return max(1, min(memory.max_num_seqs, fit))


def _up_to(step: int, value: int) -> int:
    return -(-value // step) * step


def _map(pairs: Mapping[str, Any]) -> str:
    """A map file: a key, a space and its value on each line."""
    return "".join(f"{key} {value}\n" for key, value in pairs.items())


def _body(status: int) -> str:
    kind, message = REFUSALS[status]
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}})


def _refuse(status: int, condition: str, *headers: str) -> str:
    """A rule that answers at the edge. No byte of it comes from the client."""
    extra = "".join(f" hdr {header}" for header in headers)
    return (
        f"http-request deny deny_status {status} content-type application/json string '{_body(status)}'{extra} "
        f"{condition}"
    )


_RETRY = f"Retry-After {RETRY_AFTER_SECONDS}"

#: One JSON object on a line. Of what a client sends only a request id that passed the pattern is written: never a
#: key, a prompt, or a path that is not one of ours. Times in milliseconds; -1: the request did not get that far.
#: `state` is HAProxy's: `--` for a whole answer, `CD` where the client hung up, `SD` where the replica did.
_LOG = (
    '{"time":"%[date,utime("%Y-%m-%dT%H:%M:%SZ")]","id":"%[var(txn.id)]","key":"%[var(txn.key)]",'
    '"model":"%[var(txn.model)]","route":"%[var(txn.allowed)]","status":%ST,"state":"%ts","received":%U,"sent":%B,'
    '"request_ms":%TR,"queue_ms":%Tw,"connect_ms":%Tc,"first_byte_ms":%Tr,"total_ms":%Ta,"replica":"%si"}'
)


def _configuration(edge: _Draft) -> str:
    """`haproxy.cfg`. https://docs.haproxy.org/2.6/configuration.html"""
    sections = [_global(edge), _defaults(edge), _RESOLVERS.format(dns=edge.dns), _ADMIN, _clients(edge)]
    sections += [_RATES] if edge.keys else []
    return "\n".join([*sections, *(_model(edge, model) for model in edge.models)])


def _global(edge: _Draft) -> str:
    tls = """    ssl-default-bind-options ssl-min-ver TLSv1.2
    # Takes up a renewed certificate, without a reload.
    .if version_atleast(3.1)
    tune.lua.bool-sample-conversion normal
    .endif
    lua-load certificate.lua
"""
    return f"""\
global
    # Every file is beside this one.
    default-path config
    log stdout format raw local0 info
    maxconn {edge.connections}
    nbthread {THREADS}
    # After SIGUSR1: no new connection, and so long for the answers under way.
    hard-stop-after {edge.hard_stop_seconds}s
{tls if edge.certificate else ""}"""


def _defaults(edge: _Draft) -> str:
    errors = "\n".join(
        f"    http-error status {status} content-type application/json string '{_body(status)}'"
        f"{' hdr Retry-After ' + str(RETRY_AFTER_SECONDS) if status == 503 else ''}"
        for status in (400, 408, 500, 502, 503, 504)
    )
    return f"""\
defaults
    mode http
    log global
    option dontlognull
    option disable-h2-upgrade
    # One connection to a replica for each request: none is left open that a replica which stops could close under it.
    option http-server-close
    # A client's idle connection outlives SIGUSR1 until its next request, whose answer closes it.
    option idle-close-on-response
    # A client that hangs up frees its place, in the queue and in the replica.
    option abortonclose
    # Only what no byte of has been sent goes to another replica, and at once.
    retries 3
    retry-on conn-failure
    option redispatch 1
    # Silent answers keep their connection through load balancers, and a client that is gone is noticed.
    option clitcpka
    option srvtcpka
    clitcpka-idle 30s
    clitcpka-intvl 10s
    clitcpka-cnt 3
    timeout connect 2s
    timeout http-request 10s
    timeout http-keep-alive 60s
    timeout client 60s
    timeout queue {QUEUE_SECONDS}s
    # Silence, not duration: a stream that talks is never cut.
    timeout server {edge.silence_seconds}s
{errors}
"""


#: A name that has no ready replica is no error, and true at once; a DNS server that does not answer is, and changes
#: nothing for ten minutes: health checks go on.
_RESOLVERS = """\
resolvers cluster
    {dns}
    accepted_payload_size 8192
    timeout resolve 1s
    timeout retry 1s
    hold valid 1s
    hold nx 1s
    hold obsolete 0s
    hold other 10m
    hold refused 10m
    hold timeout 10m
"""

_ADMIN = """\
frontend admin
    bind "${EDGE_ADMIN_ADDRESS}"
    no log
    http-request use-service prometheus-exporter if { path /metrics }
    http-request return status 200 content-type text/plain string ok if { path /healthz }
    http-request return status 404
"""

#: Counted by the key's name: a new key of the same name goes on with the count.
_RATES = """\
backend rates
    stick-table type string len 63 size 10k expire 2m store http_req_rate(60s)
"""


def _clients(edge: _Draft) -> str:
    # HTTP/1.1 alone: what was tested.
    tls = f" ssl crt {edge.certificate} alpn http/1.1" if edge.certificate else ""
    keys = f"""\
    # The key first: without one, no route can be told from another.
    http-request set-var(txn.key) http_auth_bearer,sha2(256),hex,lower,map_str(keys.map)
    {_refuse(401, "unless { var(txn.key) -m found }", "WWW-Authenticate Bearer")}
"""
    rates = f"""\
    # Refused requests do not count: who waits as told gets in.
    http-request set-var(txn.limit) var(txn.key),map_str_int(limits.map)
    http-request set-var(txn.rate) var(txn.key),table_http_req_rate(rates)
    {_refuse(429, "if { var(txn.limit) -m found } { var(txn.rate),sub(txn.limit) ge 0 }", _RETRY)}
    http-request track-sc0 var(txn.key) table rates
"""
    return f"""\
frontend clients
    bind "${{EDGE_ADDRESS}}"{tls}
    log-format '{_LOG}'
    http-request set-var(txn.id) req.hdr(X-Request-Id) if {{ req.hdr(X-Request-Id) -m reg ^[A-Za-z0-9._-]{{1,64}}$ }}
    http-request set-var(txn.id) uuid() unless {{ var(txn.id) -m found }}
    http-request set-header X-Request-Id %[var(txn.id)]
    http-after-response set-header X-Request-Id %[var(txn.id)] if {{ var(txn.id) -m found }}
{keys if edge.keys else ""}\
    # The whole of method and path, as they were sent: no prefix, no normalisation to get around.
    http-request set-var-fmt(txn.route) "%[method]:%[url,field(1,?)]"
    http-request set-var(txn.model) var(txn.route),map_str(routes.map)
    {_refuse(404, "unless { var(txn.model) -m found }")}
    http-request set-var(txn.allowed) var(txn.route)
{rates if edge.keys else ""}\
    {_refuse(411, "if METH_POST !{ req.hdr(Content-Length) -m found }")}
    {_refuse(413, f"if {{ req.body_size gt {edge.max_body_bytes} }}")}
    # A body that trickles in waits here, not in a replica's place.
    http-request wait-for-body time 10s if METH_POST
    use_backend model-%[var(txn.model)]
"""


def _model(edge: _Draft, model: ModelPlan) -> str:
    backend, prefix = f"model-{model.name}", edge.prefixes[model.name]
    strip = f"    http-request replace-path ^{prefix}(/.*)$ \\1\n" if prefix else ""
    return f"""\
backend {backend}
    balance leastconn
    # The queue is bounded here: a server's own bound would not hold, as requests wait in the backend's queue.
    {_refuse(429, f"if {{ queue({backend}) ge {edge.queue[model.name]} }}", _RETRY)}
{strip}\
    http-request del-header Authorization
    # 503 where no replica is there; 429 where all are busy for too long. A replica's own answer stays as it is.
    http-response set-var(txn.answered) int(1)
    http-after-response set-status 429 if {{ status 503 }} !{{ var(txn.answered) -m found }} {{ nbsrv({backend}) gt 0 }}
    option httpchk GET /health
    # A busy engine answers late and is not dead; a dead one refuses the connection, and a lost node does not take it.
    timeout check 30s
    default-server check inter 5s fastinter 1s downinter 2s fall 2 rise 1
    # Out after three refused connections, before a request has used up its retries: where the other replicas are full,
    # the dead one looks idle and would be tried again and again.
    default-server observe layer4 error-limit 3 on-error mark-down
    default-server maxconn {edge.concurrency[model.name]}
    # The headless Service of the model: its addresses are the ready replicas, and one that leaves gets nothing new.
    default-server resolvers cluster resolve-prefer ipv4 init-addr none
    server-template replica {edge.slots(model)} {model.name}.{edge.namespace}.svc.cluster.local:{model.port}
"""


#: https://www.arpalert.org/src/haproxy-lua-api/3.2/index.html#certcache-class
CERTIFICATE_LUA = """\
-- Takes up the certificate that cert-manager or the Secrets Store renewed: the files of what is mounted are swapped.
-- The private key is in a file of its own, or in the same. A pair that does not match, or half a file, is refused by
-- CertCache, told, and tried again.
local EVERY_SECONDS = 10

local function read(name)
    local file = io.open(name, "r")
    if not file then return nil end
    local text = file:read("a")
    file:close()
    return text
end

local loaded = { crt = read(FILE), key = read(FILE .. ".key") }

core.register_task(function()
    while true do
        core.sleep(EVERY_SECONDS)
        local crt, key = read(FILE), read(FILE .. ".key")
        if crt and (crt ~= loaded.crt or key ~= loaded.key) then
            -- Both in one, under the empty name: 3.4 no longer takes the documented `crt`.
            local done, why = pcall(CertCache.set, { filename = FILE, [""] = crt .. "\\n" .. (key or "") })
            if done then
                loaded = { crt = crt, key = key }
                core.Info("the renewed certificate is in use")
            else
                core.Warning("the renewed certificate cannot be used: " .. tostring(why))
            end
        end
    end
end)
"""
