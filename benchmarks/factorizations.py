"""Every factorization at equal parameters on small tasks: the same steps, the same sweep of learning rates, seeds.

A budget is the parameters of low rank at rank k. A family takes part where a rank of its own comes near to them; its
actual parameters are in the table. Each case runs at three rates (further where the best is the outermost)
with one seed, then with all seeds at its best rate.

    python benchmarks/factorizations.py                      # hours on two CPU cores
    python benchmarks/factorizations.py --tasks nerf --budgets 5

Writes benchmarks/results/factorizations_TASK.{json,md}.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass

from small_tasks import TASKS, score, shown
from sweep import RESULTS, Case, Run, Sweep
from timing import markdown
from torch import Tensor

from sinelr_lightning.layers import (
    ActivatedLowRank,
    BlockTensorTrain,
    Dense,
    FedPara,
    FourierLowRank,
    Kronecker,
    LinearFactory,
    LowRank,
    ResidualSine,
    SineLowRank,
    SparseLowRank,
    SparseSine,
)
from sinelr_lightning.layers.activated import ACTIVATIONS


@dataclass(frozen=True)
class AsPublished(ActivatedLowRank):
    """φ(ω·U·Vᵀ)/g as in arXiv 2403.19243, with the φ(0) that `ActivatedLowRank` takes off."""

    def weight(self, U: Tensor, V: Tensor) -> Tensor:
        """The weight [m, n]."""
        return ACTIVATIONS[self.activation](self.phases(U, V)) / self.divisor(V.shape[0])


def blocks(k: int, width: int, own_rates: bool) -> BlockTensorTrain:
    """The block tensor train whose parameters are nearest below those of rank k in a square weight."""
    return BlockTensorTrain(max(1, int(k / width**0.5)), own_rates)


# Method → (the layers at a budget k, the budgets at which it has some). A sparse part of 2·d/width of the entries has
# the parameters of d ranks of a square weight.
METHODS: dict[str, tuple[Callable[[int, int], LinearFactory], tuple[int, ...]]] = {
    "low rank": (lambda k, width: LowRank(k), (1, 5, 16)),
    "low rank, spectral start": (lambda k, width: LowRank(k, spectral=True), (1, 5, 16)),
    "sine": (lambda k, width: SineLowRank(k), (1, 5, 16)),
    "sine, balanced start": (lambda k, width: SineLowRank(k, balanced=True), (1, 5, 16)),
    "residual sine": (lambda k, width: ResidualSine(k), (1, 5, 16)),
    "Fourier series, 3 terms": (lambda k, width: FourierLowRank(k), (1, 5, 16)),
    "tanh": (lambda k, width: ActivatedLowRank(k, activation="tanh"), (1, 5, 16)),
    "ReLU": (lambda k, width: ActivatedLowRank(k, activation="relu"), (1, 5)),
    "sigmoid": (lambda k, width: ActivatedLowRank(k, activation="sigmoid"), (1, 5)),
    "Gaussian": (lambda k, width: ActivatedLowRank(k, activation="gaussian"), (1, 5)),
    "sinc": (lambda k, width: ActivatedLowRank(k, activation="sinc"), (1, 5)),
    "sigmoid, as published": (lambda k, width: AsPublished(k, activation="sigmoid"), (1, 5)),
    "Gaussian, as published": (lambda k, width: AsPublished(k, activation="gaussian"), (1, 5)),
    "sinc, as published": (lambda k, width: AsPublished(k, activation="sinc"), (1, 5)),
    "low rank + sparse": (
        lambda k, width: SparseLowRank(k - k // 2, density=2 * (k // 2) / width),
        (5, 16),
    ),
    "sine + sparse": (lambda k, width: SparseSine(k - k // 2, density=2 * (k // 2) / width), (5, 16)),
    "FedPara": (lambda k, width: FedPara(k // 2), (5, 16)),
    "Kronecker": (lambda k, width: Kronecker(k), (1, 5, 16)),
    "block tensor train": (lambda k, width: blocks(k, width, own_rates=True), (16,)),
    "block tensor train, one rate": (lambda k, width: blocks(k, width, own_rates=False), (16,)),
    "dense": (lambda k, width: Dense(), (0,)),
}
# The field's layer behind the skip has 191 inputs, a prime number, which splits into no blocks.
LEFT_OUT = {("nerf", m) for m in ("Kronecker", "block tensor train", "block tensor train, one rate")}
WIDTH = {"occupancy": 256, "nerf": 128, "classification": 64, "language": 128}
LRS = [1e-3, 3e-3, 1e-2]


def layers(task: str, case: Case) -> LinearFactory:
    method, budget = case
    return METHODS[method][0](budget, WIDTH[task])


def run(task: str, one: Run) -> dict[str, float]:
    method, budget, lr, seed = one
    return score(task, layers(task, (method, budget)), lr, seed)


def table(sweep: Sweep, task: str, cases: list[Case]) -> str:
    rows = []
    for case in sorted(cases, key=lambda case: (case[1], -sweep.mean(case, "score")[0])):
        mean, deviation = sweep.mean(case, "score")
        share, parameters = sweep.mean(case, "compression")[0], sweep.mean(case, "parameters")[0]
        rows.append([str(case[1] or "–"), case[0], f"{parameters:,.0f}", f"{share:.1%}"])
        rows[-1] += [f"{shown(task, mean):.4g} ± {deviation:.2g}", f"{sweep.best_lr(case):g}"]
    return markdown(["budget k", "layers", "parameters", "of dense", TASKS[task][2], "best lr"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--budgets", type=int, nargs="+", default=[0, 1, 5, 16], help="ranks; 0 is dense")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    for task in args.tasks:
        methods = {
            m: budgets for m, (_, budgets) in METHODS.items() if m in args.methods and (task, m) not in LEFT_OUT
        }
        cases = [(m, k) for k in args.budgets for m, budgets in methods.items() if k in budgets]
        sweep = Sweep(RESULTS / f"factorizations_{task}.json", {"steps": TASKS[task][0]}, "score")
        sweep.work(functools.partial(run, task), cases, LRS, args.seeds, args.jobs)
        head = f"{task}: {TASKS[task][0]} steps, {args.seeds} seeds, learning rates {sweep.rates()}\n"
        sweep.publish(head, table(sweep, task, cases))


if __name__ == "__main__":
    main()
