"""`sinelr rank`: what frequency and rank do to a sine's weight, measured and as theory expects."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinelr_lightning.errors import UserError

if TYPE_CHECKING:
    from sinelr_lightning.analysis.frequency import AtFrequency
    from sinelr_lightning.analysis.phases import Sine

__all__ = ["rank"]

GRID = tuple(2.0**half for half in (-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4))  # times the recommended ω
CURVES = 8  # layers at most whose curves are drawn
LEARNING_RATE = 1e-3  # to which the multiplier is given


@dataclass(frozen=True)
class Layer:
    """A sine layer to look at; `alike` layers of the same kind stand behind it."""

    name: str
    sine: "Sine"
    trained: bool
    alike: int = 1

    @property
    def size(self) -> str:
        """As in 768×3072, k = 8."""
        return f"{len(self.sine.u)}×{len(self.sine.v)}, k = {self.sine.u.shape[1]}"


def rank(
    shape: str | None = None,
    model: str | None = None,
    ckpt_path: str | None = None,
    rank: int = 8,
    phase_spread: float = 2.0,
    frequencies: list[float] | None = None,
    out: str = "rank.png",
    logdir: str | None = None,
) -> None:
    """Measure rank and phases of sine low-rank weights over the frequency, and recommend one, layer by layer.

    Give one of shape, model and ckpt_path. The table has, at each frequency ω, the spread of the phases in radians,
    the stable rank (measured, and as theory expects of the spread), the numerical rank (of 1024 rows and columns at
    most), the columns of the thin form and the error of the phases in bfloat16.

    Args:
        shape: Size of one weight, outputs × inputs: 768x3072.
        model: A model whose layers would become sines, those that `convert` takes: a name of torchvision, timm/NAME,
            or a Hugging Face folder or name.
        ckpt_path: A checkpoint or a run folder with trained sine layers or adapters; last or best for the newest run.
        rank: Rank k of the sines that shape and model are looked at with.
        phase_spread: Radians that the recommended frequency spreads the phases by.
        frequencies: Frequencies to look at; by default from 1/16 of the recommended one to 16 times it.
        out: PNG file of the curves.
        logdir: Folder in which TensorBoard finds the same curves, over 1000·ω.
    """
    if [shape, model, ckpt_path].count(None) != 2:
        raise UserError("give one of --shape 768x3072, --model NAME and --ckpt_path RUN")
    if rank < 1 or not phase_spread > 0:
        raise UserError(f"rank must be at least 1 and phase_spread positive, got {rank} and {phase_spread}")
    if frequencies is not None and not (frequencies and all(0 < omega < float("inf") for omega in frequencies)):
        raise UserError(f"frequencies must be positive numbers, got {frequencies}")
    if Path(out).suffix.lower() != ".png":
        raise UserError(f"{out}: the curves are written as .png")
    if ckpt_path is not None:
        layers = _of_checkpoint(ckpt_path)
    elif shape is not None:
        layers = [_fresh(shape, *_parsed(shape), rank)]
    else:
        layers = _of_model(str(model), rank)
    _report(layers, phase_spread, frequencies, Path(out), logdir)


# -------------------------------------------------------------------------------------------- what is looked at


def _parsed(shape: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\s*[x×,]\s*(\d+)", shape.strip())
    if found is None or not all(int(size) for size in found.groups()):
        raise UserError(f"shape {shape!r} is no size: give outputs and inputs as 768x3072")
    return int(found[1]), int(found[2])


def _fresh(name: str, m: int, n: int, rank: int) -> Layer:
    import torch

    from sinelr_lightning.analysis.phases import Sine
    from sinelr_lightning.layers import SineLowRank

    torch.manual_seed(0)
    try:
        u, v = SineLowRank(rank).factors(m, n).values()
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    return Layer(name, Sine(SineLowRank(rank).omega(n), u, v), trained=False)


def _of_model(name: str, rank: int) -> list[Layer]:
    """One sine for each size among the weights that `convert` takes."""
    from sinelr_lightning.layers import SineLowRank
    from sinelr_lightning.layers.sites import find_sites

    shapes: dict[tuple[int, int], set[str]] = {}
    for site in find_sites(_loaded(name), SineLowRank(rank)).values():
        if site.refusal() is None:
            for matrix in site.matrices.values():
                m, n = matrix.weight.shape
                shapes.setdefault((m, n), set()).add(matrix.name)  # a shared module has several names, and one matrix
    if not shapes:
        raise UserError(f"model {name} has no layer that a sine of rank {rank} would make smaller")
    return [replace(_fresh(min(names), *shape, rank), alike=len(names)) for shape, names in sorted(shapes.items())]


def _loaded(name: str) -> Any:
    from sinelr_lightning.models.networks import image_network
    from sinelr_lightning.tasks.pretrained import PACKAGED

    if name not in PACKAGED and not Path(name).exists() and ("/" not in name or name.startswith("timm/")):
        try:
            return image_network(name, classes=1000)
        except (ValueError, ModuleNotFoundError) as error:
            raise UserError(f"model: {error}; or a folder of a Hugging Face model") from error
    import torch

    from sinelr_lightning.tasks.pretrained import load_model, need_language_packages

    need_language_packages()
    return load_model(name, "AutoModel", torch.float32)[0]


def _of_checkpoint(ckpt_path: str) -> list[Layer]:
    from sinelr_lightning.analysis import sines
    from sinelr_lightning.runs import load_task, resolve_checkpoint

    checkpoint = resolve_checkpoint(ckpt_path)
    found = [Layer(name, sine, trained=True) for name, sine in sines(load_task(checkpoint))]
    if not found:
        raise UserError(f"{checkpoint} holds no sine layer: train one with --model.linear SineLowRank")
    return found


# ------------------------------------------------------------------------------------------------ what is said


def _report(
    layers: list[Layer], spread: float, frequencies: list[float] | None, out: Path, logdir: str | None
) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from sinelr_lightning.analysis.frequency import measure, recommended_frequency
    from sinelr_lightning.progress import progress_bar

    console = Console(highlight=False)
    best = {layer.name: recommended_frequency(layer.sine, spread) for layer in layers}
    curves: dict[str, list[AtFrequency]] = {}
    with progress_bar() as show:
        for number, layer in enumerate(layers):
            show(layer.name, number, len(layers))
            if number < CURVES and best[layer.name] < float("inf"):
                omegas = frequencies or [best[layer.name] * factor for factor in GRID]
                curves[layer.name] = measure(layer.sine, sorted(omegas))
    figures = ["ω", "spread, rad", "stable rank", "theory", "numerical", "columns", "bf16, rad"]
    if len(layers) == 1:
        (layer,) = layers
        table = Table(*figures, title=f"{layer.name}: {layer.size}")
        for point in curves.get(layer.name) or measure(layer.sine, [layer.sine.omega]):
            table.add_row(*_cells(point))
    else:
        table = Table(Column("layer", overflow="fold"), "size", *figures, padding=0)  # 80 columns must do
        for layer in layers:
            for point in measure(layer.sine, sorted(frequencies or [layer.sine.omega])):
                table.add_row(_short(layer), layer.size, *_cells(point))
    console.print(table)
    for layer in layers:
        console.print(_advice(layer, best[layer.name], spread))
    if curves:
        _draw(layers, curves, best, out)
        some = f" of the first {CURVES} layers" if len(layers) > CURVES else ""
        console.print(f"curves{some} in {out}")
    if logdir is not None:
        _log(curves, logdir)
        console.print(f"tensorboard --logdir {logdir}")


def _name(layer: Layer) -> str:
    return layer.name if layer.alike == 1 else f"{layer.name} (and {layer.alike - 1} more)"


def _short(layer: Layer) -> str:
    """As much of its name as fits into a table."""
    return ".".join(layer.name.split(".")[-2:])


def _cells(point: "AtFrequency") -> list[str]:
    part, phases = point.spectrum, point.phases
    least = "≥ " if part.numerical_rank == min(part.part) else ""
    return [
        f"{point.omega:.4g}",
        f"{phases.spread:.2f}",
        f"{part.stable_rank:.1f}",
        f"{point.expected:.1f}",
        f"{least}{part.numerical_rank}",
        "-" if phases.columns is None else str(phases.columns),
        f"{phases.rounding:.3f}",
    ]


def _advice(layer: Layer, best: float, spread: float) -> str:
    from sinelr_lightning.analysis.frequency import USUAL_STEP, phase_step

    if best == float("inf"):
        return f"{_name(layer)}: its factors are zero, so there is no phase to go by: train it first"
    step = phase_step(replace(layer.sine, omega=best), LEARNING_RATE)
    if layer.trained:
        what = f"the phases of the trained factors then spread {spread:g} rad"
    else:
        what = f"the phases start with a spread of {spread:g} rad"
    if layer.sine.adapter:
        what = f"only then do they spread {spread:g} rad; at {layer.sine.omega:.4g} it is a low-rank update"
    return (
        f"{_name(layer)}: frequency {best:.4g}, lr_multiplier {USUAL_STEP / step:.2g} at lr {LEARNING_RATE:g}: "
        f"{what}, and a step of Adam moves them by {USUAL_STEP:g} rad"
    )


def _draw(layers: list[Layer], curves: "dict[str, list[AtFrequency]]", best: dict[str, float], out: Path) -> None:
    from matplotlib.figure import Figure

    from sinelr_lightning.files import user_file

    figure = Figure(figsize=(11, 4.5), dpi=130)
    left, right = figure.subplots(1, 2)
    for layer in layers:
        points = curves.get(layer.name)
        if points is None:
            continue
        omegas = [point.omega for point in points]
        (line,) = left.plot(omegas, [point.spectrum.stable_rank for point in points], marker="o", markersize=3)
        line.set_label(f"{_short(layer)}, {layer.size}")
        left.plot(omegas, [point.expected for point in points], linestyle=":", color=line.get_color())
        left.axvline(best[layer.name], color=line.get_color(), alpha=0.3)
        near = min(points, key=lambda point: abs(point.omega - best[layer.name]))
        values = near.spectrum.values
        (shown,) = right.plot(range(1, len(values) + 1), values, color=line.get_color())
        shown.set_label(f"{_short(layer)}, ω = {near.omega:.3g}")
    left.set(xscale="log", yscale="log", xlabel="frequency ω", ylabel="stable rank (dotted: theory)")
    right.set(xscale="log", yscale="log", ylim=(1e-7, 1.5), xlabel="number", ylabel="singular value over the largest")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=7, loc="lower right")
    right.legend(fontsize=7, loc="lower left")
    left.set_title("vertical: recommended frequency", fontsize=9)
    figure.tight_layout()
    with user_file(out) as temporary:
        figure.savefig(temporary)


def _log(curves: "dict[str, list[AtFrequency]]", logdir: str) -> None:
    from torch.utils.tensorboard import SummaryWriter

    try:
        with SummaryWriter(logdir) as writer:
            for name, points in curves.items():
                for point in points:
                    at = round(1000 * point.omega)  # a step is a whole number, ω may be below 1
                    writer.add_scalar(f"rank/stable/{name}", point.spectrum.stable_rank, at)
                    writer.add_scalar(f"rank/expected/{name}", point.expected, at)
                    writer.add_scalar(f"rank/numerical/{name}", point.spectrum.numerical_rank, at)
                    writer.add_scalar(f"rank/phase_spread/{name}", point.phases.spread, at)
    except OSError as error:
        raise UserError(f"logdir {logdir} cannot be written: {error.strerror or error}") from error
