"""Rays per second of training and of rendering: dense against low rank and sine, in one interleaved run.

    python benchmarks/nerf_speed.py [--device cuda] [--threads 2] [--out FILE.md]

The field is the paper's (8 layers of 256) with proposal sampling; a step is forward, backward and the optimiser. Each
figure is the fastest of 15 turns. Sine weights are measured as they are at the start of training, and with the
phases that training leaves at rank 1 (three times the first): the nodes of the thin way follow the largest phase.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from timing import Setting, fastest, machine

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
    """A whole training step: forward, backward and the optimiser, which leaves the weights as they are."""
    optimizer = torch.optim.Adam(renderer.parameters(), lr=0.0)
    generator = torch.Generator(batch.origins.device)

    def run() -> None:
        out = renderer(batch, generator)
        loss = out.colour.square().mean()
        if out.coarse_colour is not None:
            loss = loss + out.coarse_colour.square().mean()
        if out.interlevel is not None:
            loss = loss + out.interlevel
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def render(renderer: RayRenderer, batch: Rays) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), cached_weights(renderer):
            renderer(batch)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rays", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=90, help="at most for each of the two tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "nerf_speed.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batch = rays(args.rays, args.device)
    networks = {name: build(*case, args.device) for name, case in CASES.items()}
    setting = Setting(args.device, autocast=False, seconds=args.seconds)
    training = fastest({n: step(r, batch) for n, r in networks.items()}, setting)
    rendering = fastest({n: render(r, batch) for n, r in networks.items()}, setting)
    lines = [
        f"8 layers of 256, 48 + 24 samples, {args.rays} rays a step; {machine(setting)}",
        "| weights | training, rays/s | over dense | rendering, rays/s | over dense |",
        "|---|---|---|---|---|",
    ]
    for name in networks:
        train, show = training[name], rendering[name]
        lines.append(
            f"| {name} | {1e3 * args.rays / train:,.0f} | {training['dense'] / train:.2f}× "
            f"| {1e3 * args.rays / show:,.0f} | {rendering['dense'] / show:.2f}× |"
        )
    text = "\n".join(lines) + "\n"
    with atomic_path(args.out) as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
