"""Pure functions of tensors, compiled by `torch.compile`: once for each combination of types, shapes and layouts."""

from __future__ import annotations

import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metazoo.errors import UserError
from metazoo.fast import trials
from metazoo.hardware import is_out_of_memory

_REFUSED = (
    "PyTorch cannot compile a block of the network here ({}). For a GPU it needs Triton and a C compiler, for a CPU a "
    "C++ compiler; METAZOO_BLOCK=eager or METAZOO_BLOCK=modules computes the same without."
)


def available(device: torch.device) -> bool:
    """Whether torch can compile for a device: for a GPU it needs Triton, which comes with it on Linux."""
    from torch.utils._triton import has_triton

    return device.type != "cuda" or has_triton()


class Compiled:
    """A function of tensors (or None) and, by keyword, of numbers; no gradient goes through it.

    The code that is made for GPUs stays in torch's own cache on disk, and what was made in a process in this one. While
    a CUDA graph is being captured nothing is compiled: what is not there yet runs as it is. A UserError where torch
    cannot compile.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._made: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._lock = threading.RLock()

    def __call__(self, first: Tensor, *others: Tensor | None, **numbers: float) -> Any:
        kind = *map(_kind, (first, *others)), *numbers.values()
        values = [first.detach(), *(None if tensor is None else tensor.detach() for tensor in others)]
        with torch.no_grad():
            if kind not in self._made:
                if trials.is_capturing(first.device):
                    return self._function(*values, **numbers)
                with self._lock, warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # advice on TF32, which is not ours to take
                    made = self._make(numbers)
                    try:
                        made(*values)
                    except Exception as error:
                        if is_out_of_memory(error):
                            raise
                        raise UserError(_REFUSED.format(str(error).strip().partition("\n")[0].rstrip("."))) from error
                    self._made[kind] = made
            return self._made[kind](*values)

    def _make(self, numbers: dict[str, float]) -> Callable[..., Any]:
        function = self._function

        def with_numbers(*tensors: Tensor | None) -> Any:
            return function(*tensors, **numbers)

        # torch keeps what it compiles with a function's code, and not much of it: each kind has a code of its own.
        name = f"{function.__name__}_{len(self._made)}"
        code = with_numbers.__code__.replace(co_name=name)
        own = types.FunctionType(code, globals(), name, None, with_numbers.__closure__)
        return torch.compile(own, fullgraph=True, dynamic=False, options={"triton.cudagraphs": False})


def _kind(tensor: Tensor | None) -> Any:
    return tensor if tensor is None else (tensor.dtype, tensor.device, tensor.shape, tensor.stride())
