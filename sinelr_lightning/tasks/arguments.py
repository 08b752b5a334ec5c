"""Arguments of a task in plain form: what YAML and a weights-only checkpoint hold, and the command line reads."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from sinelr_lightning.layers import LinearFactory

__all__ = ["class_path", "differing", "kinds", "plain"]


def class_path(cls: type) -> str:
    """Give the importable name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def plain(value: Any, name: str) -> Any:
    """Turn an argument into what YAML and a weights-only checkpoint can hold, and the command line can read back.

    Raises:
        TypeError: the value has no such form; `name` says which argument it is.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in value]
    if is_dataclass(value) and not isinstance(value, LinearFactory | type):
        return plain(asdict(value), name)
    if isinstance(value, LinearFactory):
        return {"class_path": class_path(type(value)), "init_args": _arguments(value, vars(value), name)}
    if callable(value):
        return _plain_optimizer(value, name)
    raise TypeError(
        f"{name}={value!r} cannot be stored in a checkpoint: pass a plain value, a dataclass or a factory"
    )


def _arguments(instance: Any, values: dict[str, Any], name: str) -> dict[str, Any]:
    """Those of `values` that the constructor takes."""
    parameters = inspect.signature(type(instance)).parameters
    return {key: plain(value, f"{name}.{key}") for key, value in values.items() if key in parameters}


def _plain_optimizer(make: Callable[..., Any], name: str) -> dict[str, Any]:
    """Describe an optimiser callable by making one for a single number and reading its settings."""
    try:
        made = make([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}={make!r} cannot be stored in a checkpoint: it makes no optimiser ({error})"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"{name}={make!r} cannot be stored in a checkpoint: it makes no optimiser")
    return {"class_path": class_path(type(made)), "init_args": _arguments(made, made.defaults, name)}


def kinds(arguments: dict[str, Any]) -> dict[str, str]:
    """Classes of the stored arguments that are parts of the model, as `{"linear": "SineLowRank"}`."""
    return {
        name: value["class_path"].rsplit(".", 1)[-1]
        for name, value in arguments.items()
        if isinstance(value, dict) and "class_path" in value and name != "optimizer"
    }


def differing(there: dict[str, Any], here: dict[str, Any]) -> str:
    names = [n for n in here if not n.startswith("_") and n in there and there[n] != here[n] and n != "optimizer"]
    return "".join(f"; the checkpoint has {n} = {there[n]}, the configuration {here[n]}" for n in names[:2])
