"""Images per second of vision transformers whose feed-forward layers are converted, against dense ones.

    python benchmarks/throughput.py [--device cuda --autocast] [--threads 2] [--out FILE.md]

First the feed-forward block alone (torchvision's, of ViT-S and ViT-B, on the 197 tokens of each image), then the
whole network. A training step is forward and backward; the optimiser's is left out, which favours dense. Inference
is as trained (`sine`), with each weight formed once (`folded`) and as two thin layers where these are cheaper
(`thin`, tolerance 1e-4). Everything takes turns in one run, the fastest turn counts.
"""

import argparse
import copy
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from timing import Setting, fastest, machine, table
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import MLPBlock

from sinelr_lightning.files import atomic_path
from sinelr_lightning.layers import LinearFactory, LowRank, SineLowRank, convert, fold

WIDTHS = {"ViT-S": (384, 6), "ViT-B": (768, 12)}  # features and heads; 12 blocks of each
TOKENS = 197


def block(width: int, factory: LinearFactory | None, device: str) -> nn.Module:
    module = MLPBlock(width, 4 * width, 0.0)
    if factory is not None:
        convert(module, factory)
    return module.to(device)


def whole(width: int, heads: int, factory: LinearFactory | None, device: str) -> nn.Module:
    network = VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=heads, hidden_dim=width, mlp_dim=4 * width
    )
    if factory is not None:
        convert(network, factory, include=["*.mlp.*"])
    return network.to(device)


def train(module: nn.Module, x: Tensor, setting: Setting) -> None:
    module.zero_grad()
    with setting.precision():
        loss = module(x).square().mean()
    loss.backward()


def infer(module: nn.Module, x: Tensor, setting: Setting) -> None:
    with torch.inference_mode(), setting.precision():
        module(x)


def measure(
    make: Callable[[LinearFactory | None], nn.Module], x: Tensor, ranks: list[int], setting: Setting
) -> list[list[str]]:
    """Rows of the table: images a second of training and inference, and their ratios to dense."""
    networks = {"dense": make(None)}
    for rank in ranks:
        networks[f"low rank, k = {rank}"] = make(LowRank(rank))
        networks[f"sine, k = {rank}"] = make(SineLowRank(rank))
    served = {name: network.eval() for name, network in networks.items()}
    for rank in ranks:
        for form, tolerance in (("folded", None), ("thin", 1e-4)):
            sine = copy.deepcopy(networks[f"sine, k = {rank}"])
            served[f"sine, k = {rank}, {form}"] = fold(sine, tolerance)
    trained = fastest({n: functools.partial(train, m.train(), x, setting) for n, m in networks.items()}, setting)
    inferred = fastest({n: functools.partial(infer, m.eval(), x, setting) for n, m in served.items()}, setting)
    rows = []
    for name in served:
        row = [name]
        for times in (trained, inferred):
            if name in times:
                row += [f"{1e3 * len(x) / times[name]:,.0f}", f"{times['dense'] / times[name]:.2f}×"]
            else:
                row += ["", ""]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--autocast", action="store_true", help="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=16, help="a step of the block")
    parser.add_argument("--whole_images", type=int, default=4, help="a step of the network, 0 to leave it out")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 20, 100])
    parser.add_argument("--seconds", type=float, default=60, help="at most for each half of a table")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "throughput.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    setting = Setting(args.device, args.autocast, args.seconds)
    columns = ["weights", "training, images/s", "over dense", "inference, images/s", "over dense"]
    parts = []
    for name, (width, heads) in WIDTHS.items():
        tokens = torch.randn(args.images, TOKENS, width, device=args.device)
        rows = measure(functools.partial(block, width, device=args.device), tokens, args.ranks, setting)
        parts.append(table(f"Feed-forward block of {name}, {args.images} images of {TOKENS} tokens", columns, rows))
        if args.whole_images:
            images = torch.randn(args.whole_images, 3, 224, 224, device=args.device)

            def network(factory: LinearFactory | None, width: int = width, heads: int = heads) -> nn.Module:
                return whole(width, heads, factory, args.device)

            rows = measure(network, images, args.ranks, setting)
            parts.append(table(f"{name}/16, {args.whole_images} images of 224 × 224", columns, rows))
    precision = "bfloat16 autocast" if args.autocast else "float32"
    text = "\n".join([*parts, f"{precision}, {machine(setting)}"])
    with atomic_path(args.out) as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
