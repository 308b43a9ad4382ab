"""What one run is: the resolved configuration of one training, and the identity that names its folder."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
)

import metazoo
from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.augmentation import Augmentation
from metazoo.backbones import Conv4, Mlp, ResNet12
from metazoo.precision import Precision
from metazoo.schema import Strict, parse

Normalisation = Literal["none", "imagenet", "source", "per_data_set"]

BackboneSettings = Annotated[Conv4.Settings | ResNet12.Settings | Mlp.Settings, Field(discriminator="name")]


class TrainingSettings(Strict):
    """The outer loop. The defaults are those of the CxGrad repository's miniImageNet runs."""

    epochs: PositiveInt = 100
    iterations_per_epoch: PositiveInt = 500
    meta_batch: PositiveInt = 4
    """Tasks per outer update."""
    outer_lr: PositiveFloat = 1e-3
    """Adam's learning rate."""
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    """`cosine` anneals the outer rate once an epoch, from `outer_lr` to `min_outer_lr`; `steps` multiplies it by
    `decay` after each of the `milestones`."""
    min_outer_lr: NonNegativeFloat = 0.0
    decay: PositiveFloat = 0.5
    milestones: tuple[PositiveInt, ...] = ()
    """Finished epochs after which the outer rate decays."""
    first_order_epochs: NonNegativeInt = 0
    """Epochs at the start whose meta-gradient ignores second derivatives."""
    gradient_clamp: PositiveFloat | None = None
    """Element-wise bound on the meta-gradient, none by default."""
    reduction: Literal["mean", "sum"] = "mean"
    """How the meta-losses of a meta-batch's tasks become one."""
    validation_episodes: Annotated[int, Field(ge=2)] = 600
    """At least two: their accuracy is logged with its interval."""
    keep: PositiveInt = 5
    """How many of the best checkpoints (by validation accuracy) are kept, which is also the size of the ensemble."""
    ways: PositiveInt | None = None
    """Ways of the training episodes where they are not those of validation and test; for methods that allow it."""
    legacy_restart_every: PositiveInt | None = None
    """Iterations after which Adam is made anew, as BOIL's and CML's official code does every 100."""
    precision: Precision = "float32"
    """What convolutions multiply in, here and in evaluation; the others are faster where the processor has them."""
    augmentation: Augmentation | None = None
    """What is done to training images; to those of validation and test nothing ever is."""

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A training is written as before there was augmentation or a precision, so that its run keeps its name."""
        values: dict[str, Any] = write(self)
        off = {"augmentation": None, "precision": "float32"}
        return {key: value for key, value in values.items() if key not in off or value != off[key]}


class RunConfig(Strict):
    """One training, completely: two runs with equal configs, data and code are the same run."""

    algorithm: str
    settings: dict[str, Any] = {}
    """The method's hyper-parameters; those not named take the method's defaults."""
    source: str
    """The data set trained on."""
    size: PositiveInt | None = None
    """Image side in pixels; the data set's own size by default, none where there are no images."""
    normalisation: Normalisation = "none"
    """`none` leaves pixels in [0, 1]; `source` standardises with the source's training split, also on other targets;
    `per_data_set` each data set with what its fact sheet lays down, which is how CxGrad's data loader does it."""
    ways: PositiveInt = 5
    shots: PositiveInt = 1
    queries: PositiveInt = 15
    """Query images per class."""
    backbone: BackboneSettings = Conv4.Settings()
    training: TrainingSettings = TrainingSettings()
    seed: NonNegativeInt = 0


def resolve(config: RunConfig, default_size: int | None) -> RunConfig:
    """The same config with every default written out, so that what is stored says all; refuses unknown settings."""
    method = registry.algorithm(config.algorithm)
    settings = parse(method.Settings, config.settings, f"settings of {config.algorithm}")
    return config.model_copy(update={"settings": settings.model_dump(mode="json"), "size": config.size or default_size})


def identity(config: RunConfig | Mapping[str, Any], data: str, code: str) -> str:
    """Twelve hex digits of the SHA-256 over the resolved config, the data manifest's identity and the code version.

    A config that was stored counts as it was written: the settings that configs have gained since are not in it.
    """
    values = config.model_dump(mode="json") if isinstance(config, RunConfig) else dict(config)
    text = json.dumps([values, data, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_name(config: RunConfig, data: str, code: str) -> str:
    """The name of a run's folder, readable first and unique last: `maml-glyphs-5w1s-s0-0123456789ab`."""
    episode = f"{config.ways}w{config.shots}s"
    return f"{config.algorithm}-{config.source}-{episode}-s{config.seed}-{identity(config, data, code)}"


def code_version(config: RunConfig) -> str:
    """The package's version and a digest of the plugin files that the method of a config is written in."""
    digest = hashlib.sha256()
    for source in sorted(_plugin_files(config)):
        digest.update(source.read_bytes())
    return f"{metazoo.__version__}+{digest.hexdigest()[:12]}"


def _plugin_files(config: RunConfig) -> set[Path]:
    harness = Path(metazoo.__file__).parent
    method = registry.algorithm(config.algorithm)
    used = method.written_in(parse(method.Settings, config.settings, f"settings of {config.algorithm}"))
    classes = {cls for each in used for cls in each.__mro__ if issubclass(cls, Algorithm)}
    return {file for cls in classes if (file := Path(inspect.getfile(cls))).parent != harness}


def describe(config: RunConfig) -> Mapping[str, Any]:
    """The config as plain JSON values, as it is written to disk and into records."""
    return config.model_dump(mode="json")
