"""The contract suite: what must hold for any method, built in or anyone's plugin (`metazoo check`).

Every check runs the method in float64 on a small network and small episodes and returns what is wrong, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metazoo.algorithm import Algorithm, InnerLoop
from metazoo.testing import Trace, tiny_algorithm, tiny_episodes, trace

TOLERANCE = 1e-9

Check = Callable[[type[Algorithm]], str]


@dataclass(frozen=True)
class Finding:
    """The result of one check: `fault` is empty when the method passed, else a sentence."""

    check: str
    fault: str

    @property
    def passed(self) -> bool:
        return not self.fault


def check(method: type[Algorithm]) -> list[Finding]:
    """Run every check on `method`; a check that raises is a fault with the error as its sentence."""
    findings = []
    for function in CHECKS:
        try:
            fault = function(method)
        except Exception as error:  # a plugin may raise anything, and each check must still be reported
            fault = f"raised {type(error).__name__}: {error}"
        findings.append(Finding((function.__doc__ or "").rstrip("."), fault))
    return findings


def declares_itself(method: type[Algorithm]) -> str:
    """Declares a name, a title and a paper."""
    missing = [field for field in ("name", "title", "paper") if not getattr(method, field)]
    return f"`{'`, `'.join(missing)}` is empty" if missing else ""


def tasks_do_not_mix(method: type[Algorithm]) -> str:
    """A task gets the same result alone, in a batch and in any order."""
    algorithm, episodes = tiny_algorithm(method), tiny_episodes()
    together, reversed_order = trace(algorithm, episodes), trace(algorithm, episodes.select([2, 1, 0]))
    alone = [trace(algorithm, episodes.select([task])) for task in range(len(episodes))]
    if fault := _compare("losses in another order", together.query_losses, reversed_order.query_losses.flip(0)):
        return fault
    if fault := _compare("losses one at a time", together.query_losses, torch.cat([one.query_losses for one in alone])):
        return fault
    for name, gradient in together.meta_gradients.items():
        if gradient is not None:
            parts = [part for one in alone if (part := one.meta_gradients[name]) is not None]
            if fault := _compare(f"meta-gradient of {name}", gradient, torch.stack(parts).sum(0) / len(alone)):
                return fault
    return ""


def keeps_no_state(method: type[Algorithm]) -> str:
    """Leaves nothing behind: the same episodes give the same result later, and no parameter moves."""
    algorithm, episodes, others = tiny_algorithm(method), tiny_episodes(), tiny_episodes(seed=1)
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    first = trace(algorithm, episodes)
    trace(algorithm, others)
    algorithm.predict(others)
    again = trace(algorithm, episodes)
    changed = [name for name, value in algorithm.state_dict().items() if not torch.equal(value, before[name])]
    if changed:
        return f"changed {', '.join(changed)} outside the outer loop"
    return _compare("losses after other tasks", first.query_losses, again.query_losses)


def predicts_what_it_learns(method: type[Algorithm]) -> str:
    """`predict` gives the logits of `learn` (where it takes as many inner steps) and keeps no graph."""
    algorithm, episodes = tiny_algorithm(method), tiny_episodes()
    logits = algorithm.predict(episodes)
    if logits.requires_grad:
        return "the logits of predict() carry a graph; wrap it in torch.no_grad() or detach them"
    if getattr(algorithm.settings, "evaluation_steps", None) is not None:
        return ""
    return _compare("logits", trace(algorithm, episodes).query_logits, logits)


def ignores_query_labels(method: type[Algorithm]) -> str:
    """Does not read the query labels before it predicts."""
    algorithm, episodes = tiny_algorithm(method), tiny_episodes()
    relabelled = replace(episodes, query_y=(episodes.query_y + 1) % episodes.ways)
    for name, run in (("learn", lambda e: trace(algorithm, e).query_logits), ("predict", algorithm.predict)):
        if _compare("logits", run(episodes), run(relabelled)):
            return f"the logits of {name}() change with the query labels: they are read before predicting"
    return ""


def ignores_order(method: type[Algorithm]) -> str:
    """Does not depend on the order of support or query images."""
    algorithm, episodes = tiny_algorithm(method), tiny_episodes()
    generator = torch.Generator().manual_seed(0)
    support = torch.randperm(episodes.support_y.shape[1], generator=generator)
    query = torch.randperm(episodes.query_y.shape[1], generator=generator)
    shuffled = replace(
        episodes,
        support_x=episodes.support_x[:, support],
        support_y=episodes.support_y[:, support],
        query_x=episodes.query_x[:, query],
        query_y=episodes.query_y[:, query],
    )
    return _compare("logits in another order", algorithm.predict(episodes)[:, query], algorithm.predict(shuffled))


def adapts_what_it_declares(method: type[Algorithm]) -> str:
    """The tensors that move in the inner loop are those of the roles it declares."""
    algorithm = tiny_algorithm(method)
    if not isinstance(algorithm, InnerLoop):
        return ""
    roles, declared = algorithm.backbone.roles(), algorithm.adapts()
    adapted = trace(algorithm, tiny_episodes()).adapted
    moved = set()
    tensors = [*algorithm.backbone.named_parameters(), *algorithm.backbone.named_buffers()]  # contexts are buffers
    for name, tensor in tensors:
        if name in adapted and not torch.equal(adapted[name], tensor.detach().expand_as(adapted[name])):
            moved.add(roles[name])
    if extra := moved - declared:
        return f"moves the {', '.join(sorted(extra))} while declaring that only {', '.join(sorted(declared))} adapts"
    if idle := declared - moved:
        return f"declares that the {', '.join(sorted(idle))} adapts, but none of it moves"
    return ""


def meta_gradient_is_exact(method: type[Algorithm]) -> str:
    """The meta-gradient agrees with finite differences (unless the method declares what it holds constant)."""
    if method.stops_gradient:
        return ""
    algorithm, episodes = tiny_algorithm(method), tiny_episodes(tasks=1)
    gradients = trace(algorithm, episodes).meta_gradients
    generator, step = torch.Generator().manual_seed(0), 1e-6
    for name, parameter in algorithm.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        direction /= direction.norm()
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
            losses.append(algorithm.learn(episodes).losses.mean().detach())
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * step)
        numeric = (losses[0] - losses[1]) / (2 * step)
        gradient = gradients[name]
        exact = torch.zeros(()) if gradient is None else (gradient * direction).sum()
        if abs(numeric - exact) > 1e-6 * max(1.0, abs(float(numeric))):
            return f"along {name} the meta-gradient is {float(exact):.8f}, by finite differences {float(numeric):.8f}"
    return ""


def first_order_is_an_approximation(method: type[Algorithm]) -> str:
    """First order gives the same losses and logits as second order."""
    algorithm, episodes = tiny_algorithm(method), tiny_episodes()
    second, first = trace(algorithm, episodes), trace(algorithm, episodes, second_order=False)
    return _compare("losses", second.query_losses, first.query_losses) or _compare(
        "logits", second.query_logits, first.query_logits
    )


def every_parameter_learns(method: type[Algorithm]) -> str:
    """A meta-gradient reaches every meta-parameter but those it declares inert, whose meta-gradient is zero."""
    algorithm, generator = tiny_algorithm(method), torch.Generator().manual_seed(0)
    with torch.no_grad():  # at initial values, a layer of zeros holds back the gradient of those in front of it
        for parameter in algorithm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.01)
    gradients = trace(algorithm, tiny_episodes()).meta_gradients
    missing = [
        name for name, gradient in gradients.items() if gradient is None or not (gradient.any() or name in method.inert)
    ]
    if missing:
        return f"no meta-gradient reaches {', '.join(missing)}"
    lively = [name for name in method.inert if gradients[name].abs().max() > TOLERANCE]  # type: ignore[union-attr]
    return f"declares {', '.join(lively)} inert, but a meta-gradient reaches it" if lively else ""


def transduction_is_declared(method: type[Algorithm]) -> str:
    """`transductive` says whether a query prediction depends on the other query images."""
    algorithm, episodes = tiny_algorithm(method), tiny_episodes()
    other = replace(episodes, query_x=torch.cat([episodes.query_x[:, :1], episodes.query_x[:, 1:] * 2 + 1], dim=1))
    depends = bool(_compare("", algorithm.predict(episodes)[:, 0], algorithm.predict(other)[:, 0]))
    if depends == method.transductive:
        return ""
    return f"declares transductive = {method.transductive}, but a prediction {'does' if depends else 'does not'} depend"


CHECKS: tuple[Check, ...] = (
    declares_itself,
    tasks_do_not_mix,
    keeps_no_state,
    predicts_what_it_learns,
    ignores_query_labels,
    ignores_order,
    adapts_what_it_declares,
    meta_gradient_is_exact,
    first_order_is_an_approximation,
    every_parameter_learns,
    transduction_is_declared,
)


def _compare(what: str, expected: Tensor, found: Tensor) -> str:
    if expected.shape != found.shape:
        return f"{what}: shapes {tuple(expected.shape)} and {tuple(found.shape)} differ"
    difference = (expected - found).abs().max().item()
    return "" if difference <= TOLERANCE else f"{what} differ by {difference:.2e}"


__all__ = ["CHECKS", "Finding", "Trace", "check"]
