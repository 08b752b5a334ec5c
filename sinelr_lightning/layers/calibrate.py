"""Second moments of the inputs of layers, measured over a few batches."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinelr_lightning.layers.evaluation import evaluating
from sinelr_lightning.layers.packed import PARTS, FactorizedAttention
from sinelr_lightning.layers.sites import Matrix, Site

__all__ = ["measure_moments"]

# Elements of unfolded patches held at once, 64 MB in float32.
_CHUNK = 2**24


class _Moments:
    """Sums of xxᵀ by matrix: n×n numbers each, no activation is kept."""

    def __init__(self) -> None:
        self.sums: dict[Matrix, Tensor] = {}
        self.rows: dict[Matrix, int] = {}

    def add(self, matrix: Matrix, rows: Tensor) -> None:
        rows = rows.detach().reshape(-1, matrix.weight.shape[1])
        rows = rows if rows.dtype == torch.float64 else rows.float()
        with torch.autocast(rows.device.type, enabled=False):
            product = rows.mT @ rows
        self.sums[matrix] = self.sums[matrix] + product if matrix in self.sums else product
        self.rows[matrix] = self.rows.get(matrix, 0) + len(rows)


@torch.no_grad()
def measure_moments(model: nn.Module, sites: Iterable[Site], batches: Iterable[Any]) -> None:
    """Set `moment` = E[xxᵀ] of each matrix to that of the inputs its layer gets; of a convolution, of its patches.

    The model runs in evaluation mode and without gradients, and is left as it was found. A layer that no batch
    reaches stays without a moment.

    Args:
        model: the model.
        sites: the layers to watch.
        batches: inputs of the model: a tensor each, a tuple or list of positional arguments, or a mapping of named
            ones. Tensors are moved to the model's device.

    Raises:
        ValueError: no batches, or inputs of a layer that are not finite.
    """
    moments, count = _Moments(), 0
    device = next(model.parameters()).device
    with _watched(model, sites, moments):
        for batch in batches:
            _call(model, batch, device)
            count += 1
    if not count:
        raise ValueError("calibration has no batches")
    for matrix, total in moments.sums.items():
        if not total.isfinite().all():
            raise ValueError(f"calibration: the input of {matrix.name} is not finite")
        matrix.moment = total / max(1, moments.rows[matrix])


def _call(model: nn.Module, batch: Any, device: torch.device) -> None:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        model(**{name: moved(value) for name, value in batch.items()})
    elif isinstance(batch, tuple | list):
        model(*map(moved, batch))
    else:
        model(moved(batch))


@contextmanager
def _watched(model: nn.Module, sites: Iterable[Site], moments: _Moments) -> Generator[None]:
    """The model in evaluation mode, with hooks that add up the moments."""
    attentions: dict[nn.Module, nn.MultiheadAttention] = {
        module.out_proj: module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and type(module) in (nn.MultiheadAttention, FactorizedAttention)
    }
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)  # the fused layer would pass the hooks by
        for site in sites:
            module = site.module
            if isinstance(module, nn.MultiheadAttention):
                hook = _projection_hook(site, moments)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            elif module in attentions:
                stack.enter_context(_output_projection(attentions[module], site.matrices[""], moments))
            else:
                hook = _layer_hook(site, moments)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _layer_hook(site: Site, moments: _Moments) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        for rows in _patches(module, x) if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else [x]:
            moments.add(site.matrices[""], rows)

    return hook


def _projection_hook(site: Site, moments: _Moments) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("query", "key", "value")
        inputs = dict(zip(names, args, strict=False)) | kwargs
        for part, name in zip(PARTS, names, strict=True):
            moments.add(site.matrices[part], inputs[name])

    return hook


@contextmanager
def _output_projection(attention: nn.MultiheadAttention, matrix: Matrix, moments: _Moments) -> Generator[None]:
    """Watches the input of `out_proj`, which attention never calls but whose weight it reads.

    With the identity in its place attention gives that input out; the true projection follows in a hook.
    """
    layer = attention.out_proj
    true = dict(layer._parameters)
    identity = nn.Parameter(torch.eye(layer.in_features).to(layer.weight), requires_grad=False)

    def before(*_: Any) -> None:
        layer._parameters.update({"weight": identity, "bias": None})

    def after(module: nn.Module, args: Any, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        layer._parameters.update(true)
        mixed, weights = output
        moments.add(matrix, mixed)
        return F.linear(mixed, layer.weight, layer.bias), weights

    handles = attention.register_forward_pre_hook(before), attention.register_forward_hook(after)
    try:
        yield
    finally:
        layer._parameters.update(true)
        for handle in handles:
            handle.remove()


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Iterator[Tensor]:
    """The inputs that a convolution's kernel meets, as rows [pixels, in·k…], some samples at a time."""
    dims = len(layer.kernel_size)
    if x.ndim == dims + 1:
        x = x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for i, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + i, dilation * (size - 1) + 1, stride)[..., ::dilation]  # a view: windows at the end
    samples = max(1, _CHUNK // max(1, x[0].numel()))
    for part in x.split(samples):
        # [B, C, out…, k…] → [B, out…, C, k…]
        yield part.movedim(1, 1 + dims).flatten(1 + dims).flatten(0, dims)
