"""Make vLLM's code believe in an H100 before any of it is imported: its CUDA platform without CUDA.

Only what is asked while a configuration is decided and a model is built on the meta device is answered; nothing can
run. What the platform then chooses (attention backends, block sizes, batch sizes) is what it chooses on an H100.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

NAME = "NVIDIA H100 80GB HBM3"
TOTAL_MEMORY = 85_029_158_912  # bytes; what torch reports for an H100 80GB, 79.19 GiB
COMPUTE_UNITS = 132
#: In vLLM's image; compiled, or made of what is.
PACKAGES = ("deep_gemm", "cutlass", "quack", "tilelang", "vllm.vllm_flash_attn.cute")
GPUS = 64  # more than any replica here needs


class _Operation:
    """A kernel, or anything else of a compiled package: it has every attribute, decorates, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Operation()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and isinstance(args[0], types.FunctionType | type) else _Operation()

    def __getitem__(self, key: Any) -> Any:
        return _Operation()

    def _with(self, other: Any) -> Any:
        return _Operation()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = __mod__ = _with
    __truediv__ = __rtruediv__ = __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __or__ = __and__ = _with

    def __index__(self) -> int:
        return 1

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)


class _Compiled(types.ModuleType):
    """A module that can be imported and has every name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__dict__["__path__"] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Operation()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the compiled extensions and packages that an image with a GPU has."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == each or name.startswith(each + ".") for each in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Compiled(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def install() -> None:
    """Replace vLLM's compiled extensions and its platform; must come before everything else of vLLM."""
    package = importlib.util.find_spec("vllm")
    assert package and package.origin
    extensions = (Path(package.origin).parents[1] / "extensions.txt").read_text().split()
    sys.meta_path.insert(0, _Finder((*extensions, *PACKAGES)))

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

    _pretend_cuda(torch)

    import vllm.platforms as platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class H100(CudaPlatformBase):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(major=9, minor=0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return NAME

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


def on_meta_device() -> Any:
    """A context in which tensors for a GPU, or for no device in particular, have a shape and no memory."""
    import contextlib

    import torch
    from torch.overrides import TorchFunctionMode

    def moved(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("meta") if value.type == "cuda" else value
        return "meta" if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")) else value

    class NoMemory(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            if getattr(function, "__name__", "") == "cuda":
                return arguments[0].to("meta")
            options = {key: moved(value) for key, value in (options or {}).items()}
            if isinstance(options.get("device"), int):
                options["device"] = "meta"
            return function(*(moved(each) for each in arguments), **options)

    stack = contextlib.ExitStack()
    stack.enter_context(torch.device("meta"))
    stack.enter_context(NoMemory())
    return stack


def _pretend_cuda(torch: Any) -> None:
    """What vLLM's modules ask of CUDA and Triton while they are imported and built."""
    import triton
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    class Stream:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    properties = types.SimpleNamespace(
        name=NAME, major=9, minor=0, total_memory=TOTAL_MEMORY, multi_processor_count=COMPUTE_UNITS, warp_size=32,
        is_integrated=False, shared_memory_per_block_optin=232_448, max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65_536, L2_cache_size=52_428_800, gcnArchName="",
    )  # fmt: skip
    torch.cuda.Stream = torch.cuda.Event = Stream
    torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
    torch.cuda.init = torch.cuda._lazy_init = torch.cuda.synchronize = lambda *args: None
    torch.cuda.device_count = lambda: GPUS
    torch.cuda.current_device = lambda: 0
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *args: Stream()
    torch.cuda.get_device_capability = lambda *args: (9, 0)
    torch.cuda.get_device_name = lambda *args: NAME
    torch.cuda.get_device_properties = lambda *args: properties

    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_active_torch_device(self) -> Any:
            return torch.device("cuda", 0)

        def get_benchmarker(self) -> Any:
            return lambda *args, **kwargs: [0.0, 0.0, 0.0]

        def __getattr__(self, name: str) -> Any:
            return _Operation()

    backends["nvidia"].driver.is_active = lambda: True
    triton.runtime.driver.set_active(Driver())
