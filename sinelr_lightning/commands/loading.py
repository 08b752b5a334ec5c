"""The `--ckpt_path` and `--device` of the commands that use a trained network."""

from typing import TYPE_CHECKING, TypeVar

from sinelr_lightning.errors import UserError, first_line

if TYPE_CHECKING:
    from sinelr_lightning.tasks.base import Task

    Kind = TypeVar("Kind", bound=Task)

__all__ = ["load", "usable_device"]


def load(ckpt_path: str, kind: "type[Kind]", device: str) -> "Kind":
    """Load the task of class `kind` that `ckpt_path` means, with its weights, in evaluation mode on `device`.

    Raises:
        UserError: no such checkpoint, one of another task, or a device that is not there.
    """
    from sinelr_lightning.runs import load_task, resolve_checkpoint

    checkpoint = resolve_checkpoint(ckpt_path)
    task = load_task(checkpoint)
    if not isinstance(task, kind):
        raise UserError(f"{checkpoint} holds a {type(task).__name__}, this command needs the task {kind.__name__}")
    return task.to(usable_device(device))


def usable_device(name: str) -> str:
    """Give the device that `name` means: that of the GPU for `auto`, if there is one.

    Raises:
        UserError: it is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not usable here: {first_line(error)}") from error
    return name
