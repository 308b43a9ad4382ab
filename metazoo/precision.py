"""What convolutions multiply in: a part of a run, because it changes what is computed.

In `float32` everything is IEEE single precision. That includes GPUs: torch lets NVIDIA's convolutions round their
inputs to TF32's ten bits of fraction unless it is told otherwise. In `tf32` convolutions and matrix products may do so,
on GPUs that can. In `bfloat16` the maps of a Conv4 are kept in it and its convolutions multiply in it, or on a CPU
more exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch

from metazoo.errors import UserError

Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]

FIRST_WITH_TF32 = (8, 0)
"""The compute capability from which NVIDIA's GPUs have TF32."""


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies in TF32."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= FIRST_WITH_TF32
    )


def check_trainable(precision: Precision, device: torch.device) -> None:
    """Raise UserError where a run of this precision cannot be trained on the device."""
    if precision == "tf32" and not has_tf32(device):
        raise UserError(
            f"tf32 is an arithmetic of NVIDIA's GPUs from compute capability {FIRST_WITH_TF32[0]}.{FIRST_WITH_TF32[1]} "
            f"on, which {device} has not; train with --precision float32 or bfloat16, or on such a GPU."
        )


def stand_in(precision: Precision, device: torch.device) -> str:
    """What is said where a finished run is evaluated in another precision than it asks for; empty where it is not."""
    if precision == "tf32" and not has_tf32(device):
        return f"This run was trained in tf32, which {device} has not; it is evaluated in float32."
    return ""


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """While the block runs, float32 convolutions, LSTMs and matrix products of the process multiply on GPUs as asked.

    And convolutions add up in the same order every time: second derivatives through several inner steps make much of
    one rounding, and a pass that differs from itself could neither be repeated nor be held against its recording. The
    switches are torch's own, which hold for the whole process; they are put back at the end. On a CPU there is nothing
    to switch.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    switches = cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    was_deterministic = cudnn.deterministic
    try:
        cudnn.deterministic = True
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        cudnn.deterministic = was_deterministic
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
