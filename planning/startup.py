"""One start-up budget, from which every probe, deadline and timeout is derived."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planning.architecture import Architecture
from planning.catalogue import VmSize
from planning.parallelism import Layout

#: Allocate, boot and join a VM (5 to 10 minutes) and install its GPU driver (80 to 150 s, 1 to 3 s a GPU).
#: Azure/AKS#4110, Azure/AgentBaker#8661
NODE_SECONDS, DRIVER_SECONDS, DRIVER_SECONDS_PER_GPU = 450, 120, 3
#: The vLLM image, about 12 GB compressed: 1.5 to 4 minutes. vllm-project/vllm#27154, AKS artifact streaming proposals
IMAGE_SECONDS = 180
#: Bytes a second from Hugging Face, seen on AKS: 29 GB in 113 s. AKS engineering blog, 2026-07-13
DOWNLOAD_BYTES_PER_SECOND = 0.26e9
#: Hugging Face counts requests in windows of five minutes: twice that must pass before a wait was for nothing.
#: https://huggingface.co/docs/hub/rate-limits
SHORTEST_DOWNLOAD_LIMIT = 600
#: Bytes a second from Azure Blob Storage to the GPUs with the Run:ai streamer: 29 GB in 10 s on one A100 VM (AKS
#: engineering blog, 2026-07-13). 233 GiB in 37 s, more than twice that, are published for Standard_ND96isr_H100_v5
#: (Azure SDK blog, 2026-05-19); a node's replicas share the lower figure here.
STREAM_BYTES_PER_SECOND = 2.95e9
#: Bytes a second from the node's disk to the GPUs: 29 GB in 74 s. The same source
LOAD_BYTES_PER_SECOND = 0.39e9
#: A cold torch.compile of a large model, and profiling with CUDA graph capture. vllm-project/vllm#19824
COMPILE_SECONDS, GRAPHS_SECONDS = 85, 120
#: Limits are this many times what is expected: a healthy start that meets one is killed and begins again.
MARGIN = 2
#: Seconds; nothing is gained by a smaller limit, as a failed start is reported by its exit, not by a timeout.
SHORTEST_LIMIT = 1800
PROBE_PERIOD_SECONDS = 10
#: Seconds by which vLLM gives up before the probe would kill it: it says in its log what it was waiting for. Its clock
#: starts only after the imports.
ENGINE_GIVES_UP_EARLIER = 60


@dataclass(frozen=True, kw_only=True)
class StartupBudget:
    """Seconds per stage as expected, and the limits derived from them (with their margin)."""

    node_seconds: int  # VM allocation, boot, join, GPU driver
    image_seconds: int
    weights_seconds: int  # download by the init container; 0 where weights are streamed
    load_seconds: int  # disk to GPU, or storage account to GPU
    compile_seconds: int
    graphs_seconds: int  # CUDA graph capture and the rest of engine initialisation
    total_seconds: int  # cold: a fresh node to the first answer
    restart_seconds: int  # a new pod; the node is there with the image, weights are fetched again
    container_restart_seconds: int  # in the same pod: its weights and compile caches are kept
    weights_limit_seconds: int  # after it the init container says why it gives up
    upload_seconds: int  # the Job that fills the storage account, once; 0 where weights are not streamed
    upload_limit_seconds: int  # after it the Job's program says why it gives up
    engine_ready_timeout_seconds: int  # VLLM_ENGINE_READY_TIMEOUT_S, a little less than the whole probe
    startup_probe_period_seconds: int
    startup_probe_failure_threshold: int
    progress_deadline_seconds: int  # Deployment; longer than the probe by download, image and node
    pulumi_timeout_minutes: int  # custom timeouts of Deployment and Service; longer than the deadline


def budget(
    architecture: Architecture, vm: VmSize, layout: Layout, *, drain_seconds: int = 0, streamed: bool = False
) -> StartupBudget:
    """The budget of one replica. Stages are seconds as published for such parts; every limit is derived from them.

    `drain_seconds`: how long the replica that is replaced may still hold its GPUs (its termination grace period).
    `streamed`: the weights come from a storage account while they are loaded, not from Hugging Face before.
    """
    size = architecture.checkpoint_bytes
    download = math.ceil(size / DOWNLOAD_BYTES_PER_SECOND)
    node = NODE_SECONDS + DRIVER_SECONDS + DRIVER_SECONDS_PER_GPU * vm.gpus
    weights, upload = (0, IMAGE_SECONDS + download) if streamed else (download, 0)
    load = math.ceil(size / (STREAM_BYTES_PER_SECOND if streamed else LOAD_BYTES_PER_SECOND))
    # Replicas that start together share the node's network and disk. As many as a node may hold, not as there are: a
    # probe is part of the pod, and adding a replica must not restart the others.
    together = layout.replicas_per_node
    engine = load + COMPILE_SECONDS + GRAPHS_SECONDS
    slowest = MARGIN * (load * together + COMPILE_SECONDS + GRAPHS_SECONDS)
    threshold = math.ceil(max(SHORTEST_LIMIT, slowest) / PROBE_PERIOD_SECONDS)
    probe = threshold * PROBE_PERIOD_SECONDS
    # The probe begins after the init container; the deadline begins with the pod, maybe before its node, and before
    # the replica in its place is gone.
    fetch = max(SHORTEST_DOWNLOAD_LIMIT, MARGIN * weights * together)
    deadline = drain_seconds + probe + fetch + MARGIN * (IMAGE_SECONDS + node)
    # Replicas are replaced one after the other, and the deadline begins anew with each: one may need all of it.
    update = deadline + (layout.replicas - 1) * (drain_seconds + MARGIN * (weights + engine))
    return StartupBudget(
        node_seconds=node,
        image_seconds=IMAGE_SECONDS,
        weights_seconds=weights,
        load_seconds=load,
        compile_seconds=COMPILE_SECONDS,
        graphs_seconds=GRAPHS_SECONDS,
        total_seconds=node + IMAGE_SECONDS + weights + engine,
        restart_seconds=weights + engine,
        container_restart_seconds=load + GRAPHS_SECONDS,
        weights_limit_seconds=fetch,
        upload_seconds=upload,
        upload_limit_seconds=max(SHORTEST_LIMIT, MARGIN * download) if streamed else 0,
        engine_ready_timeout_seconds=probe - ENGINE_GIVES_UP_EARLIER,
        startup_probe_period_seconds=PROBE_PERIOD_SECONDS,
        startup_probe_failure_threshold=threshold,
        progress_deadline_seconds=deadline,
        pulumi_timeout_minutes=math.ceil(update / 60) + 10,
    )
