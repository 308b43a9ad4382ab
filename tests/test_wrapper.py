"""Methods around other methods: settings, code, parameters, checkpoints and suites of one that has a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from tiny import tiny_sets  # noqa: F401

from metazoo import registry, training
from metazoo.algorithms.cml import CML
from metazoo.algorithms.mgaug import MGAug
from metazoo.assembly import build
from metazoo.backbones import Conv4
from metazoo.config import RunConfig, code_version, identity, resolve
from metazoo.domains import open_domain
from metazoo.errors import UserError
from metazoo.evaluation import evaluate
from metazoo.leaderboard import suite as suites
from metazoo.testing import tiny_algorithm, tiny_episodes
from metazoo.wrapper import Wrapper

PLUGIN = """
from metazoo import Episodes, OuterStep, Wrapper
from metazoo.algorithms.boil import BOIL


class Mine(BOIL):
    name, title, paper = "mine", "Mine", "None."

    class Settings(BOIL.Settings):
        spice: float = 1.0


class Around(Wrapper):
    name, title, paper = "around", "Around", "None."

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()):
        return self.base.learn(episodes, outer)
"""


@pytest.fixture(autouse=True)
def fresh_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    catalogue = registry.Catalogue()
    catalogue.discover()
    monkeypatch.setattr(registry, "_catalogue", lambda: catalogue)


def resolved(**changes: Any) -> RunConfig:
    return resolve(tiny.config(**changes), tiny.SIZE)


def defaults(name: str) -> dict[str, Any]:
    return registry.algorithm(name).Settings().model_dump(mode="json")


# Settings


def test_the_bases_settings_are_written_out() -> None:
    settings = resolved(algorithm="cml", settings={"base": "boil", "base_settings": {"inner_steps": 2}}).settings
    assert settings["base_settings"] == defaults("boil") | {"inner_steps": 2}
    assert settings["gamma"] == 1.0
    again = resolved(algorithm="cml", settings=settings).settings
    assert again == settings
    assert resolved(algorithm="cml", settings={}).settings["base_settings"] == defaults("maml")


def test_a_wrapper_around_a_wrapper() -> None:
    own = {"base": "cml", "base_settings": {"base": "anil", "base_settings": {"inner_steps": 1}}}
    settings = resolved(algorithm="mgaug", settings=own).settings
    assert settings["base_settings"]["gamma"] == 1.0
    assert settings["base_settings"]["base_settings"]["inner_lr"] == {"head": 0.01}
    algorithm = tiny_algorithm(MGAug, MGAug.Settings.model_validate(settings))
    assert algorithm.learn(tiny_episodes()).losses.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base": "mmal"}, "no method called 'mmal'; did you mean 'maml'"),
        ({"base_settings": {"inner_step": 3}}, r"base_settings \(maml\): unknown key 'inner_step'; did you mean"),
        ({"base": "boil", "base_settings": {"inner_lr": {"bodi": 1}}}, r"base_settings \(boil\): 'inner_lr.bodi"),
        ({"base": "anil", "base_settings": {"inner_steps": 0}}, r"base_settings \(anil\): 'inner_steps': .* greater"),
        ({"base_settings": 3}, "settings of cml: 'base_settings': .* valid dictionary"),
        ({"bas": "boil"}, "settings of cml: unknown key 'bas'; did you mean 'base'"),
        ({"base": "cml", "base_settings": {"base": "mmal"}}, "no method called 'mmal'"),
    ],
)
def test_a_mistake_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolved(algorithm="cml", settings=settings)


def test_another_base_or_setting_of_it_is_another_run() -> None:
    def name(**settings: Any) -> str:
        config = resolved(algorithm="cml", settings=settings)
        return identity(config, "data", code_version(config))

    names = [name(), name(base="boil"), name(base_settings={"inner_steps": 2}), name(gamma=0.5)]
    assert len(set(names)) == 4
    assert name(base="maml", base_settings={"inner_steps": 5}) == names[0]


# Code


def test_the_code_of_a_run_is_that_of_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    registry.load_plugin(file)

    def versions() -> dict[str, str]:
        settings: dict[str, dict[str, Any]] = {
            "around maml": {"algorithm": "around", "settings": {}},
            "cml around mine": {"algorithm": "cml", "settings": {"base": "mine"}},
            "cml around maml": {"algorithm": "cml", "settings": {}},
            "two": {"algorithm": "mgaug", "settings": {"base": "cml", "base_settings": {"base": "mine"}}},
        }
        return {each: code_version(resolved(**keys)) for each, keys in settings.items()}

    before = versions()
    assert len(set(before.values())) == 4
    file.write_text(PLUGIN + "\n")
    after = versions()
    assert {each for each in before if before[each] != after[each]} == {"around maml", "cml around mine", "two"}


def test_written_in_names_the_classes() -> None:
    names = {cls.name for cls in CML.written_in(CML.Settings(base="fomaml"))}
    assert names == {"cml", "fomaml"}
    own = MGAug.Settings(base="cml", base_settings={"base": "anil"})
    assert {cls.name for cls in MGAug.written_in(own)} == {"mgaug", "cml", "anil"}


# Parameters


@pytest.mark.parametrize("base", ["maml", "cxgrad", "mamlpp", "metagna"])
def test_every_parameter_is_there_once(base: str) -> None:
    algorithm = tiny_algorithm(CML, CML.Settings(base=base))
    assert isinstance(algorithm, Wrapper)
    alone = tiny_algorithm(registry.algorithm(base))
    named = [name for name, _ in algorithm.named_parameters()]
    assert len({id(parameter) for parameter in algorithm.parameters()}) == len(named) == len(set(named))
    expected = {name if name.startswith("backbone.") else f"base.{name}" for name, _ in alone.named_parameters()}
    assert {name for name in named if not name.startswith("colearner.")} == expected
    assert algorithm.base.backbone is algorithm.backbone


@pytest.mark.parametrize("base", ["maml", "mamlpp", "l2f"])
def test_the_outer_groups_are_the_bases_and_its_own(base: str) -> None:
    algorithm = tiny_algorithm(CML, CML.Settings(base=base))
    assert isinstance(algorithm, Wrapper)
    groups, alone = algorithm.outer_groups(), algorithm.base.outer_groups()
    assert [group.clamped for group in groups[:-1]] == [group.clamped for group in alone]
    held = [id(parameter) for group in groups for parameter in group.parameters]
    assert len(held) == len(set(held)) and set(held) == {id(parameter) for parameter in algorithm.parameters()}
    bare = tiny_algorithm(MGAug, MGAug.Settings(base=base))
    assert len(bare.outer_groups()) == len(alone)


def test_all_begin_with_the_same_network(tiny_sets: None) -> None:  # noqa: F811
    inputs = open_domain("tiny").inputs

    def body(**changes: Any) -> torch.Tensor:
        algorithm = build(resolved(**changes), inputs)
        return algorithm.backbone.get_parameter("body.block1.conv.weight").detach()

    alone = body(algorithm="maml")
    for name in ("cml", "mgaug"):
        assert torch.equal(body(algorithm=name, settings={}), alone)


# Runs


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cml", {"base": "cxgrad", "base_settings": {"inner_steps": 1, "context_size": 5}}),
        ("mgaug", {"base": "protonet", "networks": 1, "least_kept": 0.5}),
    ],
)
def test_a_run_is_trained_kept_and_evaluated(
    tmp_path: Path,
    name: str,
    settings: dict[str, Any],
    tiny_sets: None,  # noqa: F811
) -> None:
    run = training.train(tiny.config(algorithm=name, settings=settings, epochs=2), home=tmp_path / "runs")
    record = evaluate(run, episodes=5)
    assert record.config["settings"]["base"] == settings["base"]
    index = run.checkpoints.index
    assert index.last is not None
    weights = run.checkpoints.load(index.last)["model"]
    inputs, predictions = open_domain("tiny").inputs, []
    task = tiny_episodes(tasks=1, size=tiny.SIZE)
    for seed in (0, 1):
        algorithm = build(run.config.model_copy(update={"seed": seed}), inputs)
        algorithm.load_state_dict(weights)
        grey = task.support_x.float().mean(dim=2, keepdim=True), task.query_x.float().mean(dim=2, keepdim=True)
        predictions.append(algorithm.predict(type(task)(grey[0], task.support_y, grey[1], task.query_y, 3)))
    assert torch.equal(*predictions)


def test_the_shared_network_is_kept_once(tmp_path: Path) -> None:
    """Its state has the network's tensors by two names, and torch writes them once."""
    algorithm = CML(Conv4((3, 28, 28), 5, Conv4.Settings(filters=32)))
    torch.save(algorithm.state_dict(), tmp_path / "both.pt")
    values = sum(parameter.numel() for parameter in algorithm.parameters())
    assert (tmp_path / "both.pt").stat().st_size < 4 * values + 30_000


def test_a_suite_has_rows_of_a_base(tmp_path: Path) -> None:
    suite: dict[str, Any] = {
        "name": "mine",
        "title": "Mine",
        "protocol": "common",
        "source": "cifar_fs",
        "methods": [
            "boil",
            {"method": "cml", "label": "CML + BOIL", "settings": {"base": "boil"}},
            {"method": "cml", "label": "CML + ANIL", "settings": {"base": "anil", "base_settings": {"inner_steps": 3}}},
            "cml",
        ],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(suite))
    rows = suites.read(path).rows
    assert [row.label for row in rows] == ["BOIL", "CML + BOIL", "CML + ANIL", "CML"]
    configs = [row.config(1, 0) for row in rows]
    assert [config.settings.get("base") for config in configs] == [None, "boil", "anil", "maml"]
    assert configs[2].settings["base_settings"] == defaults("anil") | {"inner_steps": 3}
    assert len({identity(config, "data", code_version(config)) for config in configs}) == 4
    suite["methods"][1]["settings"] = {"base": "boil", "base_settings": {"inner_rate": 1}}
    path.write_text(yaml.safe_dump(suite))
    with pytest.raises(UserError, match=r"base_settings \(boil\): unknown key 'inner_rate'"):
        suites.read(path)
