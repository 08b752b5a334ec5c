"""Trained layers rounded to 8 and 4 bits after training: quality over bytes, on a small task, every method alike.

Each column of a factor (each row of a dense weight) has a scale of its own, its largest entry over 127 or 7; entries
are rounded to the nearest (arXiv 2505.21895 rounds factors so). Scales count as float16, biases and what is no linear
layer stay float32 and are counted, too.

    python benchmarks/quantised_factors.py          # ten minutes on two CPU cores

Writes benchmarks/results/quantised_factors.md. The rate of each method is its best in factorizations_occupancy.md.
"""

import argparse
import functools
import multiprocessing
import statistics
from typing import Any

import torch
from small_tasks import TASKS, make, read
from sweep import RESULTS, bare_trainer, settle
from timing import markdown
from torch import Tensor, nn

from sinelr_lightning.files import atomic_path
from sinelr_lightning.layers import Dense, FactorizedLayer, LinearFactory, LowRank, ResidualSine, SineLowRank

METHODS: list[tuple[str, LinearFactory, float]] = [
    ("dense", Dense(), 3e-3),
    ("low rank", LowRank(5), 1e-2),
    ("sine", SineLowRank(5), 3e-3),
    ("residual sine", ResidualSine(5), 1e-2),
    ("low rank", LowRank(16), 3e-3),
    ("sine", SineLowRank(16), 3e-3),
]
BITS = (32, 8, 4)


def rounded(matrix: Tensor, bits: int) -> Tensor:
    """Each column to the nearest multiple of its scale."""
    scale = (matrix.abs().amax(0, keepdim=True) / (2 ** (bits - 1) - 1)).clamp_min(1e-30).half().float()
    return (matrix / scale).round() * scale


@torch.no_grad()
def round_layers(model: nn.Module, bits: int) -> int:
    """Round the matrices of all linear layers in place; give the bytes of the whole model."""
    total = 4 * sum(p.numel() for p in model.parameters())
    for module in model.modules():
        if bits == 32 or not isinstance(module, FactorizedLayer | nn.Linear):
            continue
        factors: list[Any] = list(module.factors()) if isinstance(module, FactorizedLayer) else [module.weight]
        for factor in factors:
            if factor.dim() == 2:
                along = factor if isinstance(module, FactorizedLayer) else factor.t()
                along.copy_(rounded(along, bits))
                total += factor.numel() * bits // 8 - 4 * factor.numel() + 2 * along.shape[1]
    return total


def run(task: str, job: tuple[int, int]) -> tuple[int, list[tuple[int, float]]]:
    """Bytes and score at each number of bits, of one method and seed."""
    number, seed = job
    _, linear, lr = METHODS[number]
    settle(seed, "cpu")
    module, data = make(task, linear, lr), read(task)
    steps, name, _ = TASKS[task]
    found = []
    with bare_trainer(steps, "cpu") as trainer:
        trainer.fit(module, data)
        trained = {key: value.clone() for key, value in module.state_dict().items()}
        for bits in BITS:
            module.load_state_dict(trained)
            size = round_layers(module, bits)
            found.append((size, float(trainer.validate(module, data, verbose=False)[0][f"val/{name}"])))
    return number, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    jobs = [(number, seed) for seed in range(args.seeds) for number in range(len(METHODS))]
    found: dict[int, list[list[tuple[int, float]]]] = {}
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, scores in pool.imap_unordered(functools.partial(run, "occupancy"), jobs):
            found.setdefault(number, []).append(scores)
            print(METHODS[number][0], scores, flush=True)
    rows = []
    for number, (name, linear, _) in enumerate(METHODS):
        for column, bits in enumerate(BITS):
            values = [scores[column][1] for scores in found[number]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            kilobytes = f"{found[number][0][column][0] / 1000:,.1f}"
            rank = str(getattr(linear, "rank", "–"))
            rows.append([name, rank, str(bits), kilobytes, f"{statistics.mean(values):.4f} ± {spread:.4f}"])
    head = f"occupancy: {TASKS['occupancy'][0]} steps, {args.seeds} seeds, rounded after training\n\n"
    table = head + markdown(["layers", "rank", "bits", "kB", "IoU"], rows)
    with atomic_path(RESULTS / "quantised_factors.md") as temporary:
        temporary.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
