"""Presets as data: models, GPUs, VM sizes, images and engines, read from `presets/` into frozen classes.

Each file is read once, and only when something in it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from planning.architecture import Architecture, from_hf_config

PRESETS = Path(__file__).parent.parent / "presets"

# libyaml's loader is ten times as fast; PyYAML is installed without it on some machines.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Image:
    """A container image, pinned by tag and, where known, digest."""

    repository: str
    tag: str
    digest: str | None  # sha256:..., None when not known yet

    @property
    def reference(self) -> str:
        """What goes into a pod spec; the digest wins over the tag where both are given."""
        pinned = f"{self.repository}:{self.tag}"
        return f"{pinned}@{self.digest}" if self.digest else pinned


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One model as `presets/models/<name>.yaml` describes it."""

    name: str
    model_id: str  # Hugging Face repository
    revision: str | None  # commit; None until pinned
    license: str
    gated: bool
    default_vm_size: str
    download_exclude: tuple[str, ...]  # file patterns the engine does not read
    architecture: Architecture


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as vLLM sees it."""

    name: str
    memory_gib: float  # what torch reports as total, GiB
    compute_capability: str
    links: str  # nvlink | pcie: between the GPUs of one replica
    source: str


@dataclass(frozen=True, kw_only=True)
class VmSize:
    """One Azure VM size with GPUs. GiB = 2^30 bytes; prices in US dollars for the whole VM."""

    name: str
    gpu: Gpu
    gpus: int
    vcpus: int
    memory_gib: int
    temp_disk_gib: int | None  # None: not known
    nvme_gib: int
    os_disk_type: str  # Ephemeral | Managed
    os_disk_gib: int
    network_gbps: int
    quota_family: str
    pool: str  # agent pool name, ^[a-z][a-z0-9]{0,10}$
    interconnect: str
    price_per_hour: Mapping[str, float]  # by region; a region that is missing has no known price
    price_date: str | None
    price_source: str

    @property
    def cheapest_price(self) -> float | None:
        """The lowest known price of any region, US dollars per hour."""
        return min(self.price_per_hour.values(), default=None)


@cache
def _read(path: str) -> dict[str, Any]:
    """A file of `presets/`, parsed once."""
    return yaml.load((PRESETS / path).read_text("utf-8"), Loader=_LOADER)  # noqa: S506  both loaders are safe ones


@cache
def preset_names() -> tuple[str, ...]:
    """Names of the models there are presets for, sorted."""
    return tuple(sorted(path.stem for path in (PRESETS / "models").glob("*.yaml")))


@cache
def preset(name: str) -> Preset:
    """One preset. Raises KeyError where there is no such file."""
    if name not in preset_names():
        raise KeyError(name)
    data = _read(f"models/{name}.yaml")
    return Preset(
        name=name,
        model_id=data["model-id"],
        revision=data["revision"],
        license=data["license"],
        gated=data["gated"],
        default_vm_size=data["default-vm-size"],
        download_exclude=tuple(data["download-exclude"]),
        architecture=from_hf_config(data["config"]),
    )


def gpu_names() -> tuple[str, ...]:
    """Names of the known GPUs, in the file's order."""
    return tuple(_read("gpus.yaml")["gpus"])


@cache
def gpu(name: str) -> Gpu:
    """One GPU. Raises KeyError where it is not in the file."""
    data = _read("gpus.yaml")["gpus"][name]
    return Gpu(
        name=name,
        memory_gib=float(data["memory-gib"]),
        compute_capability=data["compute-capability"],
        links=data["links"],
        source=data["source"],
    )


def vm_size_names() -> tuple[str, ...]:
    """Names of the known VM sizes, in the file's order."""
    return tuple(_read("vm-sizes.yaml")["vm-sizes"])


@cache
def vm_size(name: str) -> VmSize:
    """One VM size. Raises KeyError where it is not in the file."""
    data = _read("vm-sizes.yaml")["vm-sizes"][name]
    return VmSize(
        name=name,
        gpu=gpu(data["gpu"]),
        gpus=data["gpus"],
        vcpus=data["vcpus"],
        memory_gib=data["memory-gib"],
        temp_disk_gib=data["temp-disk-gib"],
        nvme_gib=data["nvme-gib"],
        os_disk_type=data["os-disk-type"],
        os_disk_gib=data["os-disk-gib"],
        network_gbps=data["network-gbps"],
        quota_family=data["quota-family"],
        pool=data["pool"],
        interconnect=data["interconnect"],
        price_per_hour=data["price"]["usd-per-hour"],
        price_date=data["price"]["date"],
        price_source=data["price"]["source"],
    )


@cache
def image(key: str) -> Image:
    """The image behind a key of `presets/images.yaml`. Raises KeyError where it is not in the file."""
    data = _read("images.yaml")["images"][key]
    return Image(repository=data["repository"], tag=data["tag"], digest=data["digest"])


@cache
def engine_versions() -> tuple[str, ...]:
    """vLLM versions that have a folder under `presets/engines`, oldest first."""
    names = (path.name.removeprefix("vllm-") for path in (PRESETS / "engines").glob("vllm-*") if path.is_dir())
    return tuple(sorted(names, key=lambda version: [int(part) for part in version.split(".")]))


def engine_memory(version: str) -> Mapping[str, Any]:
    """The memory constants of one engine folder. Raises KeyError where there is no such folder."""
    if version not in engine_versions():
        raise KeyError(version)
    return _read(f"engines/vllm-{version}/memory.yaml")
