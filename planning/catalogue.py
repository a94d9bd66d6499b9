"""Presets as data: models, GPUs, VM sizes, images and engines, read from `presets/` into frozen classes."""

from __future__ import annotations

from dataclasses import dataclass

from planning.architecture import Architecture


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
