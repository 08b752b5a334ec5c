"""What a comparison comes to: a table, plain verdicts, a picture of quality over cost."""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinelr_lightning.comparison.plan import Case, Plan, Run
from sinelr_lightning.files import atomic_path

__all__ = ["Row", "interval", "rows", "verdicts", "write_report"]

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Row:
    """One case at its best learning rate.

    Attributes:
        values: of the metric, one a seed that lived.
        died: number of seeds whose run died.
        low, high: bootstrap interval (95 %) of the mean; equal to it for one seed.
        parameters, share: of the model, and over those of the dense one (None if the run does not say).
        seconds: of training, mean.
    """

    case: Case
    lr: float
    values: tuple[float, ...]
    died: int
    mean: float
    deviation: float
    low: float
    high: float
    parameters: int | None
    share: float | None
    seconds: float | None


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The percentile bootstrap interval (95 %) of a mean, from 10,000 resamples with a fixed seed.

    Efron, Annals of Statistics 7(1), 1979. Of three values it is rough: no statement on a single one.
    """
    if len(values) < 2:
        return (values[0], values[0]) if values else (math.nan, math.nan)
    drawn = np.random.default_rng(0).choice(values, (_RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def difference_interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Welch's t interval (95 %) of the difference of two means, one less the other.

    Welch, Biometrika 34, 1947. A bootstrap of so few values would find a difference between equal methods too often.
    """
    from scipy.stats import t

    gain = statistics.mean(one) - statistics.mean(other)
    squares = [statistics.variance(values) / len(values) for values in (one, other)]  # standard errors', squared
    if not any(squares):
        return gain, gain
    freedom = sum(squares) ** 2 / sum(
        square**2 / (len(values) - 1) for square, values in zip(squares, (one, other), strict=True)
    )
    half = float(t.ppf(0.975, freedom)) * math.sqrt(sum(squares))
    return gain - half, gain + half


