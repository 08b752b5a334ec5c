"""How much the frequency matters: spread of the phases × learning rate × rank, on small tasks, every seed everywhere.

Beside the fixed frequency: ω learnt for a layer (its logarithm, within a factor of four, at a rate of its own of a
tenth of the factors'), ω learnt for each row of W, and a schedule from a quarter of ω to ω over the first half.

    python benchmarks/frequency_sensitivity.py                        # hours on two CPU cores
    python benchmarks/frequency_sensitivity.py --tasks nerf --ranks 1 5 16
    python benchmarks/frequency_sensitivity.py --tasks classification language --variants

Writes benchmarks/results/frequency_sensitivity_TASK.{json,md,png}: heat maps of the mean score, and what the default
spread loses against the best one, each at its own best rate.
"""

import argparse
import functools
import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as L
import torch
from small_tasks import TASKS, make, score, shown
from sweep import RESULTS, Case, Run, Sweep, settle
from timing import markdown
from torch import Tensor

from sinelr_lightning.analysis.frequency import phase_step
from sinelr_lightning.analysis.phases import sines
from sinelr_lightning.files import atomic_path
from sinelr_lightning.layers import FactorGroup, FactorizedLayer, LinearFactory, SineLowRank
from sinelr_lightning.layers.factorization import wide
from sinelr_lightning.layers.sine_kin import SineKin

SPREADS = (0.5, 1.0, 2.0, 4.0, 8.0)
DEFAULT = 2.0
VARIANTS = ("learnt ω", "ω by row", "ω rising")
LRS = [1e-3, 3e-3, 1e-2, 3e-2]
# The sine wants more of it in the language model, see factorizations_language.md.
LRS_OF = {"language": [3e-3, 1e-2, 3e-2, 9e-2]}


@dataclass(frozen=True)
class LearntFrequency(SineKin):
    """W = sin(ω·c·U·Vᵀ)/g with learnt c = 4^tanh(s), one s or one for each row, from c = 1."""

    by_row: bool = False

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        return {**super().factors(m, n, zero=zero), "stretch": torch.zeros(m if self.by_row else 1, 1)}

    def weight(self, U: Tensor, V: Tensor, stretch: Tensor) -> Tensor:
        return self.sine_weight(wide(U) * 4.0 ** torch.tanh(wide(stretch)), V)

    def groups(self, m: int, n: int) -> dict[str, FactorGroup]:
        return {**super().groups(m, n), "stretch": FactorGroup(lr_multiplier=0.1, decays=False)}


class RisingFrequency(L.Callback):
    """Takes ω from a quarter to the whole over the first half of the steps, geometrically."""

    def __init__(self) -> None:
        self.final: dict[FactorizedLayer, float] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        share = min(1.0, 2 * trainer.global_step / int(trainer.max_steps))
        for layer in pl_module.modules():
            if isinstance(layer, FactorizedLayer) and isinstance(layer.factorization, SineLowRank):
                n = layer.weight_shape[1]
                omega = self.final.setdefault(layer, layer.factorization.omega(n))
                layer.factorization = replace(layer.factorization, frequency=omega * 4 ** (share - 1))


def factory(method: str, rank: int) -> SineLowRank | LearntFrequency:
    if method == "learnt ω":
        return LearntFrequency(rank)
    if method == "ω by row":
        return LearntFrequency(rank, by_row=True)
    return SineLowRank(rank, phase_spread=DEFAULT if method == "ω rising" else float(method))


def run(task: str, one: Run) -> dict[str, float]:
    method, rank, lr, seed = one
    return score(task, factory(method, rank), lr, seed, [RisingFrequency()] if method == "ω rising" else [])


def scores(sweep: Sweep, case: Case, lr: float) -> list[float]:
    """Of all seeds at this rate; -inf for a run that has died."""
    runs = [r for r in sweep.report["runs"] if (r["method"], r["rank"], r["lr"]) == (*case, lr)]
    return [r["score"] if math.isfinite(r["score"]) else -math.inf for r in runs]


def at_its_best(sweep: Sweep, case: Case, lrs: list[float]) -> tuple[float, float, float]:
    """Mean and standard deviation over the seeds at the rate whose mean is best, and that rate."""
    lr = max(lrs, key=lambda rate: statistics.mean(scores(sweep, case, rate)))
    values = scores(sweep, case, lr)
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, lr


def table(sweep: Sweep, task: str, methods: list[str], ranks: list[int], lrs: list[float]) -> str:
    rows = []
    for rank in ranks:
        best = max(at_its_best(sweep, (f"{spread:g}", rank), lrs)[0] for spread in SPREADS)
        for method in methods:
            mean, deviation, lr = at_its_best(sweep, (method, rank), lrs)
            name = method if method in VARIANTS else f"{method} rad"
            rows.append([str(rank), name, f"{shown(task, mean):.4g} ± {deviation:.2g}", f"{lr:g}"])
            step = "" if method == "ω rising" else moved(task, factory(method, rank), lr)
            rows[-1] += [step, f"{mean - best:+.3g}"]
    head = ["rank", "phases spread", TASKS[task][2], "best lr", "moved by a step", "against the best spread"]
    return markdown(head, rows)


def moved(task: str, linear: LinearFactory, lr: float) -> str:
    """Radians by which a step of Adam at this rate moves the phases of factors as drawn, the median of the layers."""
    settle(0, "cpu")
    step = statistics.median(phase_step(sine, lr) for _, sine in sines(make(task, linear, lr)))
    return f"{step:.2g} rad"


def plot(sweep: Sweep, task: str, ranks: list[int], lrs: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(ranks), figsize=(4.6 * len(ranks), 4), dpi=130, squeeze=False)
    for axis, rank in zip(axes[0], ranks, strict=True):
        cells = [[statistics.mean(scores(sweep, (f"{s:g}", rank), lr)) for lr in lrs] for s in SPREADS]
        finite = [value for row in cells for value in row if math.isfinite(value)]
        low, high = statistics.median(finite), max(finite)
        image = axis.imshow(cells, origin="lower", aspect="auto", vmin=low, vmax=high)
        for row, line in enumerate(cells):
            for column, value in enumerate(line):
                colour = "k" if value > (low + 2 * high) / 3 else "w"  # to be read on its cell
                text = f"{shown(task, value):.3g}"
                axis.annotate(text, (column, row), ha="center", va="center", color=colour, fontsize=8)
        axis.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
        axis.set_yticks(range(len(SPREADS)), [f"{spread:g}" for spread in SPREADS])
        axis.set(
            title=f"{task}, rank {rank}: {TASKS[task][2]}",
            xlabel="learning rate",
            ylabel="spread of the phases at first, rad",
        )
        bar = figure.colorbar(image)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{shown(task, value):.3g}")
    figure.tight_layout()
    with atomic_path(sweep.path.with_suffix(".png")) as temporary:
        figure.savefig(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS, help="beside the spreads")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    methods = [*(f"{spread:g}" for spread in SPREADS), *args.variants]
    cases = [(method, rank) for method in methods for rank in args.ranks]
    for task in args.tasks:
        lrs = LRS_OF.get(task, LRS)
        sweep = Sweep(RESULTS / f"frequency_sensitivity_{task}.json", {"steps": TASKS[task][0]}, "score")
        sweep.grid(functools.partial(run, task), cases, lrs, args.seeds, args.jobs)
        head = f"{task}: {TASKS[task][0]} steps, {args.seeds} seeds, learning rates {lrs}, each row at its best\n"
        sweep.publish(head, table(sweep, task, methods, args.ranks, lrs))
        plot(sweep, task, args.ranks, lrs)


if __name__ == "__main__":
    main()
