"""What a task asks for: class labels, scored by cross-entropy, or numbers, scored by their squared error.

Which of the two it is shows in the targets: integers are labels, floating-point numbers are values to be hit.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from metazoo.errors import Incompatible


def example_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of every example, `[T, n]`.

    Cross-entropy of logits `[T, n, N]` for labels `[T, n]`; squared error, averaged over the D outputs, of predictions
    `[T, n, D]` for values `[T, n, D]`.
    """
    if targets.dtype.is_floating_point:
        return (outputs - targets).square().mean(dim=-1)
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def task_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each task's mean loss over its examples, `[T]`."""
    return example_losses(outputs, targets).mean(dim=1)


def scores(outputs: Tensor, targets: Tensor) -> Tensor:
    """What an episode is scored by, `[T]`: the number of correct predictions (int64), or the mean squared error."""
    if targets.dtype.is_floating_point:
        return task_losses(outputs, targets)
    return (outputs.argmax(dim=-1) == targets).sum(dim=-1)


def class_sums(values: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Sums `[T, N, ...]` of the values `[T, n, ...]` of each class's examples, given labels `[T, n]`.

    Raises Incompatible for targets that are no labels.
    """
    return (_members(labels, ways).to(values.dtype).mT @ values.flatten(2)).unflatten(2, values.shape[2:])


def class_means(values: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Means `[T, N, ...]` of the values `[T, n, ...]` of each class's examples, given labels `[T, n]`.

    Raises Incompatible for targets that are no labels.
    """
    counts = _members(labels, ways).sum(dim=1)
    return class_sums(values, labels, ways) / counts.view(*counts.shape, *[1] * (values.dim() - 2))


def _members(labels: Tensor, ways: int) -> Tensor:
    if labels.dtype.is_floating_point:
        raise Incompatible("This method tells classes apart, and these tasks ask for numbers.")
    return F.one_hot(labels, ways)
