"""What sine low-rank weights cost and bring in a vision transformer: dense, low rank and sine under one budget.

The feed-forward layers of our compact ViT are converted. Every method and rank gets the same network, steps, images
and augmentation and the same sweep of learning rates (`sweep.py`), chosen by the accuracy on validation images; the
figures are of test images that nothing was chosen by. The sine's frequency is not tuned: `auto` throughout.

    python benchmarks/classification_quality.py digits
    python benchmarks/classification_quality.py PATH/TO/cifar10          (a folder with train/CLASS and test/CLASS)
    python benchmarks/classification_quality.py CIFAR10 --width 384 --depth 12 --steps 20000 --device cuda --jobs 1

Writes benchmarks/results/classification_quality_DATA.{json,md,png}.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from sweep import RESULTS, Case, Run, Sweep, cases_of, factory, settle, train
from timing import Setting, fastest, machine


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="digits, a data set of torchvision, or a folder of images")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 3e-3, 9e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--images", type=int, default=64, help="a step")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each on the CPU")
    return parser.parse_args()


def sizes(args: argparse.Namespace) -> tuple[int, int]:
    """Pixels of an image's side and of a patch's."""
    return (8, 2) if args.data == "digits" else (32, 4)


def read(args: argparse.Namespace) -> Any:
    """The data; for a folder without test images there would be nothing to measure on that nothing was chosen by."""
    from sinelr_lightning.datamodules import DigitsData, ImageFolderData, TorchvisionData
    from sinelr_lightning.datamodules.augmentation import Augmentation

    steps = {"batch_size": args.images, "epoch_steps": args.steps}
    if args.data == "digits":
        shifted = Augmentation(crop="padded", padding=1, flip=0.0, randaugment=0, mixup=0.0, cutmix=0.0)
        return DigitsData(augmentation=shifted, **steps)
    if Path(args.data).is_dir():
        small = Augmentation(crop="padded", randaugment=0, mixup=0.0, cutmix=0.0)
        data = ImageFolderData(args.data, image_size=32, crop_ratio=1.0, augmentation=small, **steps)
    else:
        data = TorchvisionData(args.data, hold=10, image_size=32, workers=4, **steps)
    data.prepare_data()
    if data.splits.notes["test_is_val"]:
        raise SystemExit(f"{args.data} has no test images")
    return data


def make(args: argparse.Namespace, case: Case, lr: float = 1e-3) -> Any:
    from sinelr_lightning.tasks import ClassificationTask, Schedule

    side, patch = sizes(args)
    return ClassificationTask(
        network_args={
            "image_size": side,
            "patch_size": patch,
            "width": args.width,
            "depth": args.depth,
            "heads": args.heads,
        },
        classes=args.classes,
        linear=factory(*case),
        label_smoothing=0.1,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr),
        schedule=Schedule("cosine", warmup=min(100, args.steps // 10), final=0.01),
    )


def run(args: argparse.Namespace, one: Run) -> dict[str, float]:
    """Train and score one case; everything else the same."""
    method, rank, lr, seed = one
    settle(seed, args.device)
    return train(make(args, (method, rank), lr), read(args), args.steps, args.device, ("acc1", "loss"), test="acc1")


def step_times(args: argparse.Namespace, cases: list[Case]) -> tuple[dict[str, float], str]:
    """Milliseconds of a training step, and the machine."""
    setting = Setting(args.device, autocast=False, seconds=60)
    side, _ = sizes(args)
    images = torch.randn(args.images, 3, side, side, device=args.device)
    labels = torch.arange(args.images, device=args.device) % args.classes

    def step(task: Any) -> None:
        task.network.zero_grad()
        task.training_step({"images": images, "labels": labels}, 0).backward()

    tasks = {f"{m} {k}": make(args, (m, k)).to(args.device) for m, k in cases}
    return fastest({name: functools.partial(step, task) for name, task in tasks.items()}, setting), machine(setting)


def table(args: argparse.Namespace, sweep: Sweep, cases: list[Case]) -> str:
    scores = {
        "test accuracy": lambda case: "{:.2%} ± {:.2%}".format(*sweep.mean(case, "test_acc1")),
        "validation": lambda case: f"{sweep.mean(case, 'acc1')[0]:.2%}",
    }
    return sweep.table(cases, functools.partial(make, args), scores)


def main() -> None:
    args = arguments()
    args.classes = len(read(args).class_names)
    cases = cases_of(args.ranks)
    name = Path(args.data).resolve().name.lower()
    setting = {k: v for k, v in vars(args).items() if k not in ("data", "classes", "jobs", "lrs", "seeds", "ranks")}
    sweep = Sweep(RESULTS / f"classification_quality_{name}.json", setting, "acc1")
    sweep.work(functools.partial(run, args), cases, args.lrs, args.seeds, args.jobs)
    sweep.report["step_ms"], sweep.report["machine"] = step_times(args, cases)
    sweep.save()
    head = (
        f"{name}: ViT of {args.depth} blocks of {args.width}, {args.steps} steps of {args.images} images, "
        f"{args.seeds} seeds, learning rates {sweep.rates()}; step times on {sweep.report['machine']}"
    )
    sweep.publish(head, table(args, sweep, cases))
    sweep.plot(cases, functools.partial(make, args), name, "test accuracy", "test_acc1")


if __name__ == "__main__":
    main()
