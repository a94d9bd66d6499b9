"""Where a replica's weights come from, and what runs once before vLLM may read them.

Both ways are programs of `pod/weights.py`, in the image of vLLM itself: a download before each start of a replica, or
one upload for each model and commit, from which every replica streams.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from planning.catalogue import Image, Preset
from planning.findings import Finding, Severity
from planning.startup import IMAGE_SECONDS, MARGIN, StartupBudget

if TYPE_CHECKING:
    from planning.plan import ModelPlan
    from planning.settings import WeightSettings

HUGGING_FACE, AZURE_BLOB = "hugging-face", "azure-blob"
#: Production serves without Hugging Face unless its stack file says otherwise.
DEFAULT_SOURCE = {"production": AZURE_BLOB, "development": HUGGING_FACE}

WEIGHTS = "/models"  # the weights volume, where there is one
HOME = "/home/vllm"  # of the image's user
TOKEN_FILE = "/var/run/secrets/huggingface/token"  # noqa: S105  a path, not a token
PROGRAM = "/opt/aks-vllm/weights.py"  # pod/weights.py, mounted from a ConfigMap
CONTAINER = "models"  # of the storage account

#: No model can have this name: theirs hold no dot.
UPLOAD_SERVICE_ACCOUNT = "weights.upload"
#: https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations
FEDERATED_CREDENTIALS_MAX = 20

#: A Job's name labels its pods. https://kubernetes.io/docs/concepts/workloads/controllers/job/#writing-a-job-spec
JOB_NAME_MAX = 63
#: Threads that hash, and blocks of 32 MiB on their way, two for each of eight files: measured with pod/weights.py.
UPLOAD_CPU, UPLOAD_MEMORY_GIB = 2, 4

WEIGHTS_HEADROOM = 1.1  # tokenizer, files beside the weights


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """A container that runs once and ends: in front of vLLM in its pod, or as a Job."""

    name: str
    image: Image
    command: tuple[str, ...]  # exec form
    env: Mapping[str, str]
    sees_token: bool  # the Hugging Face token is mounted as a file


@dataclass(frozen=True, kw_only=True)
class WeightsPlan:
    """How one model's replicas get their weights."""

    source: str  # hugging-face | azure-blob
    model_path: str  # what vLLM is told to serve: a directory on the weights volume, or az://<container>/<path>
    before: TaskPlan  # init container: vLLM starts only after its success
    options: Mapping[str, Any] = field(default_factory=dict)  # of vLLM, without which it could not read them
    volume_gib: int  # size of the weights volume; 0: there is none
    storage_class: str | None  # of the weights volume; None: the node's OS disk
    needs_internet_egress: bool  # replicas talk to huggingface.co; otherwise only to Entra ID and their storage account


@dataclass(frozen=True, kw_only=True)
class UploadPlan:
    """A Job that copies one commit of one model from Hugging Face to the stack's storage account, once."""

    model: str  # whose replicas wait for it; others of the same commit may, too
    model_path: str
    job: str  # its name, which carries the commit: another commit is another Job
    task: TaskPlan
    node_selector: Mapping[str, str]
    tolerated_taints: tuple[str, ...]
    cpu: int
    memory_gib: int
    deadline_seconds: int  # the Job fails after it
    pulumi_timeout_minutes: int  # longer than the deadline, so that the Job's own reason is reported


@dataclass(frozen=True, kw_only=True)
class WeightStorePlan:
    """The storage account with everything that may reach it. Its name holds a hash of the subscription: `names`."""

    container: str
    readers: tuple[str, ...]  # service accounts of the replicas
    uploader: str  # service account of the upload Jobs
    gigabytes: int  # of all models' weights, 10^9 bytes


def weights_gib(preset: Preset) -> int:
    """What the files of a model take, with what lies beside the weights."""
    return math.ceil(preset.architecture.checkpoint_bytes / (1 << 30) * WEIGHTS_HEADROOM) + 1


