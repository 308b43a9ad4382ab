"""MAML: learn an initialisation from which a few gradient steps solve a task."""

from __future__ import annotations

from metazoo import InnerLoop, Rates, Role, TaskBatch


class MAML(InnerLoop):
    name = "maml"
    title = "MAML"
    paper = "Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017."
    deviations = (
        "Batch norm's scale and shift are meta-learned but not adapted, as in the MAML++/L2F/CxGrad code; "
        "`inner_lr: {body: ..., norm: ..., head: ...}` adapts them too.",
    )

    class Settings(InnerLoop.Settings):
        inner_lr: Rates = {"body": 0.01, "head": 0.01}
        """Inner learning rate of each role; a role without one is not adapted."""

    settings: Settings

    def adapts(self) -> set[Role]:
        return {role for role, rate in self.settings.inner_lr.items() if rate}

    def build(self) -> None:
        lr, roles = self.settings.inner_lr, self.backbone.roles()
        self.rates = {name: lr[role] for name, role in roles.items() if role in self.adapts()}

    def step(self, tasks: TaskBatch, step: int) -> None:
        tasks.descend(tasks.support_loss(), self.rates)
