"""What a task asks for: class labels, scored by cross-entropy, or numbers, scored by their squared error.

Which of the two it is shows in the targets: integers are labels, floating-point numbers are values to be hit.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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
