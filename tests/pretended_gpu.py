"""A GPU that is not there: tensors that say they are on `cuda:0`, where what CUDA refuses is refused, too.

Whatever is on it is computed by the CPU, so that numbers are real. A storage is on the GPU, in the host's memory, or
neither: PyTorch's own code makes such tensors inside of its operations, and they are no concern of ours. Refused are
operations on tensors of both places, `numpy()` of a tensor on the GPU, and where nothing may wait for the GPU (in a
watched run, while a graph is recorded) all that would. Graphs are tapes (`tests/tape.py`) that are played in the memory
they were recorded in. Streams are names that know which work of each other they have waited for (`tests/streams.py`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tape
import torch
from streams import Known, Streams
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from metazoo import prefetching
from metazoo.fast import compiled, trials

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
CAPTURING = "CUDA error: operation not permitted when stream is capturing"
PAGEABLE = "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned."

_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default, _ATEN.set_.source_Storage_storage_offset}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN._index_put_impl_.default, _ATEN.index_put.default}
_FACTORIES = (
    *("arange", "empty", "empty_strided", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"),
    *("scalar_tensor", "zeros"),
)
_OF_DATA = "as_tensor", "from_numpy", "tensor"
_OURS = tuple(str(Path(__file__).parents[1] / folder) for folder in ("metazoo", "algorithms", "benchmarks"))


def place(tensor: Tensor) -> str | None:
    """`gpu`, `host` or None; of a tensor under `torch.func.vmap`, that of what it wraps."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return getattr(tensor.untyped_storage(), "place", None)


