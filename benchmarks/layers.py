"""Cost of the sine layer beside a dense and a low-rank layer: time and memory of a training step, and inference.

    python benchmarks/layers.py --out layers.md            # everything, an hour on two CPU cores
    python benchmarks/layers.py --quick                    # two sizes, half a minute
    python benchmarks/layers.py --device cuda --out layers_cuda.md

Every figure is the fastest of 15 runs in which the compared layers take turns, so that a busy machine slows all of
them alike; a case stops early, after three turns at least, once it has used `--seconds`.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import Setting, fastest, machine, peak, table
from torch import Tensor, nn

from sinelr_lightning.layers import FactorizedLinear, LowRank, SineLowRank, cached_weights, fold, sine_ops
from sinelr_lightning.layers.fold import ThinLinear
from sinelr_lightning.layers.select import Nodes, _largest_phases, nodes_for_phases, thin_nodes

SHAPES = [(256, 256), (512, 512), (1024, 1024), (4096, 4096), (768, 3072)]  # in, out
BATCHES = [512, 2048, 8192, 65536]
RANKS = [1, 2, 8]
LARGEST = 2**26  # elements of an activation


# -------------------------------------------------------------------------------------------------- training step

Forward = Callable[[Tensor], Tensor]


def forced(layer: FactorizedLinear, nodes: Nodes | None) -> Forward:
    """The sine layer by one way: thin with those nodes, or formed for None."""
    sine = layer.factorization
    assert isinstance(sine, SineLowRank)
    constants = sine.omega(layer.in_features), sine.divisor(layer.in_features)

    def forward(x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            if nodes is None:
                return sine_ops._Formed.apply(x, *layer.factors(), layer.bias, *constants)
            return sine_ops._Thin.apply(x, *layer.factors(), layer.bias, *constants, nodes)

    return forward


def plain(layer: FactorizedLinear) -> Forward:
    """The sine layer as one writes it down: everything left to autograd."""
    sine = layer.factorization
    assert isinstance(sine, SineLowRank)
    omega, gain = sine.omega(layer.in_features), sine.divisor(layer.in_features)
    u, v = layer.factors()
    return lambda x: F.linear(x, torch.sin(omega * (u @ v.t())) / gain, layer.bias)


def step(forward: Forward, x: Tensor, grad: Tensor, parameters: Sequence[Tensor], setting: Setting) -> None:
    with setting.precision():
        y = forward(x)
    torch.autograd.grad(y, [x, *parameters], grad.to(y.dtype))


def kept(forward: Forward, x: Tensor, parameters: Sequence[Tensor], setting: Setting) -> float:
    """MB kept from forward to backward beyond the input and the parameters."""
    present = {t.untyped_storage().data_ptr() for t in (x, *parameters)}
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in present:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), setting.precision():
        y = forward(x)
    del y
    return sum(sizes.values()) / 1e6


def training_row(shape: tuple[int, int], batch: int, rank: int, setting: Setting) -> list[str]:
    n, m = shape
    torch.manual_seed(0)
    family = SineLowRank(rank)
    sine = family(n, m).to(setting.device)
    dense, low_rank = nn.Linear(n, m).to(setting.device), LowRank(rank)(n, m).to(setting.device)
    dtype = torch.bfloat16 if setting.autocast else torch.float32
    u, v = sine.factors()
    nodes = thin_nodes(u, v, family.omega(n), dtype)
    chosen = thin_nodes(u, v, family.omega(n), dtype, batch)
    ways: dict[str, tuple[Forward, nn.Module]] = {
        "chosen": (sine, sine),
        "formed": (forced(sine, None), sine),
        "plain": (plain(sine), sine),
        "dense": (dense, dense),
        "low rank": (low_rank, low_rank),
    }
    if nodes is not None:
        ways["thin"] = (forced(sine, nodes), sine)
    x = torch.randn(batch, n, device=setting.device, requires_grad=True)
    grad = torch.randn(batch, m, device=setting.device)

    def runner(name: str) -> Callable[[], None]:
        forward, module = ways[name]
        return lambda: step(forward, x, grad, list(module.parameters()), setting)

    ms = fastest({name: runner(name) for name in ways}, setting)
    memory = {name: kept(ways[name][0], x, list(ways[name][1].parameters()), setting) for name in ("chosen", "plain")}
    row = [f"{n} → {m}", f"{batch:,}", str(rank), "formed" if chosen is None else f"thin, {chosen.columns(rank)}"]
    row += [f"{ms[name]:.2f}" if name in ms else "–" for name in TIMED]
    row += [f"{ms[name] / ms['chosen']:.2f}" for name in ("plain", "dense", "low rank")]
    row += [f"{memory[name]:.2f}" for name in ("chosen", "plain")]
    if setting.device == "cuda":
        row += [f"{peak(runner(name)):.0f}" for name in ("chosen", "plain", "dense", "low rank")]
    return row


TIMED = ["chosen", "formed", "thin", "plain", "dense", "low rank"]


def training(cases: list[tuple[tuple[int, int], int, int]], setting: Setting) -> str:
    columns = ["in → out", "batch", "rank", "chosen way (columns)"]
    columns += [f"{name}, ms" for name in TIMED]
    columns += [f"{name} / chosen" for name in ("plain", "dense", "low rank")]
    columns += [f"kept by {name}, MB" for name in ("chosen", "plain")]
    if setting.device == "cuda":
        columns += [f"peak of {name}, MB" for name in ("chosen", "plain", "dense", "low rank")]
    title = f"Training step, {'bfloat16 autocast' if setting.autocast else 'float32'}"
    note = (
        "\nForward and backward with the gradients of input, factors and bias. *Chosen* is the layer as it decides by"
        "\nitself, *plain* is `F.linear(x, sin(ω·U@V.T)/g)` under autograd, *dense* `nn.Linear`, *low rank* `LowRank`"
        "\nof the same rank. *Kept* counts what lives from forward to backward beyond the input and the parameters.\n"
    )
    return table(title, columns, [training_row(*case, setting) for case in cases]) + note


# ------------------------------------------------------------------------------------------------------ inference


def inference_row(shape: tuple[int, int], batch: int, rank: int, setting: Setting) -> list[str]:
    n, m = shape
    torch.manual_seed(0)
    layer = nn.Sequential(SineLowRank(rank)(n, m)).to(setting.device).eval()
    cached, thin = copy.deepcopy(layer), fold(copy.deepcopy(layer), tolerance=1e-4)
    folded, dense = fold(copy.deepcopy(layer)), nn.Sequential(nn.Linear(n, m)).to(setting.device)
    x = torch.randn(batch, n, device=setting.device)
    models = {"layer": layer, "cached": cached, "fold(1e-4)": thin, "fold()": folded, "nn.Linear": dense}
    with torch.inference_mode(), setting.precision(), cached_weights(cached):
        ms = fastest({name: lambda model=model: model(x) for name, model in models.items()}, setting)
    pair = next((module for module in thin.modules() if isinstance(module, ThinLinear)), None)
    width = "dense" if pair is None else str(pair.first.out_features)
    times = [f"{ms[name]:.2f}" for name in SERVED]
    return [
        f"{n} → {m}",
        f"{batch:,}",
        str(rank),
        width,
        *times,
        *(f"{ms['nn.Linear'] / ms[name]:.2f}" for name in SERVED[:3]),
    ]


SERVED = ["layer", "cached", "fold(1e-4)", "fold()", "nn.Linear"]


def inference(cases: list[tuple[tuple[int, int], int, int]], setting: Setting) -> str:
    columns = ["in → out", "batch", "rank", "columns of fold(1e-4)", *(f"{name}, ms" for name in SERVED)]
    columns += [f"nn.Linear / {name}" for name in SERVED[:3]]
    title = f"Inference, {'bfloat16 autocast' if setting.autocast else 'float32'}"
    return table(title, columns, [inference_row(*case, setting) for case in cases])


# ----------------------------------------------------------------------------------------------------- break-even


def crossing(shape: tuple[int, int], batch: int, setting: Setting) -> list[str]:
    """The node count at which thin costs what formed costs, by a line between the two counts about it."""
    n, m = shape
    layer = SineLowRank(1)(n, m).to(setting.device)
    equal_work = m * n / (m + n)
    counts = sorted({max(8, 8 * round(share * equal_work / 8)) for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1)})
    x = torch.randn(batch, n, device=setting.device, requires_grad=True)
    grad = torch.randn(batch, m, device=setting.device)
    parameters = list(layer.parameters())

    def runner(nodes: int | None) -> Callable[[], None]:
        forward = forced(layer, None if nodes is None else Nodes(nodes, nodes))
        return lambda: step(forward, x, grad, parameters, setting)

    ms = fastest({"formed": runner(None), **{str(r): runner(r) for r in counts}}, setting)
    gains = [ms["formed"] / ms[str(r)] for r in counts]
    slower = next((i for i, gain in enumerate(gains) if gain < 1), None)
    if slower is None:
        at = f"above {counts[-1] / equal_work:.2f}"
    elif slower == 0:
        at = f"below {counts[0] / equal_work:.2f}"
    else:
        share = (gains[slower - 1] - 1) / (gains[slower - 1] - gains[slower])
        at = f"{(counts[slower - 1] + share * (counts[slower] - counts[slower - 1])) / equal_work:.2f}"
    pairs = ", ".join(f"{r}: {gain:.2f}" for r, gain in zip(counts, gains, strict=True))
    return [f"{n} → {m}", f"{batch:,}", f"{equal_work:.0f}", at, pairs]


def break_even(cases: list[tuple[tuple[int, int], int]], setting: Setting) -> str:
    columns = ["in → out", "batch", "mn/(m + n)", "crossing r/(mn/(m + n))", "nodes r: formed / thin"]
    return table("Break-even of thin and formed", columns, [crossing(*case, setting) for case in cases])


# --------------------------------------------------------------------------------------------------------- rank 2


def worst_error(forward: Forward, layer: FactorizedLinear, x: Tensor, grad: Tensor) -> float:
    """Largest relative error (Frobenius norm) among the output and all gradients, beside the same in float64."""

    def results(forward: Forward, x: Tensor, parameters: list[Tensor], grad: Tensor) -> list[Tensor]:
        y = forward(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *parameters], grad)]

    wide = copy.deepcopy(layer).double()
    ours = results(forward, x, list(layer.parameters()), grad)
    x = x.detach().double().requires_grad_()
    exact = results(plain(wide), x, list(wide.parameters()), grad.double())
    return max(((a - e).norm() / e.norm()).item() for a, e in zip(ours, exact, strict=True))


def rank_two_row(shape: tuple[int, int], batch: int, spread: float, setting: Setting) -> list[str]:
    n, m = shape
    torch.manual_seed(0)
    layer = SineLowRank(2, phase_spread=spread)(n, m).to(setting.device)
    sine = layer.factorization
    assert isinstance(sine, SineLowRank)
    phases = _largest_phases(*layer.factors(), sine.omega(n))
    nodes = nodes_for_phases(*phases, torch.float32, rank=2)
    chosen = thin_nodes(*layer.factors(), sine.omega(n), torch.float32, batch)
    ways = {"formed": forced(layer, None), "thin": forced(layer, nodes)}
    x = torch.randn(batch, n, device=setting.device, requires_grad=True)
    grad = torch.randn(batch, m, device=setting.device)
    parameters = list(layer.parameters())

    def runner(name: str) -> Callable[[], None]:
        return lambda: step(ways[name], x, grad, parameters, setting)

    ms = fastest({name: runner(name) for name in ways}, setting)
    few = x.detach()[:256].requires_grad_()
    errors = [f"{worst_error(ways[name], layer, few, grad[:256]):.0e}" for name in ("formed", "thin")]
    times = [f"{ms['formed']:.2f}", f"{ms['thin']:.2f}", f"{ms['formed'] / ms['thin']:.2f}"]
    counts = [f"{nodes.each}, {nodes.total}", str(nodes.columns(2))]
    way = "formed" if chosen is None else "thin"
    return [f"{n} → {m}", f"{batch:,}", f"{spread:g}", f"{phases[1]:.1f}", *counts, *times, way, *errors]


def rank_two(cases: list[tuple[tuple[int, int], int]], setting: Setting) -> str:
    columns = ["in → out", "batch", "phase spread, rad", "largest phase, rad", "nodes", "columns"]
    columns += ["formed step, ms", "thin step, ms", "formed / thin", "chosen", "error of formed", "error of thin"]
    note = (
        "\nForward and backward with the gradients of input, factors and bias, making the thin factors included."
        "\n*Error*: the largest relative one (Frobenius norm) among the output and these gradients, beside float64.\n"
    )
    rows = [rank_two_row(*case, spread, setting) for case in cases for spread in (2.0, 4.0)]
    return table("Thin at rank 2", columns, rows) + note


# ----------------------------------------------------------------------------------------------------------- main


def shape(text: str) -> tuple[int, int]:
    n, m = text.split("x")
    return int(n), int(m)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two sizes and five turns, to see that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", type=shape, nargs="+", default=SHAPES, help="INxOUT, such as 768x3072")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="rows of x")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="time after which a case stops early")
    parser.add_argument("--out", type=Path, help="Markdown file to write besides printing")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shapes, batches, ranks, turns = arguments.shapes, arguments.batches, RANKS, 15
    if arguments.quick:
        shapes, batches, ranks, turns = [(256, 256), (256, 512)], [512], [1, 2], 5
    pairs = [(s, b) for s in shapes for b in batches if b * max(s) <= LARGEST]
    cases = [(s, b, r) for s, b in pairs for r in ranks]
    typical = [(s, b) for s, b in pairs if b in (batches[0], 2048)]
    exact = Setting(arguments.device, False, arguments.seconds, turns)
    sections = [lambda: training(cases, exact), lambda: inference(cases, exact)]
    if arguments.device == "cuda":
        half = Setting(arguments.device, True, arguments.seconds, turns)
        sections += [lambda: training(cases, half), lambda: inference(cases, half), lambda: break_even(typical, half)]
    sections += [lambda: break_even(typical, exact), lambda: rank_two(typical, exact)]
    parts = ["# Layers\n", machine(exact)]
    print("\n".join(parts))
    for section in sections:
        parts.append(section())
        print(parts[-1], flush=True)
        if arguments.out:
            arguments.out.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
