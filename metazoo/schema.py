"""Strict models for whatever a person writes: an unknown key is an error that names the nearest known one."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from metazoo.errors import UserError


class Strict(BaseModel):
    """A frozen pydantic model that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Validate `values` against `model`; `where` names their origin in the sentence of a UserError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(" ".join(_sentence(model, problem, where) for problem in error.errors()[:3])) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a UserError where there is no file, no YAML in it or no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of keys to values.")
    return values


def _sentence(model: type[BaseModel], problem: Any, where: str) -> str:
    location = [part for part in problem["loc"] if isinstance(part, (str, int))]
    name = ".".join(str(part) for part in location) or "the whole"
    if problem["type"] != "extra_forbidden":
        return f"{where}: '{name}': {problem['msg']} (got {problem['input']!r})."
    known = _fields_at(model, location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "it is not known here."
    return f"{where}: unknown key '{name}'; {hint} Known keys: {', '.join(known)}."


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The field names of the model found by walking down `location` from `model`."""
    candidates: list[Any] = [model]
    for part in location:
        inner = [
            candidate.model_fields[part].annotation
            for candidate in candidates
            if isinstance(part, str) and _is_model(candidate) and part in candidate.model_fields
        ]
        # A position in a list, or the tag of a union, stays at the same models.
        candidates = [leaf for annotation in inner for leaf in _leaves(annotation)] or candidates
    return sorted({field for candidate in candidates if _is_model(candidate) for field in candidate.model_fields})


def _leaves(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    return [leaf for argument in arguments for leaf in _leaves(argument)] if arguments else [annotation]


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values on one level: `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