def put(tensor: Tensor, where: str, pinned: bool = False) -> Tensor:
    """The tensor, whose memory is there from now on."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    storage: Any = tensor.untyped_storage()
    storage.place, storage.pinned = where, pinned
    return tensor


class PretendedGpu(TorchDispatchMode):
    """Whatever runs inside of it has a GPU, if it was installed."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """Where in our code the host has waited for the GPU, in order."""
        self.sync_mode: Any = 0
        self.tape: tape.Tape | None = None
        """What is being recorded."""
        self.recorded = self.replayed = 0
        self.streams = Streams()
        self.clock = 0.0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = list(_tensors(args))
        places = {place(tensor) for tensor in tensors}
        if "gpu" in places:
            self._examine(operation, tensors, args)
        given = operation(*args, **(kwargs or {}))
        where = "gpu" if "gpu" in places else "host" if "host" in places else None
        made = [tensor for tensor in _tensors((given,)) if where and place(tensor) is None]
        for tensor in made:
            put(tensor, where or "host")
        if where == "gpu" and self.tape is None and not operation.is_view:
            self._launched(operation, [tensor for tensor in tensors if place(tensor) == "gpu"], made, args)
        return given

    def _launched(self, operation: Any, tensors: list[Tensor], made: list[Tensor], args: Any) -> None:
        written = [tensor for tensor in _written(operation, args) if place(tensor) == "gpu"]
        self.streams.ran(tensors, [*written, *made], str(operation))

    def _examine(self, operation: Any, tensors: list[Tensor], args: Any) -> None:
        """Refuse an operation on a tensor of the GPU where CUDA would, and note whether it waits."""
        host = [tensor for tensor in tensors if place(tensor) == "host"]
        if operation in _COPIES:
            if host and len(tensors) == 2:
                self.cross(args[1], place(args[0]) == "gpu", bool(len(args) > 2 and args[2]))
            return
        if operation in _INDEXING:
            places = [index for index in args[1] if index is not None]
            if any(place(index) != "gpu" or index.dtype == torch.bool for index in places):
                self.wait()
            host = [tensor for tensor in host if all(tensor is not index for index in places)]
        written = _written(operation, args)
        if any(tensor.dim() for tensor in host) or any(one is other for one in written for other in host):
            raise RuntimeError(f"{MIXED} ({operation})")
        if operation not in _INDEXING and tape.ASKING & set(operation.tags):
            self.wait()

    def wait(self) -> None:
        """The host waits for the GPU."""
        if self.tape is not None:
            raise RuntimeError(CAPTURING)
        if self.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        frame: Any = sys._getframe(1)
        while frame is not None and not (
            frame.f_code.co_filename.startswith(_OURS) and frame.f_code.co_name.isidentifier()
        ):
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}" if frame else "a test"
        self.waits.append(where)
        self.streams.synchronize(self.streams.current)

    def cross(self, source: Tensor, to_gpu: bool, non_blocking: bool) -> None:
        """Values go from one place to the other."""
        pinned = getattr(source.untyped_storage(), "pinned", False)
        if self.tape is not None and not (to_gpu and pinned):
            raise RuntimeError(PAGEABLE)
        if not (to_gpu and non_blocking):
            self.wait()

    # What PyTorch's Python says and takes.

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.Tensor, "device", property(lambda tensor: GPU if place(tensor) == "gpu" else CPU))
        patch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: place(tensor) == "gpu"))
        for name in _FACTORIES:
            patch.setattr(torch, name, self._factory(getattr(torch, name), of_data=False))
        for name in _OF_DATA:
            patch.setattr(torch, name, self._factory(getattr(torch, name), of_data=True))
        for name in ("to", "cpu", "pin_memory", "numpy", "tolist", "new_tensor", "record_stream"):
            patch.setattr(torch.Tensor, name, partial_method(getattr(self, f"_{name}"), getattr(torch.Tensor, name)))
        patch.setattr(torch.nn.functional, "one_hot", _one_hot)
        for name, value in self._cuda().items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(
            torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda adam: None, raising=False
        )
        patch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", _on_one_device)
        patch.setattr(compiled, "available", lambda device: False)
        patch.setattr(prefetching._CudaCourier, "fetch", self._also_here(prefetching._CudaCourier.fetch))
        patch.setattr(trials, "WARM_UP", 0)
        patch.setattr(trials, "TIMED", 1)
        trials.forget()

    def _factory(self, make: Callable[..., Tensor], of_data: bool) -> Callable[..., Tensor]:
        @wraps(make)
        def made(*args: Any, **kwargs: Any) -> Tensor:
            device, pinned = kwargs.pop("device", None), kwargs.pop("pin_memory", False)
            tensor = make(*args, **kwargs)
            if device is None or torch.device(device).type == "cpu":
                return tensor if place(tensor) else put(tensor, "host", pinned)
            if of_data:
                self.cross(tensor, to_gpu=True, non_blocking=False)
            return self._arrived(tensor)

        return made

    def _to(self, original: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copy, other = kwargs.pop("copy", False), next((a for a in args if isinstance(a, Tensor)), None)
        if other is not None:
            args = (other.device, other.dtype)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        options = {} if memory_format is None else {"memory_format": memory_format}
        made = original(tensor, tensor.dtype if dtype is None else dtype, copy=copy, **options)
        where = "host" if device is None or device.type == "cpu" else "gpu"
        if device is None or (place(tensor) or "host") == where:
            return made
        self.cross(tensor, where == "gpu", non_blocking)
        return self._arrived(made.clone()) if where == "gpu" else put(made.clone(), where)

    def _arrived(self, tensor: Tensor) -> Tensor:
        """The tensor, which the current stream has put onto the GPU."""
        self.streams.ran((), [put(tensor, "gpu")]) if self.tape is None else put(tensor, "gpu")
        return tensor

    def _cpu(self, original: Any, tensor: Tensor) -> Tensor:
        return tensor.to("cpu")

    def _pin_memory(self, original: Any, tensor: Tensor) -> Tensor:
        assert place(tensor) != "gpu", "only memory of the host can be pinned"
        return put(tensor.clone(), "host", pinned=True)

    def _numpy(self, original: Any, tensor: Tensor, **options: Any) -> Any:
        if place(tensor) == "gpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        return original(tensor, **options)

    def _tolist(self, original: Any, tensor: Tensor) -> Any:
        if place(tensor) == "gpu":
            self.wait()
        return original(tensor)

    def _new_tensor(self, original: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made = original(tensor, *args, **kwargs)
        if place(tensor) == "gpu":
            self.cross(put(made, "host"), to_gpu=True, non_blocking=False)
        return put(made, place(tensor) or "host")

    def _record_stream(self, original: Any, tensor: Tensor, stream: Any) -> None:
        assert place(tensor) == "gpu", "record_stream is for memory of the GPU"

    def _also_here(self, fetch: Callable[..., Any]) -> Callable[..., Any]:
        """In another thread, which has no modes of its own."""

        def fetched(*args: Any) -> Any:
            with self:
                return fetch(*args)

        return fetched

    def _cuda(self) -> dict[str, Any]:
        generator = torch.get_rng_state()
        properties = SimpleNamespace(name="Pretended", total_memory=2**31, major=9, minor=0)
        return {
            "CUDAGraph": partial(_Graph, self),
            "Event": partial(_Event, self),
            "Stream": lambda device: _Stream(self, self.streams.new()),
            "current_device": lambda: 0,
            "current_stream": lambda device=None: _Stream(self, self.streams.current),
            "device": lambda device: contextlib.nullcontext(),
            "device_count": lambda: 1,
            "empty_cache": lambda: None,
            "get_device_capability": lambda device: (9, 0),
            "get_device_name": lambda device: "Pretended",
            "get_device_properties": lambda device: properties,
            "get_rng_state": lambda device: generator.clone(),
            "get_sync_debug_mode": lambda: self.sync_mode,
            "graph": self._recording,
            "graph_pool_handle": lambda: (0, 1),
            "is_available": lambda: True,
            "is_current_stream_capturing": lambda: self.tape is not None,
            "max_memory_allocated": lambda device=None: 2**20,
            "mem_get_info": lambda device: (2**30, 2**31),
            "memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "set_rng_state": lambda state, device: None,
            "set_sync_debug_mode": lambda mode: setattr(self, "sync_mode", mode),
            "stream": lambda stream: self.streams.on(stream.number),
            "synchronize": lambda device=None: self.streams.synchronize(),
        }

    @contextlib.contextmanager
    def _recording(self, graph: _Graph, *, pool: Any, stream: _Stream, capture_error_mode: str) -> Iterator[None]:
        self.streams.synchronize()
        with self.streams.on(stream.number):
            self.tape = graph.tape = tape.Tape()
            self.recorded += 1
            try:
                with self.tape:
                    yield
            finally:
                self.tape = None


def _written(operation: Any, args: Any) -> list[Tensor]:
    """The arguments that an operation writes to."""
    return list(_tensors(args[k] for k, a in enumerate(operation._schema.arguments[: len(args)]) if a.is_write))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class _Graph:
    def __init__(self, gpu: PretendedGpu):
        self.gpu, self.tape = gpu, tape.Tape()

    def replay(self) -> None:
        """The operations once more, and what they give in the memory of what they gave when they were recorded."""
        self.gpu.replayed += 1
        with torch.no_grad():
            self.tape.play()
        with torch.no_grad(), _disable_current_modes():
            for tensor in self.tape.kept:
                slot = self.tape.slots[id(tensor)]
                spread = any(size > 1 and not step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
                if not slot.was_there and slot.value is not tensor and not spread:
                    tensor.detach().copy_(slot.value)
                    if place(tensor) == "gpu":
                        self.gpu.streams.ran((), [tensor], "of a replay")

    def reset(self) -> None:
        self.tape = tape.Tape()


class _Stream:
    def __init__(self, gpu: PretendedGpu, number: int):
        self.gpu, self.number = gpu, number

    def wait_stream(self, other: _Stream) -> None:
        self.wait_event(other.record_event())

    def wait_event(self, event: _Event) -> None:
        self.gpu.streams.wait(self.number, event.known)

    def record_event(self) -> _Event:
        event = _Event(self.gpu)
        event.known = dict(self.gpu.streams.known[self.number])
        return event


class _Event:
    """Each is one millisecond after the one before."""

    def __init__(self, gpu: PretendedGpu, enable_timing: bool = False):
        self.gpu, self.at = gpu, 0.0
        self.known: Known = {}

    def record(self) -> None:
        self.gpu.clock += 1
        self.at = self.gpu.clock

    def synchronize(self) -> None:
        self.gpu.wait()

    def elapsed_time(self, end: _Event) -> float:
        return end.at - self.at


def partial_method(replacement: Callable[..., Any], original: Any) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        return replacement(original, tensor, *args, **kwargs)

    return method


def _on_one_device(tensors: list[list[Tensor]], with_indices: bool = False) -> Any:
    """Lists of tensors of one type, in groups of one device, which PyTorch asks in C++."""
    (first, *_), *_ = tensors
    return {(first.device, first.dtype): (tensors, list(range(len(tensors[0]))))}


def _one_hot(labels: Tensor, ways: int) -> Tensor:
    """As on a GPU, which is not asked whether labels are in range."""
    return (labels.unsqueeze(-1) == torch.arange(ways, device=labels.device)).long()
