"""Which ranks the layers of a task can have, and at which several methods have as many parameters."""

import contextlib
import io
import json
import logging
import shlex
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import lightning.pytorch as L
from jsonargparse import ArgumentError, ArgumentParser

from sinelr_lightning.commands.messages import one_line
from sinelr_lightning.comparison.plan import Case
from sinelr_lightning.errors import UserError
from sinelr_lightning.tasks.base import Task, size_figures

__all__ = ["check_ranks", "of_equal_parameters"]


class _Misfit(UserError):
    """The task's layers cannot have this rank."""


def check_ranks(cases: tuple[Case, ...], settings: dict[str, Any], where: str, options: str) -> None:
    """Refuse what would be found only when a run's turn comes: each method is built once, at its largest rank.

    A setting beside the model, and options with a configuration of their own, are left to the runs.

    Args:
        cases: what is compared.
        settings, where, options: see `_builder`.

    Raises:
        UserError: the task's layers cannot have that rank, or `where` does not take them.
    """
    if not where.startswith("model.") or any(word.startswith(("--config", "-c")) for word in shlex.split(options)):
        return
    build = _builder(settings, where, options)
    for case in {case.method: case for case in sorted(cases, key=lambda case: case.rank or 0)}.values():
        build(case.method, case.rank)


def of_equal_parameters(
    cases: tuple[Case, ...], settings: dict[str, Any], where: str, options: str
) -> tuple[Case, ...]:
    """The same methods at ranks that give them at most the parameters of the first method.

    Args:
        cases: at the first method's ranks.
        settings, where, options: see `_builder`.

    Raises:
        UserError: a method has more parameters at rank 1, or the first one has no rank or cannot have its own.
    """
    count = _parameter_counter(settings, where, options)
    first = cases[0].method
    if cases[0].rank is None:
        raise UserError(f"equal parameters: {first} has no rank; name a method that has one first in linear")
    made = []
    for case in cases:
        if case.rank is None:
            made.append(case)
            continue
        most = count(first, case.rank)
        if most is None:
            raise UserError(f"{first} cannot have rank {case.rank} here")
        rank = case.rank if case.method == first else _largest_rank(lambda k, m=case.method: count(m, k), most)
        if rank is None:
            raise UserError(f"{case.method} has more parameters at rank 1 than {first} at {case.rank}")
        made.append(Case(case.method, rank, beside=None if rank == case.rank else case.rank))
    return tuple(made)


def _parameter_counter(settings: dict[str, Any], where: str, options: str) -> Callable[[str, int], int | None]:
    """A function that gives how many (trained) parameters the task has with a method at a rank.

    It gives None for a rank that the task's layers cannot have.

    Args:
        settings, where, options: see `_builder`.

    Raises:
        UserError: `where` is no setting of the model; from the function, a method that cannot be read.
    """
    if not where.startswith("model."):
        raise UserError(f"where {where}: equal parameters are counted for settings of the model")
    build = _builder(settings, where, options)

    @cache
    def count(method: str, rank: int) -> int | None:
        try:
            module = build(method, rank)
        except _Misfit:
            return None
        size = module.size() if isinstance(module, Task) else size_figures(module)
        return int(size.get("trained_parameters", size["parameters"]))

    return count


def _builder(settings: dict[str, Any], where: str, options: str) -> Callable[[str, int | None], L.LightningModule]:
    """A function that builds the task with a method at a rank, as a run would.

    It raises a UserError for a method that cannot be read, and `_Misfit` for a rank that the layers cannot have.

    Args:
        settings: the configuration of a `sinelr fit`.
        where: the setting that takes the layers, within the model.
        options: more options of `sinelr fit`; those of the model count.
    """
    chosen = [word for option in shlex.split(options) for word in option.split("=", 1)]
    pairs = [(name, value) for name, value in pairwise(chosen) if name.startswith("--model.")]
    model = {name: value for name, value in settings["model"].items() if name in ("class_path", "init_args")}

    def build(method: str, rank: int | None) -> L.LightningModule:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(L.LightningModule, "model")
        given = [f"--model={json.dumps(model)}", *(f"{name}={value}" for name, value in pairs)]
        named = f"{method} in {where}" if rank is None else f"{method} at rank {rank} in {where}"
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                wanted = parser.parse_args([*given, *Case(method, rank).options(where)])
                logging.disable(logging.INFO)
                return parser.instantiate(wanted).model
        except ArgumentError as error:
            raise UserError(f"{named}: {one_line(str(error))}") from error
        except (UserError, ValueError) as error:
            raise _Misfit(f"{named}: {one_line(str(error))}") from error
        finally:
            logging.disable(logging.NOTSET)

    return build


def _largest_rank(count: Callable[[int], int | None], most: int) -> int | None:
    """The largest rank with at most `most` parameters, which rise with the rank; None if rank 1 has more."""

    def fits(rank: int) -> bool:
        parameters = count(rank)
        return parameters is not None and parameters <= most

    if not fits(1):
        return None
    low, high = 1, 2
    while fits(high):
        if count(high) == count(low):
            return low  # layers that are left as they are: a larger rank changes nothing
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
