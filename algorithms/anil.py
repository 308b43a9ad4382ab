"""ANIL: MAML that adapts the head only; the body is forwarded once per task."""

from __future__ import annotations

from metazoo import Incompatible, Rates, TaskBatch
from metazoo.algorithms.maml import MAML


class ANIL(MAML):
    name = "anil"
    title = "ANIL"
    paper = "Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse? ICLR 2020."
    deviations = (
        "Support and query images are embedded in separate batches, each with its own batch statistics; "
        "`joint_batch_norm: true` embeds them together, as learn2learn does.",
    )

    class Settings(MAML.Settings):
        inner_lr: Rates = {"head": 0.01}
        joint_batch_norm: bool = False
        """Embed a task's support and query images as one batch."""

    settings: Settings

    def build(self) -> None:
        super().build()
        if self.settings.joint_batch_norm and self.adapts() != {"head"}:
            raise Incompatible("joint_batch_norm embeds every image once, so only the head can be adapted with it.")

    def begin(self, tasks: TaskBatch) -> None:
        if self.settings.joint_batch_norm:
            tasks.embed(jointly=True)