def source(settings: WeightSettings, environment: str) -> str:
    """What was asked for, or the environment's own."""
    return settings.source or DEFAULT_SOURCE[environment]


def objections(
    settings: WeightSettings, environment: str, options: Mapping[str, Any]
) -> Iterator[tuple[str, object, str, str]]:
    """(key, value, limit, remedy) of what does not go together."""
    if source(settings, environment) != AZURE_BLOB:
        return
    default = "" if settings.source else ", the default of a production stack"
    if settings.storage_class is not None:
        limit = f"has nothing to hold: with source azure-blob{default}, weights go to the GPUs and never to a disk"
        yield "weights.storage-class", settings.storage_class, limit, "delete the line, or set source: hugging-face"
    if "load-format" in options:
        limit = f"does not go with weights.source azure-blob{default}: vLLM reads from there with its streamer only"
        remedy = "delete the line, or set weights: {source: hugging-face}"
        yield "vllm.load-format", options["load-format"], limit, remedy


def plan_weights(
    settings: WeightSettings,
    *,
    environment: str,
    preset: Preset,
    revision: str | None,
    image: Image,
    startup: StartupBudget,
    gpus_per_replica: int,
) -> WeightsPlan:
    """How the replicas of one model get their weights."""
    limit = ("--give-up-after", str(startup.weights_limit_seconds))
    if source(settings, environment) == AZURE_BLOB:
        path = _blob_path(preset, revision)
        return WeightsPlan(
            source=AZURE_BLOB,
            model_path=path,
            before=TaskPlan(
                name="weights-ready",
                image=image,
                command=("python3", PROGRAM, "ready", path, *limit),
                env=_environment(),
                sees_token=False,
            ),
            # https://docs.vllm.ai/en/stable/models/extensions/runai_model_streamer/. Without `distributed` each GPU's
            # process would read every byte of the model.
            options={"load-format": "runai_streamer"}
            | ({"model-loader-extra-config": {"distributed": True}} if gpus_per_replica > 1 else {}),
            volume_gib=0,
            storage_class=None,
            needs_internet_egress=False,
        )
    target = f"{WEIGHTS}/{preset.model_id.rpartition('/')[2]}/{revision or 'main'}"
    return WeightsPlan(
        source=HUGGING_FACE,
        model_path=target,
        before=_from_hugging_face("download", preset, revision, image, target, limit),
        volume_gib=weights_gib(preset),
        storage_class=settings.storage_class,
        needs_internet_egress=True,
    )


def uploads(models: Sequence[ModelPlan]) -> tuple[UploadPlan, ...]:
    """One Job for each commit of a model that is streamed, however many of the stack's models share it."""
    found: dict[str, UploadPlan] = {}
    for model in models:
        path = model.weights.model_path
        if model.weights.source != AZURE_BLOB or path in found:
            continue
        limit = model.startup.upload_limit_seconds
        # The Job's clock runs while its image is pulled, the program's does not.
        deadline = limit + MARGIN * IMAGE_SECONDS
        give_up = ("--give-up-after", str(limit))
        task = _from_hugging_face("upload", model.preset, model.revision, model.image, path, give_up)
        digest = hashlib.sha256(repr((model.name, path, task)).encode()).hexdigest()[:6]
        found[path] = UploadPlan(
            model=model.name,
            model_path=path,
            job=f"upload-{model.name[: JOB_NAME_MAX - 23]}-{(model.revision or 'main')[:8]}-{digest}",
            task=task,
            # On the GPU nodes, without a GPU: they stand already, and pull the image for what comes next.
            node_selector=model.node_selector,
            tolerated_taints=model.tolerated_taints,
            cpu=UPLOAD_CPU,
            memory_gib=UPLOAD_MEMORY_GIB,
            deadline_seconds=deadline,
            pulumi_timeout_minutes=math.ceil(deadline / 60) + 10,
        )
    return tuple(found.values())


