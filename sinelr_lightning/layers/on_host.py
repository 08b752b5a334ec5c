"""Numbers of a device on the host, without a training step ever waiting for the present step's work."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["on_host"]

# A number that reaches the host late is allowed to have grown by this factor since it was measured.
_MARGIN = 1.15


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
    exact: it waits once after each change of the factors.
    """
    value = value.float()
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
