"""The one place that decides how a sine weight is computed: thin where that is cheaper, else formed.

At rank 1, sin(ω·u_i·v_j) is a smooth odd function of v_j, and r nodes reproduce it to rounding; r depends on the
largest phase Φ = ω·max|u|·max|v| alone. Thin costs r(m + n) where formed costs m·n.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["nodes_for_phase", "thin_nodes"]

# Largest error of sin at the chosen nodes, by the type in which the products run: each is near that type's own
# rounding, so more nodes would buy nothing.
_TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}
# Multiples of eight fill the vector units: 8 nodes ran faster than 5 on AVX-512 (benchmarks/layers.py).
_MULTIPLE = 8
# Share of the break-even r = m·n/(m + n) up to which thin won in benchmarks/layers.py.
_BREAK_EVEN = 0.6
# A phase bound that reaches the host late is allowed to have grown by this factor since it was measured.
_MARGIN = 1.15


@lru_cache(maxsize=4096)
def _nodes(phase: float, tolerance: float) -> int:
    r = 1
    while True:
        # Interpolation at r odd nodes errs by at most twice the first dropped Chebyshev coefficient and its tail,
        # 2·|J_n(Φ)| with n = 2r + 1, and |J_n(Φ)| ≤ (Φ/2)ⁿ/n! · exp(−Φ²/(4n + 4)) for Φ < n.
        n = 2 * r + 1
        log_bessel = n * math.log(max(phase, 1e-30) / 2) - math.lgamma(n + 1) - phase**2 / (4 * n + 4)
        if phase < n and log_bessel < math.log(tolerance / 4):
            return r
        r += 1


def nodes_for_phase(phase: float, dtype: torch.dtype) -> int:
    """Number of nodes r at which sin is reproduced for all phases up to `phase` radians in `dtype`.

    A multiple of 8; 8 at 6 rad, 16 at 16 rad, 24 at 28 rad in float32.
    """
    # The phase is rounded up on a grid of 2 %, so that the cache hits while training moves it.
    grid = 1.02 ** math.ceil(math.log(max(phase, 1e-3), 1.02))
    return _MULTIPLE * math.ceil(_nodes(grid, _TOLERANCE[dtype]) / _MULTIPLE)


def thin_nodes(u: Tensor, v: Tensor, omega: float, dtype: torch.dtype) -> int | None:
    """Number of nodes for the thin way, or None where the formed way is to be taken.

    None for rank ≠ 1, for phases so large that the nodes pass break-even, and for phases that are not finite (the
    formed way then shows the NaN where it is).

    Args:
        u, v: factors [m, rank] and [n, rank].
        omega: frequency.
        dtype: type in which the products run.
    """
    if u.shape[1] != 1 or u.is_meta:
        return None
    m, n = u.shape[0], v.shape[0]
    most = _BREAK_EVEN * m * n / (m + n)
    if most < _MULTIPLE:
        return None
    if u.is_cuda and torch.cuda.is_current_stream_capturing():
        return None  # a captured graph runs again with other factors, for which these nodes may be too few
    phase = omega * _largest_product(u, v)
    # A first test in closed form: r nodes reach no further than 2r + 1 rad.
    if not math.isfinite(phase) or phase > 2 * most + 1:
        return None
    nodes = nodes_for_phase(phase, dtype)
    return nodes if nodes <= most else None


def _largest_product(u: Tensor, v: Tensor) -> float:
    """max|u|·max|v| on the host; in training on a device, the value of the step before with a margin."""
    product = u.detach().abs().amax().float() * v.detach().abs().amax().float()
    if product.device.type == "cpu" or u.is_inference() or v.is_inference():
        return product.item()
    return _on_host(v, product, (u._version, v._version, u.data_ptr(), v.data_ptr()))


@dataclass
class _HostCopy:
    """A number on its way from the device, the state of the factors that it was sent for, and the last answer."""

    value: Tensor
    state: tuple[int, ...]
    answer: float
    arrival: torch.cuda.Event | None = None


_host_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _on_host(key: Tensor, value: Tensor, state: tuple[int, ...]) -> float:
    """A device value on the host, without a training step ever waiting for the present step's work.

    A step reads what the step before sent by an asynchronous copy (`_MARGIN` covers the step between) and sends the
    present value. While `state` (versions and places of the factors) is unchanged so is the answer, and a forward
    pass that a checkpoint repeats inside backward always gets that of the first. Without gradients the value is
    exact: it waits once after each change of the factors.
    """
    copy = _host_copies.get(key)
    if copy is None:
        copy = _host_copies[key] = _HostCopy(
            torch.empty((), device="cpu", pin_memory=value.device.type == "cuda"), (), math.nan
        )
    elif torch._C._current_graph_task_id() >= 0:  # inside backward
        return copy.answer
    if not copy.state or (not torch.is_grad_enabled() and copy.state != state):
        copy.value.copy_(value)
        copy.state, copy.answer, copy.arrival = state, copy.value.item(), None
        return copy.answer
    if copy.arrival is not None:
        copy.arrival.synchronize()
    late = copy.value.item()
    # FSDP and `.data` change factors without a new version: a value above the answer betrays them.
    if copy.state != state or not late <= copy.answer:
        copy.answer = _MARGIN * late
    copy.state = state
    copy.value.copy_(value, non_blocking=value.is_cuda)
    if value.is_cuda:
        copy.arrival = torch.cuda.Event()
        copy.arrival.record()
    return copy.answer
