"""What sine low-rank weights cost and bring in an occupancy network: dense, low rank and sine under one budget.

Every method and rank gets the paper's network, the same steps and points and the same sweep of learning rates
(`sweep.py`), judged by IoU on fresh uniform points. The sine starts with a phase spread of 2 rad (`auto`, the paper's
ω = 100) and, as a method of its own, of 6 rad (ω = 288).

    python benchmarks/occupancy_quality.py PATH/TO/MESH [MESH …]

Writes benchmarks/results/occupancy_quality_MESH.{json,md,png} and, of the first seed, the surfaces side by side,
occupancy_quality_MESH_surfaces.png.
"""

import argparse
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sweep import METHODS, RESULTS, Case, Run, Sweep, cases_of, factory, settle, train
from timing import Setting, fastest, machine

SHOWN = (
    ("dense", 0),
    ("low rank", 1),
    ("sine", 1),
    ("sine, 6 rad", 1),
    ("low rank", 5),
    ("sine", 5),
    ("sine, 6 rad", 5),
)
PICTURES = Path(__file__).parent / "results" / "pictures"  # of single runs; not kept in the repository


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="+", help="files of shapes")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 5, 20])
    parser.add_argument("--lrs", type=float, nargs="+", default=[2.5e-3, 5e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--points", type=int, default=2048, help="points a step")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each on the CPU")
    return parser.parse_args()


def make(args: argparse.Namespace, case: Case, lr: float = 1e-3) -> Any:
    from sinelr_lightning.tasks import OccupancyTask, Schedule

    return OccupancyTask(
        factory(*case),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        schedule=Schedule("exponential", warmup=min(100, args.steps // 10), final=0.1),
    )


def run(args: argparse.Namespace, mesh: str, one: Run) -> dict[str, float]:
    """Train and score one case; everything else the same."""
    from sinelr_lightning.datamodules import OccupancyData
    from sinelr_lightning.geometry.marching import extract_surface
    from sinelr_lightning.geometry.picture import save_picture, shade, usual_up
    from sinelr_lightning.tasks.occupancy import POLISH

    method, rank, lr, seed = one
    settle(seed, args.device)
    task = make(args, (method, rank), lr)
    data = OccupancyData(mesh, batch_size=args.points, epoch_steps=args.steps)
    scores = train(task, data, args.steps, args.device, ("iou", "iou_near", "chamfer"))
    if seed == 0 and (method, rank) in SHOWN and math.isfinite(scores["chamfer"]):
        surface = extract_surface(task.field(), 192, polish=POLISH).mesh
        save_picture(picture_path(mesh, (method, rank), lr), shade(surface, 400, 400, up=usual_up(mesh)))
    return scores


def picture_path(mesh: str, case: Case, lr: float) -> Path:
    return PICTURES / f"{Path(mesh).stem}_{case[0].replace(', ', '_').replace(' ', '_')}_{case[1]}_{lr:g}.png"


def step_times(args: argparse.Namespace, cases: list[Case]) -> tuple[dict[str, float], str]:
    """Milliseconds of a training step, and the machine."""
    setting = Setting(args.device, autocast=False, seconds=60)
    points = torch.rand(args.points, 3, device=args.device) * 2 - 1
    inside = (points.norm(dim=-1) < 0.7).float()

    def step(network: torch.nn.Module) -> None:
        network.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(points), inside).backward()

    networks = {f"{m} {k}": make(args, (m, k)).network.to(args.device) for m, k in cases}
    return fastest({name: functools.partial(step, n) for name, n in networks.items()}, setting), machine(setting)


def table(args: argparse.Namespace, sweep: Sweep, cases: list[Case]) -> str:
    scores = {
        "IoU": lambda case: "{:.4f} ± {:.4f}".format(*sweep.mean(case, "iou")),
        "IoU near": lambda case: f"{sweep.mean(case, 'iou_near')[0]:.4f}",
        "Chamfer × 1000": lambda case: f"{1000 * sweep.mean(case, 'chamfer')[0]:.2f}",
    }
    return sweep.table(cases, functools.partial(make, args), scores)


def side_by_side(mesh: str, sweep: Sweep, cases: list[Case], path: Path) -> None:
    from sinelr_lightning.geometry.mesh_io import load_mesh
    from sinelr_lightning.geometry.picture import contact_sheet, save_picture, shade, usual_up

    pictures, labels = [shade(load_mesh(mesh), 400, 400, up=usual_up(mesh))], ["true"]
    for case in SHOWN:
        if case not in cases or not picture_path(mesh, case, sweep.best_lr(case)).is_file():
            continue
        with Image.open(picture_path(mesh, case, sweep.best_lr(case))) as picture:
            pictures.append(np.asarray(picture))
        rank = f", k = {case[1]}" if case[1] else ""
        labels.append(f"{case[0]}{rank}: IoU {max(sweep.chosen(case), key=lambda r: -r['seed'])['iou']:.3f}")
    save_picture(path, contact_sheet(pictures, labels, columns=4))


def main() -> None:
    args = arguments()
    cases = cases_of(args.ranks, METHODS)
    # Phases that wide bring nothing at high rank; it is for the smallest networks.
    cases = [case for case in cases if case[0] != "sine, 6 rad" or case[1] <= 5]
    setting = {"steps": args.steps, "points": args.points, "device": args.device}
    sweeps = []
    for mesh in args.meshes:
        sweep = Sweep(RESULTS / f"occupancy_quality_{Path(mesh).stem}.json", setting, "iou")
        sweep.work(functools.partial(run, args, mesh), cases, args.lrs, args.seeds, args.jobs)
        sweeps.append((mesh, sweep))
    times, where = step_times(args, cases)
    for mesh, sweep in sweeps:
        name = Path(mesh).stem
        sweep.report["step_ms"], sweep.report["machine"] = times, where
        sweep.save()
        head = (
            f"{name}: {args.steps} steps of {args.points} points, {args.seeds} seeds, learning rates "
            f"{sweep.rates()}; step times on {where}"
        )
        sweep.publish(head, table(args, sweep, cases))
        sweep.plot(cases, functools.partial(make, args), name, "IoU on fresh uniform points")
        side_by_side(mesh, sweep, cases, sweep.path.with_name(f"{sweep.path.stem}_surfaces.png"))


if __name__ == "__main__":
    main()
