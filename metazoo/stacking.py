"""A backbone whose weights carry a task axis: the forward pass of T tasks at once, each with weights of its own.

`vmap` goes around the forward pass only; gradients are taken outside it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

from torch import Tensor, nn
from torch.func import vmap

from metazoo.backbones import Backbone
from metazoo.recomputing import Recomputing

Tapped: TypeAlias = tuple[Tensor, dict[str, Tensor]]
"""Outputs, and what some modules gave on the way, by their names."""


class StackedBackbone(nn.Module):
    """A backbone whose adapted parameters are `[T, ...]`, one set a task; the others are shared by all tasks.

    Its `parameters()` are the adapted tensors only, which is what learn2learn's `adapt` differentiates and updates.
    """

    def __init__(self, backbone: Backbone, adapted: Mapping[str, Tensor], shared: Mapping[str, Tensor], tasks: int):
        super().__init__()
        self.parts: Mapping[str, nn.Module] = {"body": backbone.body, "head": backbone.head}
        self.shared = dict(shared)
        self.unadapted: dict[str, Tensor] = {}
        """Tensors `[T, ...]` that differ between tasks and stay as they are."""
        self.tasks = tasks
        self._recomputing = backbone.recomputing
        self._places = {name: _places(part) for name, part in self.parts.items()}
        self.adapted.update(adapted)  # as learn2learn's own clones do: tensors with a history, not leaves

    @property
    def adapted(self) -> MutableMapping[str, Tensor]:
        """The adapted tensors by name; learn2learn's update replaces them here."""
        return cast(MutableMapping[str, Tensor], self._parameters)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The adapted tensors, without the search through submodules: learn2learn asks several times a step."""
        return iter(cast(Mapping[str, nn.Parameter], self.adapted).values())

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `[T, n, N]` of inputs `[T, n, ...]`."""
        return self.tapped(inputs)[0]

    def tapped(self, inputs: Tensor, taps: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs `[T, n, N]` of inputs `[T, n, ...]`, and what the modules of the body in `taps` gave on the way."""
        features, seen = self.part("body", inputs, taps)
        return self.part("head", features)[0], seen

    def snapshot(self) -> StackedBackbone:
        """The same network with the tensors it has now, whichever take their place here later."""
        twin = copy.copy(self)
        twin._parameters = dict(self._parameters)
        twin.shared, twin.unadapted = dict(self.shared), dict(self.unadapted)
        return twin

    def part(self, name: str, inputs: Tensor, taps: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Body (inputs to features) or head (features to outputs) of every task: `[T, n, ...]` to `[T, n, ...]`.

        With it, what the modules named in `taps` gave on the way.
        """
        own = _below(name, self.unadapted) | _below(name, self.adapted)
        return self._each_task(name, own, inputs, self.tasks, taps)

    def of_examples(self, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Every example's own copy `[T, n, ...]` of its task's adapted tensors, and the outputs `[T, n, N]` with them.

        Row `[t, i]` of the outputs comes from copy `[t, i]`, and all of the task's n inputs have gone through it (they
        share batch statistics), so the gradient of an example's loss w.r.t. its own copy is that example's gradient.
        """
        examples, count = inputs.shape[1], self.tasks * inputs.shape[1]
        copies = {
            name: tensor.unsqueeze(1).expand(-1, examples, *tensor.shape[1:]) for name, tensor in self.adapted.items()
        }
        every = {name: tensor.repeat_interleave(examples, dim=0) for name, tensor in self.unadapted.items()}
        every |= {name: tensor.flatten(0, 1) for name, tensor in copies.items()}
        outputs = inputs.repeat_interleave(examples, dim=0)
        for name in self.parts:
            outputs, _ = self._each_task(name, _below(name, every), outputs, count)
        outputs = outputs.view(self.tasks, examples, examples, -1)
        return copies, outputs.diagonal(dim1=1, dim2=2).transpose(1, 2)

    def _each_task(
        self, part: str, own: Mapping[str, Tensor], inputs: Tensor, tasks: int, taps: Collection[str] = ()
    ) -> Tapped:
        """A part on inputs `[T, n, ...]`, each task with its `own` tensors `[T, ...]` and those that all share."""
        module, places, shared = self.parts[part], self._places[part], _below(part, self.shared)
        inside = [tap for tap in taps if tap.startswith(f"{part}.")]

        def run(own: Mapping[str, Tensor], shared: Mapping[str, Tensor], inputs: Tensor) -> Tapped:
            def forward(weights: Mapping[str, Tensor], inputs: Tensor) -> Tapped:
                with _recording(module, part, inside) as seen, _holding(places, {**shared, **weights}):
                    return module(inputs), seen

            if tasks == 1:
                outputs, seen = forward({key: value.squeeze(0) for key, value in own.items()}, inputs.squeeze(0))
                return outputs.unsqueeze(0), {name: output.unsqueeze(0) for name, output in seen.items()}
            return vmap(forward, randomness="different")(dict(own), inputs)

        if self._recomputing is None or part != "body":
            return run(own, shared, inputs)
        return _recomputed(self._recomputing, run, own, shared, inputs)


def each_task(module: Callable[..., Any], *inputs: Tensor) -> Any:
    """`module` on each task by itself: what it gives for each row of inputs `[T, ...]`, stacked to `[T, ...]`.

    Batch norm in it sees one task at a time. Its parameters are shared by the tasks.
    """
    if len(inputs[0]) == 1:
        return module(*(part.squeeze(0) for part in inputs)).unsqueeze(0)
    return vmap(module, randomness="different")(*inputs)


_Places = Mapping[str, Sequence[tuple[MutableMapping[str, Any], str]]]
"""Of every tensor, the dictionaries of modules that hold it, with its key there."""


def _places(module: nn.Module) -> _Places:
    """Where a module holds its parameters and buffers, each by the first of its names."""
    names: dict[int, str] = {}
    places: dict[str, list[tuple[MutableMapping[str, Any], str]]] = {}
    for path, owner in module.named_modules():
        for tensors in (owner._parameters, owner._buffers):
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                name = names.setdefault(id(tensor), f"{path}.{key}".lstrip("."))
                places.setdefault(name, []).append((tensors, key))
    return places


def _recomputed(
    recomputing: Recomputing,
    run: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor], Tapped],
    own: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    inputs: Tensor,
) -> Tapped:
    """What `run` gives, as a function of all tensors that go into it."""
    names: list[str] = []

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, seen = run(
            dict(zip(own, tensors, strict=False)), dict(zip(shared, tensors[len(own) :], strict=False)), tensors[-1]
        )
        names[:] = seen
        return outputs, *seen.values()

    outputs, *seen = recomputing(function, *own.values(), *shared.values(), inputs)
    return outputs, dict(zip(names, seen, strict=True))


@contextlib.contextmanager
def _holding(places: _Places, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """While the block runs, the module holds these tensors: `torch.func.functional_call`, with the search done."""
    replaced = [(place, key, place[key]) for name in tensors for place, key in places[name]]
    try:
        for name, tensor in tensors.items():
            for place, key in places[name]:
                place[key] = tensor
        yield
    finally:
        for place, key, tensor in replaced:
            place[key] = tensor


@contextlib.contextmanager
def _recording(module: nn.Module, path: str, taps: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what the submodules named in `taps` (from `path` on) give while the block runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[name] = output

    with contextlib.ExitStack() as hooks:
        for tap in taps:
            place = module.get_submodule(tap.removeprefix(f"{path}."))
            hooks.callback(place.register_forward_hook(partial(keep, tap)).remove)
        yield seen


def _below(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part of the backbone, by their names inside it."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
