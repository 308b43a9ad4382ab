"""Meta-GNA: give the gradient of every support sample a norm that a network, the Arbiter, reads off the old one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from metazoo import Episodes, TaskBatch
from metazoo.algorithms.maml import MAML

EPSILON = 1e-12
"""The least norm, so that a sample without a gradient has a direction (none) and derivatives."""


class MetaGNA(MAML):
    name = "metagna"
    title = "Meta-GNA"
    paper = (
        "Lim, Cha, Kong, Shyn, Kim: Meta-learning with gradient norm arbitration for sample-aware few-shot learning. "
        "Knowledge-Based Systems, 2025."
    )
    stops_gradient = "the norms that the Arbiter reads"
    deviations = (
        "Only the paper's abstract and highlights were readable. That gradients are normalised and scaled anew by a "
        "learned Arbiter, which reads gradient norms and weight norms, is theirs; that each sample and tensor has a "
        "norm of its own, the form of inputs and outputs and all sizes are our reading, with switches for others.",
        "A working repository of the first author normalises the gradient of the whole support set, and its Arbiter "
        "reads standardised norms and gives the new norm itself: `per_sample: false, inputs: standardised, scale: "
        "absolute`. Which version of it made the paper's numbers is not known.",
        "A convolution's bias in front of batch norm has a gradient of exactly zero, whose direction would be rounding "
        "noise; it is left out of the inner loop, which changes no result.",
    )

    class Settings(MAML.Settings):
        per_sample: bool = True
        """Normalise each sample's gradient; off, the gradient of the support set's mean loss."""
        per_tensor: bool = True
        """A norm and a scale for each tensor; off, one for the whole network."""
        inputs: Literal["log", "raw", "ratio", "standardised"] = "log"
        """What the Arbiter reads of gradient and weight norms: their logarithms, themselves, the logarithms of weight
        norm to gradient norm, or themselves with mean 0 and deviation 1 over all of them."""
        scale: Literal["relative", "absolute"] = "relative"
        """`relative`: its output, 1 at first, times the mean norm over the task's samples; `absolute`: its output."""
        detach_norms: bool = True
        """Hold the norms that the Arbiter reads, and the mean norm, constant in the meta-gradient."""

    settings: Settings

    def build(self) -> None:
        super().build()
        for path, module in self.backbone.named_modules():
            if isinstance(module, nn.Conv2d):
                self.rates.pop(f"{path}.bias", None)
        scales = len(self.rates) if self.settings.per_tensor else 1
        inputs = scales if self.settings.inputs == "ratio" else 2 * scales
        last = nn.Linear(2 * scales, scales)
        if self.settings.scale == "relative":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.arbiter = nn.Sequential(nn.Linear(inputs, 2 * scales), nn.ReLU(), last, nn.Softplus())

    def adapted_names(self) -> list[str]:
        return list(self.rates)

    def step(self, tasks: TaskBatch, step: int) -> None:
        """Descend along the mean over samples of unit gradient times scale."""
        if self.settings.per_sample:
            gradients = tasks.example_gradients()[1]
        else:
            gradients = {name: g.unsqueeze(1) for name, g in tasks.gradients(tasks.support_loss()).items()}
        factors = self.factors(gradients, tasks.weights)
        tasks.update(
            {
                name: -self.rates[name] * torch.einsum("tm,tm...->t...", factor, gradients[name]) / factor.shape[1]
                for name, factor in zip(self.rates, factors.unbind(dim=2), strict=True)
            }
        )

    def factors(self, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """What each sample's gradients `[T, M, ...]` are multiplied by, for each tensor: scale / norm, `[T, M, L]`."""
        if not self.settings.per_sample:
            gradients = {name: gradient.mean(dim=1, keepdim=True) for name, gradient in gradients.items()}
        norms = self.norms([gradients[name].flatten(2) for name in self.rates])
        sizes = self.norms([weights[name].flatten(1).unsqueeze(1) for name in self.rates])
        read = (norms.detach(), sizes.detach()) if self.settings.detach_norms else (norms, sizes)
        return (self.scales(*read) / norms).expand(-1, -1, len(self.rates))

    def norms(self, tensors: Iterable[Tensor]) -> Tensor:
        """The norms of tensors `[T, M, D]`, `[T, M, L]`; of all of them together `[T, M, 1]`."""
        squares = torch.stack([tensor.square().sum(dim=2) for tensor in tensors], dim=2)
        if not self.settings.per_tensor:
            squares = squares.sum(dim=2, keepdim=True)
        return (squares + EPSILON**2).sqrt()

    def scales(self, norms: Tensor, sizes: Tensor) -> Tensor:
        """The Arbiter: new norms `[T, M, L]` from those of the gradients and of the weights (`[T, 1, L]`)."""
        both = torch.cat([norms, sizes.expand_as(norms)], dim=2)
        match self.settings.inputs:
            case "log":
                both = (both + EPSILON).log()
            case "ratio":
                both = (sizes + EPSILON).log() - (norms + EPSILON).log()
            case "standardised":
                deviation = both.std(dim=2, keepdim=True)
                both = (both - both.mean(dim=2, keepdim=True)) / (deviation + EPSILON)
        outputs = self.arbiter(both)
        if self.settings.scale == "absolute":
            return outputs
        return outputs / math.log(2) * norms.mean(dim=1, keepdim=True)

    def diagnose(self, episodes: Episodes) -> dict[str, Tensor]:
        """How unevenly the samples of each task's support set count, `[T]` each.

        `loss_sd` and `loss_ratio`, standard deviation and largest to smallest of the samples' losses, `_before` and
        `_after` adaptation. `gradient_norm` of the mean gradient at the first step and `quartile_share`, the part of it
        that comes from the quarter of samples of highest loss (their gradients' projection on it; all samples' parts
        sum to 1); `_maml` with the plain gradients, `_metagna` with the scaled ones.
        """
        tasks = TaskBatch(self._learner[0], episodes, track=False)
        with torch.enable_grad():
            before, gradients = tasks.example_gradients()
            factors = self.factors(gradients, tasks.weights)
            for step in range(self.settings.evaluation_steps or self.settings.inner_steps):
                self.step(tasks, step)
            after, _ = tasks.example_gradients()
        found = {}
        for when, losses in (("before", before.detach()), ("after", after.detach())):
            found[f"loss_sd_{when}"] = losses.std(dim=1)
            found[f"loss_ratio_{when}"] = losses.amax(dim=1) / losses.amin(dim=1)
        highest = before.topk(math.ceil(before.shape[1] / 4), dim=1).indices
        for what, scaling in (("maml", torch.ones_like(factors)), ("metagna", factors.detach())):
            named = zip(self.rates, scaling.unbind(dim=2), strict=True)
            parts = torch.cat([factor.unsqueeze(2) * gradients[name].flatten(2) for name, factor in named], dim=2)
            mean = parts.mean(dim=1)
            along = torch.einsum("tmd,td->tm", parts, mean) / parts.shape[1]
            found[f"gradient_norm_{what}"] = mean.norm(dim=1)
            found[f"quartile_share_{what}"] = along.gather(1, highest).sum(dim=1) / mean.square().sum(dim=1)
        return found
