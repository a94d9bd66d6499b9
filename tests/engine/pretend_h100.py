"""Make vLLM's code believe in an H100 before any of it is imported: its CUDA platform without CUDA.

Only what is asked while a configuration is decided and a model is built on the meta device is answered; nothing can
run. What the platform then chooses (attention backends, block sizes, batch sizes) is what it chooses on an H100.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

TOTAL_MEMORY = 85_029_158_912  # bytes; what torch reports for an H100 80GB, 79.19 GiB
COMPUTE_UNITS = 132
DEEP_GEMM = "vllm.third_party.deep_gemm._C"  # Python that loads an extension from its file
GPUS = 64  # more than any replica here needs


class _Kernels(types.ModuleType):
    """A compiled extension: it can be imported and has every name, and none of them is ever called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Operation()


class _Operation:
    """A kernel: it has every overload and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Operation()

    def __call__(self, *args: Any, **kwargs: Any) -> None: ...


def install() -> None:
    """Replace vLLM's compiled extensions and its platform; must come before everything else of vLLM."""
    package = importlib.util.find_spec("vllm")
    assert package and package.origin
    for name in (Path(package.origin).parents[1] / "extensions.txt").read_text().split() + [DEEP_GEMM]:
        module = _Kernels(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module

    import torch

    missing = torch._ops._OpNamespace.__getattr__

    def operation(namespace: Any, name: str) -> Any:
        try:
            return missing(namespace, name)
        except AttributeError:
            if namespace.name.startswith("_") and not name.startswith("__"):
                return _Operation()
            raise

    torch._ops._OpNamespace.__getattr__ = operation
    torch.library.register_fake = lambda *args, **kwargs: lambda function: function  # shapes of operations that are not

    from triton.backends import backends

    backends["nvidia"].driver.is_active = lambda: True

    import vllm.platforms as platforms

    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class H100(CudaPlatformBase):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(major=9, minor=0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return TOTAL_MEMORY

        @classmethod
        def get_device_uuid(cls, device_id: int = 0) -> str:
            return f"GPU-{device_id}"

        @classmethod
        def is_fully_connected(cls, device_ids: list[int]) -> bool:
            return True

        @classmethod
        def device_count(cls) -> int:
            return GPUS

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return COMPUTE_UNITS

        @classmethod
        def is_integrated_gpu(cls, device_id: int = 0) -> bool:
            return False

        @classmethod
        def is_arch_support_pdl(cls) -> bool:
            return True

    platforms._current_platform = H100()

    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()  # which would not have this platform
