"""Read a run configuration: the JSON file, overrides, and error messages that say how to fix the file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from elc_bert.config.optimizer import LambParams, ScheduleParams
from elc_bert.config.resolve import problems, resolve
from elc_bert.config.schema import RunConfig
from elc_bert.config.secrets import shown
from elc_bert.utils.errors import UserError
from elc_bert.utils.text import did_you_mean

PARAMS: dict[tuple[str, ...], type[BaseModel]] = {
    ("optimizer", "params"): LambParams,
    ("scheduler", "params"): ScheduleParams,
}
"""Classes of the ``params`` of this project's optimizer and schedules; others are DeepSpeed's."""


def load_config(path: Path, overrides: Iterable[str] = (), of_finished_run: bool = False) -> RunConfig:
    """Read a run configuration, apply overrides and check it.

    Args:
        path: JSON file.
        overrides: Overrides of the form ``key.path=value``; the value is JSON, or a string if it is not valid
            JSON.
        of_finished_run: True for the ``config.json`` of a run, which may be of an earlier version of this
            project. DeepSpeed's keys are then not checked.

    Raises:
        UserError: The file is missing or malformed, or a key is unknown, out of range or without effect.
    """
    content = _read_json(path)
    for override in overrides:
        _apply_override(content, override)
    content = resolve(content, of_earlier_version=of_finished_run)
    found = [] if of_finished_run else list(problems(content, _FIELDS))
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        # What ``problems`` has found in DeepSpeed's sections is not repeated.
        of_deepspeed = found and {each["loc"][0] for each in error.errors()}.isdisjoint(_FIELDS)
        if not of_deepspeed:
            found.append(describe(error, RunConfig))
    if found:
        raise UserError(f"{path}: {'; '.join(found)}")
    config._file = path
    return config


def describe(error: ValidationError, root: type[BaseModel], prefix: str = "") -> str:
    """Describe all problems of a validation in one line, each with its key.

    Args:
        error: Error raised by ``root``.
        root: Class of the validated section, from which the nearest valid key is found for an unknown one.
        prefix: Key of that section in the file.
    """
    return "; ".join(_describe_one(dict(problem), root, prefix) for problem in error.errors())


def _describe_one(problem: dict[str, Any], root: type[BaseModel], prefix: str) -> str:
    location = problem["loc"]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    key = "".join([prefix, *parts, problem.get("ctx", {}).get("within", "")]).removeprefix(".")
    if problem["type"] == "extra_forbidden":
        names = [part for part in location if isinstance(part, str)]
        return f"unknown key {key}{did_you_mean(names[-1], _fields_at(root, names[:-1]))}"
    if problem["type"] == "missing":
        return f"missing key {key}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {shown(key, problem['input'])}: {message[0].lower()}{message[1:]}"


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the valid keys of the section at ``location`` below ``model``."""
    if tuple(location) in PARAMS:
        return list(PARAMS[tuple(location)].model_fields)
    for part in location:
        field = model.model_fields.get(part)
        candidates = [] if field is None else [field.annotation, *get_args(field.annotation)]
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)


def _field_names(model: type[BaseModel]) -> dict[str, Any]:
    """Return the keys of a section and of the sections in it, as nested dictionaries."""
    return {
        name: _field_names(field.annotation)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        else {}
        for name, field in model.model_fields.items()
    }


_FIELDS = _field_names(RunConfig)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file; see ds_configs/ for examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}; fix it there"
        ) from None
    except _DuplicateKeyError as error:
        raise UserError(f"{path}: key {error} is given twice; remove one") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must contain a JSON object, not a {type(content).__name__}")
    return content


class _DuplicateKeyError(Exception):
    """A key that occurs twice in one JSON object; Python's parser would silently keep the last value."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _DuplicateKeyError(key)
    return dict(pairs)


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override}: write it as key.path=value")
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError:
        value = text
    except _DuplicateKeyError as error:
        raise UserError(f"--set {override}: key {error} is given twice; remove one") from None
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UserError(f"--set {override}: {parent} is a value, not a section; remove what follows it")
    section[last] = value
