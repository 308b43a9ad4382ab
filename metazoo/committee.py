"""A committee: models of one method, each with weights of its own, that predict on the same episodes.

The task axis does not mind whose weights are in its rows, so K members on T episodes are K T tasks of one pass: member
by member, the rows start at the members' initialisations. The method's code runs once for all of them, in a chair that
has no weights; modules that it has beside the backbone (CxGrad's scaler) are there as rows of the members' modules. A
method that reads a weight by itself (MAML++ its learned rates, HyperMAML the head) would have to read one for each
member: the chair has none to give, which ends the attempt, and the members predict one after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from metazoo.algorithm import Algorithm, InnerLoop, Metric
from metazoo.episodes import Episodes
from metazoo.fast import trials
from metazoo.graphs import Recorder, Replayed
from metazoo.learner import Learner
from metazoo.meta_pass import Prediction
from metazoo.stacking import StackedBackbone

_PARAMETERS = nn.ParameterList, nn.ParameterDict


class Committee:
    """Members that predict on the same episodes: in stacked passes where they can, else one after the other."""

    def __init__(
        self,
        members: Sequence[Algorithm],
        recorder: Recorder | None = None,
        note: Callable[[str], object] = lambda text: None,
    ):
        self.members = list(members)
        self._chair = _Chair(self.members) if _alike(self.members) else None
        self._tried = False
        said: list[str] = []

        def note_once(text: str) -> None:
            if not said:
                note(text)
            said.append(text)

        what = "The passes of evaluation"
        self._passes = [Replayed(Prediction(member), recorder, what, note_once) for member in self.members]
        together = Prediction(self._chair.method) if self._chair else None
        self._stacked_passes = Replayed(together, recorder, what, note_once) if together else None

    @property
    def is_stacked(self) -> bool:
        """Whether predictions have been made in stacked passes, and are from here on."""
        return self._chair is not None and self._tried

    def predict(self, episodes: Episodes, size: int, replay: bool = True) -> list[Tensor]:
        """Query outputs `[T, Q, N]` of every member, with at most `size` tasks in a pass; without `replay`, as ever.

        Passes are stacked if one of them has room for an episode of each member.
        """

        def outputs(passes: Replayed, part: Episodes) -> Tensor:
            return (passes(part) if replay else passes.once(part))["outputs"].clone()

        each = size // len(self.members)
        if self._chair is not None and self._stacked_passes is not None and each:
            try:
                self._try(self._chair, episodes)
                passes = self._stacked_passes
                parts = [self._chair.shares(outputs(passes, self._chair.tasks(part))) for part in episodes.chunks(each)]
                return [torch.cat(shares) for shares in zip(*parts, strict=True)]
            except _OneForEachMember:
                self._chair = None
        return [torch.cat([outputs(passes, part) for part in episodes.chunks(size)]) for passes in self._passes]

    def _try(self, chair: _Chair, episodes: Episodes) -> None:
        """Once, with one and two episodes: what has as many rows as there are tasks in both cases has a row a task."""
        if not self._tried:
            with trials.postponed():
                for count in (1, 2):
                    chair.predict(episodes.select([0] * count))
            self._tried = True


class _OneForEachMember(Exception):
    """Something was asked for of which there is one for each member."""


class _Chair:
    """The members' method without weights; what it predicts, it predicts with theirs."""

    def __init__(self, members: Sequence[Algorithm]):
        self.members = len(members)
        first = members[0]
        here: dict[int, Any] = {id(tensor): _Withheld(tensor) for tensor in (*first.parameters(), *first.buffers())}
        self.modules = [_RowsOfMembers(modules) for modules in _own_modules(members)]
        here |= {id(rows.of_members[0]): rows for rows in self.modules}
        self.method = copy.deepcopy(first, here)  # in which these stand in for what they are found under
        for chair, *holders in zip(*map(_learning, (self.method, *members)), strict=True):
            chair._learner = [_LearnerOfMembers(chair.backbone, [holder._learner[0] for holder in holders])]

    def predict(self, episodes: Episodes) -> tuple[Tensor, ...]:
        """Query outputs `[T, Q, N]` of every member. Raises _OneForEachMember."""
        return self.shares(self.method.predict(self.tasks(episodes)).detach())

    def tasks(self, episodes: Episodes) -> Episodes:
        """The episodes as the tasks of a stacked pass: all of them for each member."""
        tasks = episodes.repeated(self.members)
        for module in self.modules:
            module.tasks = len(tasks)
        return tasks

    def shares(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Every member's part of what a stacked pass has given."""
        return outputs.chunk(self.members)


class _LearnerOfMembers(Learner):
    """Its clones' tasks are shared equally between the networks of several learners, in their order."""

    def __init__(self, backbone: Any, learners: Sequence[Learner]):
        super().__init__(backbone, learners[0].adapted_names)
        self.learners = list(learners)

    def clone(self, tasks: int = 1, first_order: bool = False, track: bool = False) -> Any:
        """Without a way back to the meta-parameters, whatever `track` says."""
        each = tasks // len(self.learners)
        networks = [learner.tensors() for learner in self.learners]
        rows = {
            name: torch.cat([tensors[name].detach().expand(each, *tensors[name].shape) for tensors in networks])
            for name in networks[0]
        }
        adapted = {name: rows.pop(name).requires_grad_() for name in list(rows) if name in self.adapted_names}
        network = StackedBackbone(self.module, adapted, {}, tasks)
        network.unadapted, network.shared = rows, _NothingShared()
        return self.wrapped(network, first_order)


def _withhold(*_: Any, **__: Any) -> NoReturn:
    raise _OneForEachMember


class _RowsOfMembers(nn.Module):
    """Modules of the members as one, on inputs that have a row for each task: T for each member."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.of_members = list(modules)
        self.tasks = 0

    def forward(self, *inputs: Tensor) -> Any:
        if any(len(tensor) != self.tasks for tensor in inputs):
            raise _OneForEachMember
        parts = zip(*(tensor.chunk(len(self.of_members)) for tensor in inputs), strict=True)
        outputs = [module(*part) for module, part in zip(self.of_members, parts, strict=True)]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        return tuple(map(torch.cat, zip(*outputs, strict=True)))

    __getattr__ = __getitem__ = __iter__ = _withhold  # a part of it is no part of the members' modules


class _Withheld(nn.Parameter):
    """In place of a tensor of which each member has its own: nothing can be done with it."""

    def __new__(cls, tensor: Tensor) -> _Withheld:
        return super().__new__(cls, tensor.detach(), tensor.requires_grad)

    __torch_function__ = classmethod(_withhold)


class _NothingShared(dict[str, Tensor]):
    """In place of the tensors that all tasks share: no two members do."""

    __missing__ = __setitem__ = update = _withhold


def _alike(models: Sequence[Algorithm]) -> bool:
    """Whether they are several models of one method that works on a TaskBatch and of one shape."""
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in models]
    kinds = {(type(model), model.settings.model_dump_json()) for model in models}
    return len(models) > 1 and len(kinds) == 1 and all(map(shapes[0].__eq__, shapes)) and any(_learning(models[0]))


def _learning(model: Algorithm) -> list[InnerLoop | Metric]:
    """The model, or what it wraps, where a learner makes its tasks."""
    return [module for module in model.modules() if isinstance(module, (InnerLoop, Metric))]


def _own_modules(models: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """What a method has beside its backbone, from every model: single modules, of lists and of wrapped methods too."""
    for name, child in models[0].named_children():
        children = [model.get_submodule(name) for model in models]
        if isinstance(child, (Algorithm, nn.ModuleList, nn.ModuleDict)):
            yield from _own_modules(children)
        elif child is not getattr(models[0], "backbone", None) and not isinstance(child, _PARAMETERS):
            yield children