def store(models: Sequence[ModelPlan]) -> WeightStorePlan | None:
    """The storage account, where a model streams from one."""
    streamed = [model for model in models if model.weights.source == AZURE_BLOB]
    if not streamed:
        return None
    sizes = {model.weights.model_path: model.preset.architecture.checkpoint_bytes for model in streamed}
    return WeightStorePlan(
        container=CONTAINER,
        readers=tuple(model.name for model in streamed),
        uploader=UPLOAD_SERVICE_ACCOUNT,
        gigabytes=math.ceil(sum(sizes.values()) / 1e9),
    )


def findings(models: Sequence[ModelPlan], environment: str) -> Iterator[Finding]:
    """What each way costs and needs."""
    for model in models:
        weights = model.weights
        if weights.needs_internet_egress:
            gigabytes = model.preset.architecture.checkpoint_bytes / 1e9
            yield Finding(
                severity=Severity.WARNING if environment == "production" else Severity.NOTE,
                subject=model.name,
                message=f"Every replica downloads {gigabytes:,.0f} GB from huggingface.co whenever it starts on a new "
                "pod: its pods need a way to the internet, and a start needs Hugging Face to be there.",
                remedy="weights: {source: azure-blob} uploads them once and streams them from your own storage.",
            )
        if weights.storage_class is not None:
            yield Finding(
                severity=Severity.NOTE,
                subject=model.name,
                message=f"Each replica keeps its {weights.volume_gib:,} GiB of weights on a volume of StorageClass "
                f"{weights.storage_class}, which must be in the cluster; the volume ends with its pod.",
                remedy="docs/weights.md says how to install the driver.",
            )
    stored, jobs = store(models), uploads(models)
    if stored is not None:
        minutes = math.ceil(max(m.startup.upload_seconds for m in models if m.weights.source == AZURE_BLOB) / 60)
        yield Finding(
            severity=Severity.NOTE,
            subject="stack",
            message=f"{stored.gigabytes:,} GB of weights are kept in a storage account of the stack, premium block "
            f"blobs that are not in the price above. {_jobs(len(jobs))} them once, before the first replica starts: "
            f"about {minutes} minutes more, and the only part that needs huggingface.co.",
        )


def _jobs(count: int) -> str:
    return "A Job uploads" if count == 1 else f"{count} Jobs upload"


def _from_hugging_face(
    verb: str, preset: Preset, revision: str | None, image: Image, target: str, limit: tuple[str, str]
) -> TaskPlan:
    command = ["python3", PROGRAM, verb, preset.model_id, "--revision", revision or "main", "--to", target, *limit]
    for pattern in preset.download_exclude:
        command += ["--exclude", pattern]
    token = {"HF_TOKEN_PATH": TOKEN_FILE} if preset.gated else {}
    return TaskPlan(name=verb, image=image, command=tuple(command), env=_environment() | token, sees_token=preset.gated)


#: Whatever holds weights, by the endings of their files.
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack")


def tokenizer(preset: Preset, revision: str | None, image: Image) -> TaskPlan:
    """Everything of a model but its weights, into WEIGHTS."""
    task = _from_hugging_face("download", preset, revision, image, WEIGHTS, ("--give-up-after", "600"))
    return replace(task, command=(*task.command, *(word for each in WEIGHT_FILES for word in ("--exclude", each))))


def _blob_path(preset: Preset, revision: str | None) -> str:
    return f"az://{CONTAINER}/{preset.model_id}/{revision or 'main'}"


def _environment() -> dict[str, str]:
    return {
        "HOME": HOME,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Its image asks for all GPUs, and gets them where the NVIDIA runtime is the default one.
        "NVIDIA_VISIBLE_DEVICES": "void",
        "PYTHONUNBUFFERED": "1",  # what it waits for is in the log while it waits
    }
