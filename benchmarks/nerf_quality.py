"""What sine low-rank weights cost and bring in a radiance field: dense, low rank and sine under one budget.

Every method and rank gets the same steps, rays, network and the same sweep of learning rates on its first seed; the
rate with the best held-out PSNR then runs on the other seeds. The sine's frequency is not tuned: `auto` throughout.

    python benchmarks/nerf_quality.py data/llff_demo
    python benchmarks/nerf_quality.py PATH/TO/fern --factor 8
    python benchmarks/nerf_quality.py PATH/TO/fern --factor 8 --paper --device cuda   (paper size; hours on one GPU)

Writes benchmarks/results/nerf_quality_SCENE.{json,md,png}. Runs already in the JSON are not run again, so an
interrupted benchmark goes on where it was.
"""

import argparse
import functools
import json
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from nerf_speed import rays, step
from timing import Setting, fastest, machine

from sinelr_lightning.files import atomic_path
from sinelr_lightning.layers import Dense, LinearFactory, LowRank, SineLowRank, summarize

RESULTS = Path(__file__).parent / "results"
METHODS = {"low rank": LowRank, "sine": SineLowRank}


def factory(method: str, rank: int) -> LinearFactory:
    return Dense() if method == "dense" else METHODS[method](rank)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder of a scene")
    parser.add_argument("--factor", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--lrs", type=float, nargs="+", default=[2e-3, 6e-3, 2e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rays", type=int, default=512, help="rays a step")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--samples", type=int, nargs=2, default=[32, 12], help="of the proposal and of the field")
    parser.add_argument("--paper", action="store_true", help="8 × 256, 64 + 128 hierarchical samples, 4096 rays")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each on the CPU")
    args = parser.parse_args()
    if args.paper:
        args.depth, args.width, args.samples, args.rays, args.jobs = 8, 256, [64, 128], 4096, 1
    return args


