"""Converting a trained vision transformer to a budget of parameters: sine against truncated SVD, with calibration.

A dense ViT is trained once a seed. It is then converted to each budget, `convert(…, init="fit", budget=…)`: by plain
low rank (whose fit is the truncated SVD) and by the sine, both from the weights alone and calibrated by a batch of
training images. Errors are relative, the means over the converted layers; those of outputs are over test images, with
the inputs that a layer has in the dense network. Accuracies are of test images, right after the conversion and after
the same short fine-tuning, with the same sweep of its learning rates (`sweep.py`) chosen on validation images.

    python benchmarks/conversion_quality.py digits
    python benchmarks/conversion_quality.py PATH/TO/cifar10          (a folder with train/CLASS and test/CLASS)

Writes benchmarks/results/conversion_quality_DATA.{json,md}.
"""

import argparse
import copy
import functools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from classification_quality import make, read
from sweep import RESULTS, Case, Run, Sweep, settle, train
from timing import markdown
from torch import nn

from sinelr_lightning.datamodules.loaders import training_inputs
from sinelr_lightning.layers import Factorization, LowRank, SineLowRank, convert

METHODS: dict[str, tuple[Factorization, bool]] = {
    "truncated SVD": (LowRank(1), False),
    "sine": (SineLowRank(1), False),
    "low rank, calibrated": (LowRank(1), True),
    "sine, calibrated": (SineLowRank(1), True),
}
CONVERTED = ["*.mlp.*", "*.attention.*"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="digits, a data set of torchvision, or a folder of images")
    parser.add_argument("--budgets", type=int, nargs="+", default=[60, 45, 30, 20], help="% of the dense parameters")
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="of the fine-tuning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800, help="of the dense training, at a learning rate of 1e-3")
    parser.add_argument("--tuning", type=int, default=100, help="steps of the fine-tuning")
    parser.add_argument("--images", type=int, default=64, help="a step")
    parser.add_argument("--calibration", type=int, default=512, help="training images")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each on the CPU")
    return parser.parse_args()


def test_images(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The test images, as the network gets them, and their labels."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    images, labels = (torch.cat([batch[key] for batch in batches]) for key in ("images", "labels"))
    return images, labels


def train_dense(args: argparse.Namespace, seed: int, path: Path) -> None:
    settle(seed, args.device)
    task = make(args, ("dense", 0), 1e-3)
    scores = train(task, read(args), args.steps, args.device, ("acc1",), test="acc1")
    torch.save((task.state_dict(), scores["test_acc1"]), path)


def output_errors(dense: Any, converted: Any, names: list[str], images: torch.Tensor) -> list[float]:
    """‖(W − Ŵ)x‖/‖Wx‖ of each layer over the inputs x that it has in the dense network."""
    inputs: dict[str, torch.Tensor] = {}

    def note(name: str, layer: nn.Module, args: tuple[torch.Tensor]) -> None:
        inputs[name] = args[0]

    hooks = [dense.get_submodule(n).register_forward_pre_hook(functools.partial(note, n)) for n in names]
    with torch.no_grad():
        dense(images)
        for hook in hooks:
            hook.remove()
        errors = []
        for name, x in inputs.items():
            truth, ours = (x @ network.get_submodule(name).weight.mT for network in (dense, converted))
            errors.append(float((ours - truth).norm() / truth.norm()))
    return errors


def run(args: argparse.Namespace, folder: str, one: Run) -> dict[str, float]:
    """Convert, score, fine-tune and score again; everything else the same."""
    method, budget, lr, seed = one
    state, dense_accuracy = torch.load(Path(folder) / f"{seed}.pt")
    settle(seed, args.device)
    tuning = argparse.Namespace(**{**vars(args), "steps": args.tuning})
    data = read(tuning)
    data.setup("fit")
    task = make(tuning, ("dense", 0), lr)
    task.load_state_dict(state)
    network = task.network.to(args.device).eval()
    dense = copy.deepcopy(network)
    factory, calibrated = METHODS[method]
    inputs = training_inputs(data, args.calibration // args.images) if calibrated else []
    calibration = [images.to(args.device) for images in inputs] or None
    done = convert(network, factory, CONVERTED, init="fit", budget=budget / 100, calibration=calibration)
    test, labels = test_images(data)
    with torch.no_grad():
        guesses = torch.cat([network(part.to(args.device)).argmax(1).cpu() for part in test.split(256)])
    held_out = test[: args.calibration].to(args.device)
    return {
        "dense_acc1": dense_accuracy,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weight_error": statistics.mean(fit.weight_error for fit in done.fits.values()),
        "output_error": statistics.mean(output_errors(dense, network, done.converted, held_out)),
        "converted_acc1": (guesses == labels).double().mean().item(),
        **train(task, data, args.tuning, args.device, ("acc1",), test="acc1"),
    }


def table(sweep: Sweep, cases: list[Case]) -> str:
    columns = [
        "budget", "method", "parameters", "weight error", "output error", "accuracy, converted", "fine-tuned",
        "best lr",
    ]  # fmt: skip
    rows = []
    for case in cases:
        row = [f"{case[1]} %", case[0], f"{sweep.mean(case, 'parameters')[0]:,.0f}"]
        row += [f"{sweep.mean(case, name)[0]:.3f}" for name in ("weight_error", "output_error")]
        row += ["{:.2%} ± {:.2%}".format(*sweep.mean(case, name)) for name in ("converted_acc1", "test_acc1")]
        rows.append([*row, f"{sweep.best_lr(case):g}"])
    return markdown(columns, rows)


def main() -> None:
    args = arguments()
    args.classes = len(read(args).class_names)
    cases = [(method, budget) for budget in args.budgets for method in METHODS]
    name = Path(args.data).resolve().name.lower()
    setting = {k: v for k, v in vars(args).items() if k not in ("data", "classes", "jobs", "lrs", "seeds", "budgets")}
    sweep = Sweep(RESULTS / f"conversion_quality_{name}.json", setting, "acc1")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            train_dense(args, seed, Path(folder) / f"{seed}.pt")
        sweep.work(functools.partial(run, args, folder), cases, args.lrs, args.seeds, args.jobs)
    dense = statistics.mean({run["seed"]: run["dense_acc1"] for run in sweep.report["runs"]}.values())
    head = (
        f"{name}: dense ViT of {args.depth} blocks of {args.width}, test accuracy {dense:.2%}; {args.tuning} steps "
        f"of fine-tuning, {args.seeds} seeds, learning rates {sweep.rates()}"
    )
    sweep.publish(head, table(sweep, cases))


if __name__ == "__main__":
    main()
