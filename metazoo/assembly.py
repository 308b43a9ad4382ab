"""Putting together what a config names: the method on its backbone."""

from __future__ import annotations

import torch

from metazoo import backbones, registry
from metazoo.algorithm import Algorithm
from metazoo.config import RunConfig
from metazoo.data.inputs import Inputs
from metazoo.errors import Incompatible


def build(config: RunConfig, inputs: Inputs) -> Algorithm:
    """The method of a resolved config for a network that is fed `inputs`, freshly initialised from its seed.

    The backbone comes first from the generator, so all methods of one seed begin with the same weights.
    Raises Incompatible where method and backbone cannot work together, UserError where backbone and inputs cannot.
    """
    method = registry.algorithm(config.algorithm)
    if method.fixed_ways and config.training.ways not in (None, config.ways):
        raise Incompatible(
            f"{method.title} has one output a class, so it cannot train with {config.training.ways} ways and be tested "
            f"with {config.ways}; leave training.ways out."
        )
    torch.manual_seed(config.seed)
    backbone = backbones.create(config.backbone, inputs.shape(config.size), config.ways)
    model = registry.create(config.algorithm, backbone, config.settings)
    backbone.compute_in(config.training.precision)
    return model
