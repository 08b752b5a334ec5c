"""A bar on the terminal for what takes long outside of training."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(shown: bool = True) -> Generator[Callable[[str, float, float], None]]:
    """Show a bar on stderr until the block ends; gives `show(what, done, total)`, which does nothing if not `shown`.

    with progress_bar() as show:
        convert(model, SineLowRank(rank=16), init="fit", progress=show)
    """
    if not shown:
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("", total=None)

        def show(what: str, done: float, total: float) -> None:
            bar.update(line, description=what, completed=done, total=total)

        yield show
