"""Which runs a fair comparison needs: the same sweep of learning rates for every method, then seeds at the best."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sinelr_lightning.errors import UserError

__all__ = ["Case", "Plan", "Run", "parsed_floats", "parsed_ints"]


@dataclass(frozen=True)
class Case:
    """One method at one rank; a method without ranks, such as Dense, has None.

    Attributes:
        method: a class of layers, and its arguments after colons: SineLowRank:balanced=true.
        beside: the rank of the first method beside which it stands in the verdicts, where that is another one.
    """

    method: str
    rank: int | None
    beside: int | None = None

    @property
    def group(self) -> int | None:
        """Cases of one number are compared with each other; None stands beside all."""
        return self.rank if self.beside is None else self.beside

    def options(self, where: str) -> list[str]:
        """Options of `sinelr fit` that put these layers where the setting takes them."""
        name, *arguments = self.method.split(":")
        rank = [] if self.rank is None else [f"rank={self.rank}"]
        return [f"--{where}={name}", *(f"--{where}.{argument}" for argument in [*arguments, *rank])]

    def __str__(self) -> str:
        return self.method if self.rank is None else f"{self.method} k={self.rank}"


@dataclass(frozen=True)
class Run:
    """One training."""

    case: Case
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder: SineLowRank_k5_lr0.01_seed0."""
        rank = "" if self.case.rank is None else f"_k{self.case.rank}"
        method = re.sub(r"[^\w.]", "_", self.case.method)
        return f"{method}{rank}_lr{self.lr:g}_seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        cases: methods at their ranks.
        lrs: learning rates that every case is trained at with the first seed, rising.
        seeds: with all of them each case is trained at its best rate.
        metric: what is compared, as the run's validation logs it.
        mode: "max" where more is better, else "min".
        config: YAML file of the runs.
        digest: of what the file holds, so that runs of an edited one are not put beside those before.
        where, where_lr: the settings that take the layers and the learning rate.
        steps, seconds: budget of a run; the configuration's steps if both are None.
        options: more options of `sinelr fit`.
    """

    cases: tuple[Case, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    metric: str
    mode: str
    config: str
    where: str = "model.linear"
    where_lr: str = "model.optimizer.lr"
    steps: int | None = None
    seconds: int | None = None
    options: str = ""
    digest: str = ""

    @property
    def budget(self) -> str:
        """In words."""
        if self.steps is not None:
            return f"{self.steps:,} steps"
        return "the configuration's steps" if self.seconds is None else f"{self.seconds:,} seconds"

    def describe(self) -> dict:
        """As plain values, to compare one plan with another."""
        return asdict(self)

    def wanted(self, results: Mapping[str, float | None]) -> list[Run]:
        """The runs to do, as far as `results` (run name → value, None for one that died) decides them.

        Cases that come to one method at one rank, as those of equal parameters may, share their runs.
        """
        runs = [Run(case, lr, self.seeds[0]) for case in self.cases for lr in self.lrs]
        for case in self.cases:
            best = self.best_lr(case, results)
            if best is not None:
                runs += [Run(case, best, seed) for seed in self.seeds[1:]]
        return list({run.name: run for run in runs}.values())

    def total(self) -> int:
        """Number of runs of the whole comparison."""
        return len({str(case) for case in self.cases}) * (len(self.lrs) + len(self.seeds) - 1)

    def best_lr(self, case: Case, results: Mapping[str, float | None]) -> float | None:
        """The rate of this case's best run with the first seed; None while one of them is missing."""
        runs = [Run(case, lr, self.seeds[0]) for lr in self.lrs]
        if any(run.name not in results for run in runs):
            return None
        return max(runs, key=lambda run: (self._goodness(results[run.name]), -run.lr)).lr

    def values(self, case: Case, results: Mapping[str, float | None]) -> list[float | None]:
        """What its runs at the best rate came to, seed by seed, as far as they are there."""
        best = self.best_lr(case, results)
        if best is None:
            return []
        names = [Run(case, best, seed).name for seed in self.seeds]
        return [results[name] for name in names if name in results]

    def _goodness(self, value: float | None) -> float:
        if value is None or not math.isfinite(value):
            return -math.inf
        return value if self.mode == "max" else -value


def parsed_ints(text: str, what: str, least: int = 1) -> tuple[int, ...]:
    """Whole numbers apart by commas: "1,5,10".

    Raises:
        UserError: it is something else, or one is below `least` or there twice.
    """
    try:
        numbers = tuple(int(part) for part in str(text).split(","))
    except ValueError:
        raise UserError(f"{what} {text!r}: give whole numbers apart by commas, as in 1,5,10") from None
    return _checked(numbers, what, least)


def parsed_floats(text: str, what: str) -> tuple[float, ...]:
    """Positive numbers apart by commas: "1e-3,3e-3".

    Raises:
        UserError: it is something else, or one is there twice, or two differ in no digit that names a run.
    """
    try:
        numbers = tuple(float(part) for part in str(text).split(","))
    except ValueError:
        raise UserError(f"{what} {text!r}: give numbers apart by commas, as in 1e-3,3e-3,1e-2") from None
    if any(not (number > 0 and math.isfinite(number)) for number in numbers):
        raise UserError(f"{what} {text!r}: all must be positive")
    numbers = _checked(numbers, what, 0)
    if len({f"{number:g}" for number in numbers}) < len(numbers):
        raise UserError(f"{what} {text!r}: two are the same to six digits, by which runs are named")
    return tuple(sorted(numbers))


def _checked(numbers: Sequence, what: str, least: int) -> tuple:
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{what} has one twice: {', '.join(f'{number:g}' for number in numbers)}")
    if min(numbers) < least:
        raise UserError(f"{what}: {min(numbers)} is below {least}")
    return tuple(numbers)
