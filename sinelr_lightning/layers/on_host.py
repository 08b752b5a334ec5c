"""Numbers of a device on the host, without a training step ever waiting for the present step's work."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["largest_on_host", "on_host"]

# A number that reaches the host late is allowed to have grown by this factor since it was measured.
_MARGIN = 1.15
# In-place changes of a factor that one step of an optimiser may make; after more of them the number is too old.
_CHANGES = 8


@dataclass
class _HostCopy:
    """A number on its way from the device, the state of the factors that it was sent for, and the last answer."""

    value: Tensor
    state: tuple[int, ...]
    answer: float
    arrival: torch.cuda.Event | None = None


_host_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()


def on_host(key: Tensor, value: Tensor, state: tuple[int, ...]) -> float:
    """A device value of the factor `key` on the host, in training that of the step before with a margin.

    A step reads what the step before sent by an asynchronous copy (`_MARGIN` covers the step between) and sends the
    present value. While `state` (versions and places of the factors) is unchanged so is the answer, and a forward
    pass that a checkpoint repeats inside backward always gets that of the first. Without gradients the value is
    exact: it waits once after each change of the factors, and so it is after many changes, when it was not asked for
    in every step.

    Args:
        key: the factor that the number is of.
        value: the number, on a device.
        state: version of each factor first, then what else tells it from another.
    """
    value = value.float()
    copy = _host_copies.get(key)
    if copy is None:
        copy = _host_copies[key] = _HostCopy(
            torch.empty((), device="cpu", pin_memory=value.device.type == "cuda"), (), math.nan
        )
    elif torch._C._current_graph_task_id() >= 0:  # inside backward
        return copy.answer
    changed = copy.state != state
    if not copy.state or (changed and (not torch.is_grad_enabled() or state[0] - copy.state[0] > _CHANGES)):
        copy.value.copy_(value)
        copy.state, copy.answer, copy.arrival = state, copy.value.item(), None
        return copy.answer
    if copy.arrival is not None:
        copy.arrival.synchronize()
    late = copy.value.item()
    # FSDP and `.data` change factors without a new version: a value above the answer betrays them.
    if changed or not late <= copy.answer:
        copy.answer = _MARGIN * late
    copy.state = state
    copy.value.copy_(value, non_blocking=value.is_cuda)
    if value.is_cuda:
        copy.arrival = torch.cuda.Event()
        copy.arrival.record()
    return copy.answer


def largest_on_host(key: Tensor, largest: Tensor, u: Tensor, v: Tensor) -> float:
    """`largest`, a bound on the phases of the factors u and v, on the host; exact where they are on the CPU."""
    if largest.device.type == "cpu" or u.is_inference() or v.is_inference():
        return largest.item()
    return on_host(key, largest, (u._version, v._version, u.data_ptr(), v.data_ptr()))
