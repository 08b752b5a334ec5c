"""What sine low-rank weights cost and bring in a radiance field: dense, low rank and sine under one budget.

Every method and rank gets the same steps, rays, network and the same sweep of learning rates (`sweep.py`), judged by
held-out PSNR. The sine's frequency is not tuned: `auto` throughout.

    python benchmarks/nerf_quality.py data/llff_demo
    python benchmarks/nerf_quality.py PATH/TO/fern --factor 8
    python benchmarks/nerf_quality.py PATH/TO/fern --factor 8 --paper --device cuda   (paper size; hours on one GPU)

Writes benchmarks/results/nerf_quality_SCENE.{json,md,png}.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from nerf_speed import rays, step
from sweep import RESULTS, Case, Run, Sweep, cases_of, factory, settle, train
from timing import Setting, fastest, machine

from sinelr_lightning.layers import summarize


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


def make(args: argparse.Namespace, case: Case, lr: float = 1e-3) -> Any:
    from sinelr_lightning.tasks import NeRFTask, Schedule

    return NeRFTask(
        factory(*case),
        depth=args.depth,
        width=args.width,
        skip=args.depth // 2,
        sampling="hierarchical" if args.paper else "proposal",
        coarse_samples=args.samples[0],
        fine_samples=args.samples[1],
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        schedule=Schedule("exponential", warmup=min(100, args.steps // 10), final=0.1),
    )


def run(args: argparse.Namespace, one: Run) -> dict[str, float]:
    """Train and score one case; everything else the same."""
    from sinelr_lightning.datamodules import NeRFData

    method, rank, lr, seed = one
    settle(seed, args.device)
    task = make(args, (method, rank), lr)
    data = NeRFData(args.root, args.factor, batch_size=args.rays, epoch_steps=args.steps)
    return train(task, data, args.steps, args.device, ("psnr", "ssim"))


def step_times(args: argparse.Namespace, cases: list[Case]) -> tuple[dict[str, float], str]:
    """Milliseconds of a training step, and the machine."""
    setting = Setting(args.device, autocast=False, seconds=60)
    batch = rays(args.rays, args.device)
    steps = {f"{m} {k}": step(make(args, (m, k)).renderer.to(args.device), batch) for m, k in cases}
    return fastest(steps, setting), machine(setting)


def table(args: argparse.Namespace, sweep: Sweep, cases: list[Case]) -> str:
    scores = {
        "kB": lambda case: f"{summarize(make(args, case)).parameters * 4 / 1000:.0f}",
        "PSNR (dB)": lambda case: "{:.2f} ± {:.2f}".format(*sweep.mean(case, "psnr")),
        "SSIM": lambda case: f"{sweep.mean(case, 'ssim')[0]:.3f}",
    }
    return sweep.table(cases, functools.partial(make, args), scores)


def main() -> None:
    args = arguments()
    cases = cases_of(args.ranks)
    name = Path(args.root).resolve().name + ("_paper" if args.paper else "")
    setting = {k: v for k, v in vars(args).items() if k not in ("root", "jobs", "lrs", "seeds", "ranks")}
    sweep = Sweep(RESULTS / f"nerf_quality_{name}.json", setting, "psnr")
    sweep.work(functools.partial(run, args), cases, args.lrs, args.seeds, args.jobs)
    sweep.report["step_ms"], sweep.report["machine"] = step_times(args, cases)
    sweep.save()
    head = (
        f"{name}: {args.steps} steps of {args.rays} rays, {args.depth} layers of {args.width}, "
        f"{args.samples[0]} + {args.samples[1]} samples, {args.seeds} seeds, learning rates {sweep.rates()}; "
        f"step times on {sweep.report['machine']}"
    )
    sweep.publish(head, table(args, sweep, cases))
    sweep.plot(cases, functools.partial(make, args), name, "held-out PSNR (dB)")


if __name__ == "__main__":
    main()
