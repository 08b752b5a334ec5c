"""Rays per second of training and of rendering: dense against low rank and sine, in one interleaved run.

    python benchmarks/nerf_speed.py [--device cuda] [--threads 2] [--out FILE.md]

The field is the paper's (8 layers of 256) with proposal sampling; a step is forward, backward and the optimiser. Each
figure is the fastest of the repeats. Sine weights are measured as they are at the start of training, and with the
phases that training leaves at rank 1 (three times the first): the nodes of the thin way follow the largest phase.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sinelr_lightning.files import atomic_path
from sinelr_lightning.layers import Dense, FactorizedLinear, LinearFactory, LowRank, SineLowRank, cached_weights
from sinelr_lightning.tasks.ray_renderer import RayRenderer, Rays

CASES: dict[str, tuple[LinearFactory, float]] = {
    "dense": (Dense(), 1),
    "low rank, k = 1": (LowRank(1), 1),
    "low rank, k = 5": (LowRank(5), 1),
    "sine, k = 1": (SineLowRank(1), 1),
    "sine, k = 1, phases × 3": (SineLowRank(1), 3),
    "sine, k = 5": (SineLowRank(5), 1),
}


def rays(count: int, device: str) -> Rays:
    directions = torch.nn.functional.normalize(torch.randn(count, 3, device=device), dim=-1)
    return Rays(torch.zeros_like(directions), directions, directions, 0.0, 1.0, None)


def build(factory: LinearFactory, phases: float, device: str) -> RayRenderer:
    renderer = RayRenderer(factory, "proposal", 48, 24, depth=8, width=256, skips=(4,)).to(device)
    with torch.no_grad():
        for layer in renderer.modules():
            if isinstance(layer, FactorizedLinear):
                layer.get_parameter("U").mul_(phases)
    return renderer


def step(renderer: RayRenderer, batch: Rays) -> Callable[[], None]:
    optimizer = torch.optim.Adam(renderer.parameters(), lr=0.0)
    generator = torch.Generator(batch.origins.device)

    def run() -> None:
        out = renderer(batch, generator)
        assert out.interlevel is not None
        (out.colour.square().mean() + out.interlevel).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def render(renderer: RayRenderer, batch: Rays) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), cached_weights(renderer):
            renderer(batch)

    return run


def fastest(works: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rays", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "nerf_speed.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batch = rays(args.rays, args.device)
    networks = {name: build(*case, args.device) for name, case in CASES.items()}
    training = fastest({n: step(r, batch) for n, r in networks.items()}, args.repeats, args.device)
    rendering = fastest({n: render(r, batch) for n, r in networks.items()}, args.repeats, args.device)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    lines = [
        f"8 layers of 256, 48 + 24 samples, {args.rays} rays a step; {machine}, torch {torch.__version__}; "
        f"fastest of {args.repeats} interleaved runs.\n",
        "| weights | training, rays/s | over dense | rendering, rays/s | over dense |",
        "|---|---|---|---|---|",
    ]
    for name in networks:
        train, show = training[name], rendering[name]
        lines.append(
            f"| {name} | {args.rays / train:,.0f} | {training['dense'] / train:.2f}× "
            f"| {args.rays / show:,.0f} | {rendering['dense'] / show:.2f}× |"
        )
    text = "\n".join(lines) + "\n"
    with atomic_path(args.out) as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
