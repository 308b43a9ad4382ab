"""Functions whose intermediate values are computed again when a derivative needs them, instead of being kept.

What second derivatives need of an inner step is most of the memory of a meta-step, and that of all inner steps lies
there until the meta-gradient has passed. Called through this module, a function keeps its arguments alone, and so does
its gradient; the memory of one step is needed at a time, for one more forward and backward pass in each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from metazoo.errors import Incompatible

Many: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""A function of tensors to tensors."""


class Recomputing:
    """Calls functions of tensors so that only their arguments are kept; values and derivatives are the same.

    The intermediate values of the latest call alone stay for its first derivative, which most often comes next. There
    are derivatives up to the second. Raises Incompatible for a function that makes use of a tensor with a gradient of
    its own that is not among its arguments: that gradient would be lost.
    """

    def __init__(self) -> None:
        self._latest: _Graph | None = None

    def __call__(self, function: Many, *arguments: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments):
            return _Function.apply(self, function, *arguments)
        return function(*arguments)

    def keep(self, graph: _Graph) -> weakref.ref[_Graph]:
        """Keep this graph, and no longer the one before."""
        self._latest = graph
        return weakref.ref(graph)

    def take(self, graph: Callable[[], _Graph | None]) -> _Graph | None:
        """The graph if it is still there, which it is not from then on."""
        found = graph()
        if found is not None:
            self._latest = None
        return found


class _Graph:
    """One evaluation of a function, from leaves of its own to its outputs, with what derivatives need."""

    def __init__(self, function: Many, arguments: Sequence[Tensor], needed: Sequence[bool]):
        self.leaves = [
            argument.detach().requires_grad_() if need else argument.detach() if argument.requires_grad else argument
            for argument, need in zip(arguments, needed, strict=True)
        ]
        self.wanted = [leaf for leaf, need in zip(self.leaves, needed, strict=True) if need]
        with torch.enable_grad():
            self.outputs = function(*self.leaves)

    def gradients(self, cotangents: Sequence[Tensor | None], create_graph: bool = False) -> list[Tensor | None]:
        """The gradients of all that is wanted; no more derivatives can be had afterwards, unless a graph is created."""
        pairs = [
            (output, cotangent)
            for output, cotangent in zip(self.outputs, cotangents, strict=True)
            if cotangent is not None and output.requires_grad
        ]
        if not pairs:
            return [None] * len(self.wanted)
        outputs, given = zip(*pairs, strict=True)
        return list(torch.autograd.grad(outputs, self.wanted, given, create_graph=create_graph, allow_unused=True))

    def check(self) -> None:
        """Raise Incompatible if a derivative leads to anything else than the leaves."""
        known = {id(leaf) for leaf in self.leaves}
        nodes = [output.grad_fn for output in self.outputs if output.grad_fn is not None]
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in known:
                raise Incompatible(
                    "A module of this network uses a learned tensor that is not its own, which cannot be computed anew "
                    "without losing its gradient; train without --recompute."
                )
            new = {parent for parent, _ in node.next_functions if parent is not None} - seen
            seen |= new
            nodes += new


class _Function(torch.autograd.Function):
    """The function itself."""

    @staticmethod
    def forward(ctx: Any, recomputing: Recomputing, function: Many, *arguments: Tensor) -> tuple[Tensor, ...]:
        ctx.recomputing, ctx.function, ctx.needed = recomputing, function, ctx.needs_input_grad[2:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        graph = _Graph(function, arguments, ctx.needed)
        graph.check()
        ctx.graph = recomputing.keep(graph)
        return tuple(output.detach() for output in graph.outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        graph = ctx.recomputing.take(ctx.graph)
        gradients = _Gradient.apply(ctx.function, graph, ctx.needed, len(cotangents), *cotangents, *ctx.saved_tensors)
        return None, None, *_spread(gradients, ctx.needed)


class _Gradient(torch.autograd.Function):
    """The gradients of a function's needed arguments, from the cotangents of its outputs and from its arguments."""

    @staticmethod
    def forward(
        ctx: Any, function: Many, graph: _Graph | None, needed: Sequence[bool], outputs: int, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.function, ctx.needed, ctx.outputs = function, needed, outputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        cotangents, arguments = tensors[:outputs], [tensor for tensor in tensors[outputs:] if tensor is not None]
        return tuple((graph or _Graph(function, arguments, needed)).gradients(cotangents))

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("A function that is computed anew has no third derivative.")
        given, arguments = ctx.saved_tensors[: ctx.outputs], ctx.saved_tensors[ctx.outputs :]
        graph = _Graph(ctx.function, arguments, ctx.needed)
        needed = ctx.needs_input_grad[4 : 4 + ctx.outputs]
        cotangents = [
            tensor.detach().requires_grad_() if need else tensor for tensor, need in zip(given, needed, strict=True)
        ]
        with torch.enable_grad():
            gradients = graph.gradients(cotangents, create_graph=True)
        pairs = [
            (gradient, second)
            for gradient, second in zip(gradients, seconds, strict=True)
            if gradient is not None and second is not None and gradient.requires_grad
        ]
        wanted = [cotangent for cotangent, need in zip(cotangents, needed, strict=True) if need] + graph.wanted
        if not pairs:
            return (None,) * len(ctx.needs_input_grad)
        first, second = zip(*pairs, strict=True)
        found = torch.autograd.grad(first, wanted, second, allow_unused=True)
        return None, None, None, None, *_spread(found, [*needed, *ctx.needed])


def _spread(values: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """The values at the places that are needed, None at the others."""
    remaining = iter(values)
    return [next(remaining) if need else None for need in needed]