def rows(plan: Plan, results: Mapping[str, float | None], details: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """One row for each case that has a best rate, in the order of the plan."""
    found = []
    for case in plan.cases:
        lr = plan.best_lr(case, results)
        if lr is None:
            continue
        every = plan.values(case, results)
        values = tuple(value for value in every if value is not None and math.isfinite(value))
        notes = [details.get(Run(case, lr, seed).name, {}) for seed in plan.seeds]
        seconds = [note["seconds"] for note in notes if note.get("seconds") is not None]
        size = next((note for note in notes if note.get("parameters") is not None), {})
        found.append(
            Row(
                case,
                lr,
                values,
                len(every) - len(values),
                statistics.mean(values) if values else math.nan,
                statistics.stdev(values) if len(values) > 1 else 0.0,
                *interval(values),
                size.get("parameters"),
                size.get("share"),
                statistics.mean(seconds) if seconds else None,
            )
        )
    return found


def verdicts(plan: Plan, table: Sequence[Row]) -> list[str]:
    """One sentence for each later method against the first of its group (a rankless one against each).

    Two methods differ if `difference_interval` leaves out zero.
    """
    lines = []
    first = plan.cases[0].method
    for row in table:
        if row.case.method == first:
            continue
        for one in table:
            if one.case.method == first and (
                None in (one.case.group, row.case.group) or one.case.group == row.case.group
            ):
                lines.append(_verdict(plan, one, row))
    return lines


def _verdict(plan: Plan, one: Row, other: Row) -> str:
    rank = other.case.rank if one.case.rank is None else one.case.rank
    at = "" if rank is None else f" at k = {rank}"
    if other.case.beside is not None:
        at += f" and {other.case.rank}"
    if len(one.values) < 2 or len(other.values) < 2:
        return f"{one.case.method} and {other.case.method}{at}: fewer than two seeds of either say nothing"
    low, high = difference_interval(one.values, other.values)
    gain = one.mean - other.mean
    if plan.mode == "min":
        gain, low, high = -gain, -high, -low
    shown = f"{gain:+.3g}, interval {low:+.3g}…{high:+.3g}"
    if low <= 0 <= high:
        return f"no difference between {one.case.method} and {other.case.method}{at}: {shown}"
    return f"{one.case.method} {'better' if low > 0 else 'worse'} than {other.case.method}{at}: {shown}"


def markdown(plan: Plan, table: Sequence[Row]) -> str:
    """The table and the verdicts."""
    head = ["method", "rank", "parameters", "of dense", plan.metric, "95 % interval", "best lr", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in _distinct(table):
        value = f"{row.mean:.5g} ± {row.deviation:.2g}" if row.values else "all died"
        cells = [
            row.case.method,
            "–" if row.case.rank is None else str(row.case.rank),
            "–" if row.parameters is None else f"{row.parameters:,}",
            "–" if row.share is None else f"{row.share:.2%}",
            value + (f" ({row.died} died)" if row.died and row.values else ""),
            f"{row.low:.5g}…{row.high:.5g}" if len(row.values) > 1 else "–",
            f"{row.lr:g}",
            "–" if row.seconds is None else f"{row.seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    rates = ", ".join(f"{lr:g}" for lr in plan.lrs)
    seeds = ", ".join(str(seed) for seed in plan.seeds)
    setting = f"{plan.config}, {plan.budget}, {plan.metric} ({plan.mode}), learning rates {rates}, seeds {seeds}"
    said = verdicts(plan, table)
    if said and len(plan.seeds) < 5:
        said.append("with fewer than five seeds the table's bootstrap intervals are narrower than they should be")
    outermost = [str(row.case) for row in _distinct(table) if row.values and row.lr in (plan.lrs[0], plan.lrs[-1])]
    if outermost and len(plan.lrs) > 1:
        said.append(f"the sweep's first or last rate is the best of {', '.join(outermost)}: widen --lrs")
    return "\n".join([setting, "", *lines, "", *(f"- {line}" for line in said), ""])


def write_report(
    plan: Plan, results: Mapping[str, float | None], details: Mapping[str, Mapping[str, Any]], folder: Path
) -> str:
    """Write compare.md, compare.csv, compare.png and TensorBoard's hparams; give the Markdown."""
    table = rows(plan, results, details)
    text = markdown(plan, table)
    with atomic_path(folder / "compare.md") as temporary:
        temporary.write_text(text)
    with atomic_path(folder / "compare.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "rank", "lr", "seed", plan.metric, "parameters", "share", "seconds", "run"])
        for case in {str(case): case for case in plan.cases}.values():
            for lr in plan.lrs:
                for seed in plan.seeds:
                    name = Run(case, lr, seed).name
                    if name in results:
                        note = details.get(name, {})
                        value = "" if results[name] is None else results[name]
                        size = [note.get(key, "") for key in ("parameters", "share", "seconds", "folder")]
                        writer.writerow([case.method, case.rank or "", lr, seed, value, *size])
    _draw(plan, _distinct(table), folder / "compare.png")
    _hparams(plan, _distinct(table), folder / "tensorboard")
    return text


def _distinct(table: Sequence[Row]) -> list[Row]:
    """Each method at each rank once: it may stand beside several ranks of the first method."""
    return list({str(row.case): row for row in table}.values())


def _draw(plan: Plan, table: Sequence[Row], path: Path) -> None:
    """Quality over parameters, bytes in float32 and seconds."""
    from matplotlib.figure import Figure

    costs = [
        ("parameters", lambda row: row.parameters),
        ("bytes (float32)", lambda row: None if row.parameters is None else 4 * row.parameters),
        ("seconds of training", lambda row: row.seconds),
    ]
    figure = Figure(figsize=(4.4 * len(costs), 4), dpi=130)
    panels = figure.subplots(1, len(costs), sharey=True)
    for axes, (label, cost) in zip(panels, costs, strict=True):
        for method in dict.fromkeys(row.case.method for row in table):
            own = [row for row in table if row.case.method == method and row.values and cost(row) is not None]
            if not own:
                continue
            x, y = [cost(row) for row in own], [row.mean for row in own]
            spread = [[row.mean - row.low for row in own], [row.high - row.mean for row in own]]
            axes.errorbar(x, y, spread, marker="o", capsize=3, label=method)
            for row in own:
                if row.case.rank is not None:
                    axes.annotate(f"k={row.case.rank}", (cost(row), row.mean), fontsize=7, xytext=(4, 4),
                                  textcoords="offset points")  # fmt: skip
        axes.set(xscale="log", xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"{plan.metric} ({'higher' if plan.mode == 'max' else 'lower'} is better)")
    if panels[0].has_data():  # else all have died
        panels[0].legend(fontsize=8)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _hparams(plan: Plan, table: Sequence[Row], folder: Path) -> None:
    import shutil

    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)  # each report replaces the one before
    for row in table:
        if not row.values:
            continue
        with SummaryWriter(str(folder / str(row.case).replace(" ", "_"))) as writer:
            settings = {"method": row.case.method, "rank": row.case.rank or 0, "lr": row.lr}
            writer.add_hparams(settings, {f"compare/{plan.metric}": row.mean}, run_name=".")
