"""Four tasks made small, for benchmarks that train hundreds of networks: a core takes a quarter of a minute each."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from sweep import settle, train

from sinelr_lightning.layers import LinearFactory, summarize

DATA = Path(__file__).parents[1] / "data"
# Task → (steps, score that the validation gives, how tables call it).
TASKS = {
    "occupancy": (300, "iou", "IoU"),
    "nerf": (200, "psnr", "PSNR, dB"),
    "classification": (300, "loss", "validation loss"),
    "language": (300, "bits", "bits a byte"),
}
SMALLER_IS_BETTER = ("loss", "bits")
TEST = {"classification": "acc1"}


def make(task: str, linear: LinearFactory, lr: float) -> Any:
    """The task with these layers; the schedule falls to a tenth."""
    from sinelr_lightning.tasks import ClassificationTask, NeRFTask, OccupancyTask, PretrainingTask, Schedule

    steps = TASKS[task][0]
    # No weight decay: the sine's factors have none by their own rule, and all shall have the same.
    common: dict[str, Any] = {
        "weight_decay": 0.0,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=lr),
        "schedule": Schedule("cosine", warmup=steps // 20, final=0.05),
    }
    if task == "occupancy":
        return OccupancyTask(linear, width=256, resolution=16, **common)
    if task == "nerf":
        sizes: dict[str, Any] = {"depth": 4, "width": 128, "skip": 2, "coarse_samples": 24, "fine_samples": 12}
        return NeRFTask(linear, sampling="proposal", **sizes, **common)
    if task == "language":
        return PretrainingTask(linear, width=128, depth=2, context=128, **common)
    network = {"image_size": 8, "patch_size": 2, "width": 64, "depth": 4, "heads": 4}
    return ClassificationTask(network_args=network, classes=10, linear=linear, label_smoothing=0.1, **common)


def read(task: str) -> Any:
    from sinelr_lightning.datamodules import DigitsData, LanguageData, NeRFData, OccupancyData
    from sinelr_lightning.datamodules.augmentation import Augmentation

    steps = TASKS[task][0]
    if task == "occupancy":
        shape = str(DATA / "watering_can.ply")
        return OccupancyData(shape, eval_points=50_000, batch_size=2048, epoch_steps=steps)
    if task == "nerf":
        return NeRFData(str(DATA / "llff_demo"), factor=2, batch_size=256, epoch_steps=steps)
    if task == "language":
        return LanguageData(max_length=128, batch_size=8, validation_share=0.05, epoch_steps=steps)
    shifted = Augmentation(crop="padded", padding=1, flip=0.0, randaugment=0, mixup=0.0, cutmix=0.0)
    return DigitsData(augmentation=shifted, batch_size=64, epoch_steps=steps)


def shown(task: str, score: float) -> float:
    """A score as its table has it; where smaller is better the score is the negative."""
    return -score if TASKS[task][1] in SMALLER_IS_BETTER else score


def score(task: str, linear: LinearFactory, lr: float, seed: int, callbacks: Iterable[Any] = ()) -> dict[str, float]:
    """Train once; `score` is larger where it is better, the others are as they are called."""
    steps, name, _ = TASKS[task]
    settle(seed, "cpu")
    module = make(task, linear, lr)
    scores = train(module, read(task), steps, "cpu", (name,), test=TEST.get(task, ""), callbacks=callbacks)
    size = summarize(module)
    parameters = {"parameters": size.parameters, "compression": size.compression}
    return {**scores, **parameters, "score": shown(task, scores[name])}
