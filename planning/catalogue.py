"""Presets as data: models, GPUs, VM sizes, images and engines, read from `presets/` into frozen classes.

Each file is read once, and only when something in it is asked for.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from planning.architecture import Architecture, NotModelledError, from_hf_config
from planning.findings import InvalidStack, Problem

PRESETS = Path(__file__).parent.parent / "presets"

#: Folder, inside `presets/models`, of models that no node holds.
SEVERAL_NODES = "several-nodes"

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
    license: str  # "unknown" until pinned
    gated: bool  # False until pinned
    default_vm_size: str
    download_exclude: tuple[str, ...]  # file patterns the engine does not read
    architecture: Architecture
    chat: bool = True  # False: a base model, which has no chat template
    tool_call_parser: str | None = None  # vLLM's own names
    reasoning_parser: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # other options of vLLM that the model needs
    needs_several_nodes: bool = False
    unknown: tuple[str, ...] = ()  # what `make pin` has to find out besides the revision, in words

    @property
    def maker(self) -> str:
        """Whose model it is: the organisation on Hugging Face."""
        return self.model_id.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class GpuSpeed:
    """What the data sheet promises. T = 10^12, G = 10^9; arithmetic without sparsity."""

    memory_tb_per_s: float
    tflops: float  # 16 bits
    link_gb_per_s: float  # one direction


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as vLLM sees it."""

    name: str
    memory_gib: float  # what torch reports as total, GiB
    compute_capability: str
    links: str  # nvlink | pcie: between the GPUs of one replica
    source: str
    speed: GpuSpeed | None = None  # None: no vLLM server on it was measured


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
    regions_seen: tuple[str, ...]  # where somebody had it; not all there are
    pool: str  # agent pool name, ^[a-z][a-z0-9]{0,10}$
    interconnect: str
    price_per_hour: Mapping[str, float]  # by region; a region that is missing has no known price
    price_date: str | None
    price_source: str

    @property
    def cheapest_price(self) -> float | None:
        """The lowest known price of any region, US dollars per hour."""
        return min(self.price_per_hour.values(), default=None)

    @property
    def cheapest_region(self) -> str | None:
        """Where that is."""
        return min(self.price_per_hour, key=self.price_per_hour.__getitem__, default=None)


@cache
def _read(path: str) -> dict[str, Any]:
    """A file of `presets/`, parsed once."""
    return yaml.load((PRESETS / path).read_text("utf-8"), Loader=_LOADER)  # noqa: S506  both loaders are safe ones


@cache
def regions() -> dict[str, list[str]]:
    """Azure regions `with-zones` and `without-zones`."""
    return _read("regions.yaml")


@cache
def kubernetes_versions() -> dict[str, str | None]:
    """Kubernetes versions of AKS, each with the last month of its support; None: not announced yet."""
    return {version: until and str(until) for version, until in _read("kubernetes-versions.yaml")["versions"].items()}


@cache
def preset_names() -> tuple[str, ...]:
    """Names of the models that one node can hold, sorted."""
    return tuple(sorted(path.stem for path in (PRESETS / "models").glob("*.yaml")))


@cache
def several_nodes_names() -> tuple[str, ...]:
    """Names of the models that are known but that no node holds, sorted."""
    return tuple(sorted(path.stem for path in (PRESETS / "models" / SEVERAL_NODES).glob("*.yaml")))


@cache
def preset(name: str) -> Preset:
    """One preset, reading its file alone. Raises KeyError where there is none, InvalidStack where it cannot stand."""
    several = name in several_nodes_names()
    if name not in preset_names() and not several:
        raise KeyError(name)
    return load_preset(PRESETS / "models" / (SEVERAL_NODES if several else "") / f"{name}.yaml")


def load_preset(path: Path) -> Preset:
    """A preset file. Raises InvalidStack with every problem in it."""
    shown = path.relative_to(PRESETS.parent).as_posix() if path.is_relative_to(PRESETS) else path.as_posix()
    data = _parsed(path, shown)
    if problems := tuple(_preset_problems(data, shown)):
        raise InvalidStack(problems)
    config, beside = _config(data["config"], path, shown)
    try:
        architecture = from_hf_config(config, beside)
    except NotModelledError as error:
        named = ", ".join(map(str, config.get("architectures") or ["no architecture"]))
        remedy = "serve it without this planner, or give the family to planning/families.py"
        raise _invalid(shown, "config", named, str(error).rstrip("."), remedy) from None
    unknown = {"license": "its licence", "gated": "whether it is gated"}
    return Preset(
        name=path.stem,
        model_id=data["model-id"],
        revision=data["revision"],
        license=data["license"] or "unknown",
        gated=bool(data["gated"]),
        default_vm_size=data["default-vm-size"],
        download_exclude=tuple(data.get("download-exclude", ())),
        architecture=architecture,
        chat=data.get("chat", True),
        tool_call_parser=data.get("tool-call-parser"),
        reasoning_parser=data.get("reasoning-parser"),
        options=data.get("vllm", {}),
        needs_several_nodes=path.parent.name == SEVERAL_NODES,
        unknown=tuple(words for key, words in unknown.items() if data[key] is None),
    )