def make(args: argparse.Namespace, method: str, rank: int, lr: float) -> Any:
    from sinelr_lightning.tasks import NeRFTask, Schedule

    return NeRFTask(
        factory(method, rank),
        depth=args.depth,
        width=args.width,
        skip=args.depth // 2,
        sampling="hierarchical" if args.paper else "proposal",
        coarse_samples=args.samples[0],
        fine_samples=args.samples[1],
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        schedule=Schedule("exponential", warmup=min(100, args.steps // 10), final=0.1),
    )


def run(args: argparse.Namespace, case: tuple[str, int, float, int]) -> dict[str, Any]:
    """Train and score one case; everything else the same."""
    import lightning.pytorch as L

    from sinelr_lightning.datamodules import NeRFData

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    method, rank, lr, seed = case
    if args.device == "cpu":
        torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    task = make(args, method, rank, lr)
    data = NeRFData(args.root, args.factor, batch_size=args.rays, epoch_steps=args.steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=args.steps,
            accelerator="gpu" if args.device == "cuda" else "cpu",
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )
        began = time.perf_counter()
        trainer.fit(task, data)
    scores = {name: float(trainer.callback_metrics[f"val/{name}"]) for name in ("psnr", "ssim")}
    seconds = time.perf_counter() - began
    return {"method": method, "rank": rank, "lr": lr, "seed": seed, "seconds": seconds, **scores}


def step_times(args: argparse.Namespace, cases: list[tuple[str, int]]) -> tuple[dict[str, float], str]:
    """Milliseconds of a training step, and the machine."""
    setting = Setting(args.device, autocast=False, seconds=60)
    batch = rays(args.rays, args.device)
    steps = {f"{m} {k}": step(make(args, m, k, 1e-3).renderer.to(args.device), batch) for m, k in cases}
    return fastest(steps, setting), machine(setting)


def missing(results: list[dict[str, Any]], cases: list[tuple[str, int, float, int]]) -> list[Any]:
    done = {(r["method"], r["rank"], r["lr"], r["seed"]) for r in results}
    return [case for case in cases if case not in done]


def best_lr(results: list[dict[str, Any]], method: str, rank: int) -> float:
    first = [r for r in results if (r["method"], r["rank"], r["seed"]) == (method, rank, 0)]
    return max(first, key=lambda r: r["psnr"])["lr"]


def table(args: argparse.Namespace, report: dict[str, Any], cases: list[tuple[str, int]]) -> str:
    columns = ["method", "rank", "parameters", "of dense", "kB", "PSNR (dB)", "SSIM", "best lr", "ms/step"]
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    rows = []
    for method, rank in cases:
        lr = best_lr(report["runs"], method, rank)
        chosen = [r for r in report["runs"] if (r["method"], r["rank"], r["lr"]) == (method, rank, lr)]
        size = summarize(make(args, method, rank, lr))
        psnr = [r["psnr"] for r in chosen]
        ssim = statistics.mean(r["ssim"] for r in chosen)
        spread = statistics.stdev(psnr) if len(psnr) > 1 else 0
        milliseconds = report["step_ms"][f"{method} {rank}"]
        rows.append(
            f"| {method} | {rank or '–'} | {size.parameters:,} | {size.compression:.1%} "
            f"| {size.parameters * 4 / 1000:.0f} | {statistics.mean(psnr):.2f} ± {spread:.2f} | {ssim:.3f} "
            f"| {lr:g} | {milliseconds:.1f} |\n"
        )
    return head + "".join(rows)


def plot(args: argparse.Namespace, report: dict[str, Any], cases: list[tuple[str, int]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), dpi=150)
    for method in dict.fromkeys(m for m, _ in cases):
        points = []
        for _, rank in (c for c in cases if c[0] == method):
            lr = best_lr(report["runs"], method, rank)
            psnr = [r["psnr"] for r in report["runs"] if (r["method"], r["rank"], r["lr"]) == (method, rank, lr)]
            spread = statistics.stdev(psnr) if len(psnr) > 1 else 0
            points.append((summarize(make(args, method, rank, lr)).parameters, statistics.mean(psnr), spread, rank))
        x, y, error, ranks = zip(*points, strict=True)
        axes.errorbar(x, y, error, marker="o", capsize=3, label=method)
        for px, py, rank in zip(x, y, ranks, strict=True):
            if rank:
                axes.annotate(f"k={rank}", (px, py), textcoords="offset points", xytext=(6, -11), fontsize=8)
    axes.set(xscale="log", xlabel="parameters", ylabel="held-out PSNR (dB)", title=report["scene"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def main() -> None:
    args = arguments()
    cases = [("dense", 0), *((method, rank) for method in METHODS for rank in args.ranks)]
    name = Path(args.root).resolve().name + ("_paper" if args.paper else "")
    path = RESULTS / f"nerf_quality_{name}.json"
    setting = {k: v for k, v in vars(args).items() if k not in ("root", "jobs", "lrs", "seeds", "ranks")}
    report: dict[str, Any] = {"scene": name, "setting": setting, "torch": torch.__version__, "runs": []}
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["setting"] != setting:
            sys.exit(f"{path} was made with other settings ({stored['setting']}): move it away first")
        report = stored

    def save() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")

    def work(wanted: list[tuple[str, int, float, int]]) -> None:
        context = multiprocessing.get_context("spawn")
        todo = missing(report["runs"], wanted)
        with context.Pool(args.jobs, maxtasksperchild=1) as pool:
            for result in pool.imap_unordered(functools.partial(run, args), todo):
                report["runs"].append(result)
                save()
                print(json.dumps(result), flush=True)

    work([(method, rank, lr, 0) for method, rank in cases for lr in args.lrs])
    work([(m, k, best_lr(report["runs"], m, k), seed) for m, k in cases for seed in range(1, args.seeds)])
    report["step_ms"], report["machine"] = step_times(args, cases)
    save()
    text = (
        f"{name}: {args.steps} steps of {args.rays} rays, {args.depth} layers of {args.width}, "
        f"{args.samples[0]} + {args.samples[1]} samples, {args.seeds} seeds, learning rates {args.lrs}; "
        f"step times on {report['machine']}\n{table(args, report, cases)}"
    )
    with atomic_path(path.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    plot(args, report, cases, path.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
