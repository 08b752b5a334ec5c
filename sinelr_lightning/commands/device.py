"""The `--device` of the commands that run a network."""

from sinelr_lightning.errors import UserError

__all__ = ["usable_device"]


def usable_device(name: str) -> str:
    """Give the device that `name` means: a GPU if there is one for auto, else `name` itself.

    Raises:
        UserError: torch cannot use it here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not usable here: {str(error).splitlines()[0]}") from error
    return name