def _invalid(shown: str, key: str, value: object, limit: str, remedy: str) -> InvalidStack:
    return InvalidStack([Problem(key=f"{shown}: {key}", value=value, limit=limit, source=shown, remedy=remedy)])


def _parsed(path: Path, shown: str) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text("utf-8"), Loader=_LOADER)  # noqa: S506  both loaders are safe ones
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "the file"
        raise _invalid(shown, where, type(error).__name__, "cannot be read as YAML", "correct it there") from None
    if not isinstance(data, dict):
        raise _invalid(shown, "the file", data, "holds no keys", "the other files beside it show them")
    return data


@cache
def preset_schema() -> dict[str, Any]:
    """JSON Schema of preset files, for editors and for the checks here."""
    return json.loads((PRESETS / "models" / "schema.json").read_text("utf-8"))


_TYPES = {"string": str, "boolean": bool, "integer": int, "array": list, "object": dict, "null": type(None)}


def _preset_problems(data: Mapping[str, Any], shown: str) -> Iterator[Problem]:
    """What the schema refuses: unknown and missing keys, types, patterns, the least number; and unknown VM sizes."""

    def problem(key: str, value: object, limit: str, remedy: str) -> Problem:
        return Problem(key=f"{shown}: {key}", value=value, limit=limit, source=shown, remedy=remedy)

    known = preset_schema()["properties"]
    for key in preset_schema()["required"]:
        if key not in data:
            yield problem(key, None, "is missing", known[key]["description"])
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
            yield problem(str(key), value, "is no key of a preset", meant)
            continue
        rule = known[key]
        types = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
        if not any(type(value) is _TYPES[name] for name in types):
            yield problem(key, value, f"must be of type {' or '.join(types)}", rule["description"])
        elif isinstance(value, list) and not all(isinstance(item, str) for item in value):
            yield problem(key, value, "must hold text only", rule["description"])
        elif isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
            yield problem(key, value, f"must look like {rule['pattern']}", rule["description"])
        elif isinstance(value, int) and value < rule.get("minimum", value):
            yield problem(key, value, f"must be at least {rule['minimum']}", rule["description"])
        elif key == "default-vm-size" and value not in vm_size_names():
            near = difflib.get_close_matches(value, vm_size_names(), n=1, cutoff=0)
            yield problem(key, value, "is not in presets/vm-sizes.yaml", f"did you mean {near[0]}?")


def _config(value: Any, path: Path, shown: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A preset's config, and the `hf_quant_config.json` beside it where it is a file of its own."""
    if isinstance(value, dict):
        return value, None
    file = path.parent / value
    found = []
    for one in (file, file.with_name("hf_quant_config.json")):
        try:
            content = json.loads(one.read_text("utf-8")) if one == file or one.is_file() else None
        except (OSError, ValueError, RecursionError) as error:
            why = getattr(error, "strerror", None) or "is not JSON"
            raise _invalid(shown, "config", value, why.lower(), "name a config.json, relative to this file") from None
        found.append(content)
    if not isinstance(found[0], dict):
        raise _invalid(shown, "config", value, "holds no JSON object", "name a model's config.json")
    return found[0], found[1]


def gpu_names() -> tuple[str, ...]:
    """Names of the known GPUs, in the file's order."""
    return tuple(_read("gpus.yaml")["gpus"])


@cache
def gpu(name: str) -> Gpu:
    """One GPU. Raises KeyError where it is not in the file."""
    data = _read("gpus.yaml")["gpus"][name]
    speed = data.get("speed")
    return Gpu(
        name=name,
        memory_gib=float(data["memory-gib"]),
        compute_capability=data["compute-capability"],
        links=data["links"],
        source=data["source"],
        speed=speed
        and GpuSpeed(
            memory_tb_per_s=speed["memory-tb-per-s"], tflops=speed["tflops"], link_gb_per_s=speed["link-gb-per-s"]
        ),
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
        regions_seen=tuple(data["regions-seen"]),
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
def image_keys() -> tuple[str, ...]:
    """Of `presets/images.yaml`."""
    return tuple(_read("images.yaml")["images"])


@cache
def engine_versions() -> tuple[str, ...]:
    """vLLM versions that have a folder under `presets/engines`, oldest first."""
    names = (path.name.removeprefix("vllm-") for path in (PRESETS / "engines").glob("vllm-*") if path.is_dir())
    return tuple(sorted(names, key=lambda version: [int(part) for part in version.split(".")]))


@cache
def deployed_engine() -> str:
    """The vLLM version that is deployed: the tag of its image. Raises InvalidStack where it has no folder."""
    tag = image("vllm").tag
    version = tag.removeprefix("v").partition("-")[0]
    if version not in engine_versions():
        known = f"has no folder under presets/engines, which knows {', '.join(engine_versions())}"
        remedy = f"make engine-contract VERSION={version}, or name a version that is known"
        raise _invalid("presets/images.yaml", "images.vllm.tag", tag, known, remedy)
    return version


def engine_memory(version: str) -> Mapping[str, Any]:
    """The memory constants of one engine folder. Raises KeyError where there is no such folder."""
    if version not in engine_versions():
        raise KeyError(version)
    return _read(f"engines/vllm-{version}/memory.yaml")


def serving_rate() -> Mapping[str, Any]:
    """The constants and error bars of `planning/serving_rate.py`."""
    return _read("serving-rate.yaml")
