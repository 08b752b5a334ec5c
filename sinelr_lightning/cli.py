"""The `sinelr` command: one parser for all verbs, of which only the one asked for is loaded.

`fit`, `validate`, `test` and `predict` are LightningCLI, which takes seconds to import; help does not wait for it.
"""

import difflib
import importlib
import inspect
import logging
import os
import signal
import sys
import threading
from argparse import ArgumentError
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jsonargparse import ArgumentParser

from sinelr_lightning.errors import UserError
from sinelr_lightning.runs import is_first_process

__all__ = ["main"]

# Verbs of our own: name → (function, its line in `sinelr --help`). Importing the module must be light.
VERBS: dict[str, tuple[str, str]] = {
    "render": (
        "sinelr_lightning.commands.render:render",
        "Render a video or pictures from a NeRF checkpoint along a camera path.",
    ),
    "mesh": (
        "sinelr_lightning.commands.mesh:mesh",
        "Extract the surface of an occupancy checkpoint as a mesh, with a picture of it.",
    ),
    "generate": (
        "sinelr_lightning.commands.generate:generate",
        "Write text with a language model and its adapter.",
    ),
    "rank": (
        "sinelr_lightning.commands.rank:rank",
        "Measure rank and phases of sine weights over the frequency, and recommend one for each layer.",
    ),
    "compare": (
        "sinelr_lightning.commands.compare:compare",
        "Compare layers on one task: equal ranks, one budget, a sweep of learning rates each, seeds, a verdict.",
    ),
    "export": (
        "sinelr_lightning.commands.export:export",
        "Write the network of a checkpoint as ONNX, a torch.export program or tensors; an adapter as a folder.",
    ),
}

# Verbs that LightningCLI runs.
LIGHTNING_VERBS: dict[str, str] = {
    "fit": "Train a task, or go on with a run: sinelr fit --config FILE, sinelr fit --ckpt_path RUN.",
    "validate": "Measure a checkpoint on the validation samples.",
    "test": "Measure a checkpoint on the test samples.",
    "predict": "Run a checkpoint over the samples to predict.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `sinelr` with `argv` (default: the process's own arguments) and return the exit code.

    0 done; 2 a mistake of the user, told in one line `error: …`; 130 stopped by Ctrl-C, 143 by SIGTERM, which ends a
    verb of our own by SystemExit.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _find_classes_here()
    _configure_logging()
    try:
        return _dispatch(arguments)
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130


def _find_classes_here() -> None:
    """Let classes of the user's own be found from the current folder, as by `python -m sinelr_lightning`."""
    with suppress(OSError):  # a folder that was taken away
        if not {"", os.getcwd()} & {*sys.path}:
            sys.path.append(os.getcwd())


def _dispatch(arguments: list[str]) -> int:
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    if verb in LIGHTNING_VERBS and arguments[0] == verb:
        return importlib.import_module("sinelr_lightning.commands.fit").run(arguments)
    if verb is not None and verb not in VERBS and verb not in LIGHTNING_VERBS:
        raise UserError(f"unknown command {verb!r}{near(verb, [*LIGHTNING_VERBS, *VERBS])}; see sinelr --help")
    parser, functions = _parser(verb)
    if not arguments:
        parser.print_help()
        return 2
    try:
        config = parser.parse_args(arguments)
    except ArgumentError as error:
        from sinelr_lightning.commands.messages import one_line

        help_of = f"sinelr {verb}" if verb else "sinelr"
        raise UserError(f"{one_line(str(error), _options(functions))}; see {help_of} --help") from error
    except SystemExit as stop:  # --help and --version end the parser so
        return int(stop.code or 0)
    init = parser.instantiate(config)
    function = functions[config.subcommand]
    taken = inspect.signature(function).parameters
    with _ending_on_sigterm():
        function(**{name: value for name, value in init[config.subcommand].items() if name in taken})
    return 0


@contextmanager
def _ending_on_sigterm() -> Generator[None]:
    """Have SIGTERM raise SystemExit(143): temporary files are removed on the way out, runs of `compare` stopped."""
    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield
        return

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt that
        raise SystemExit(143)

    earlier = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)  # None: it was not Python that set it


def _parser(verb: str | None) -> tuple[ArgumentParser, dict[str, Callable[..., Any]]]:
    """Make the parser of all verbs; the arguments of `verb` alone are filled in."""
    from sinelr_lightning import __version__

    parser = ArgumentParser(
        prog="sinelr",
        description="Train compact models with sine-activated low-rank weights, and use them.",
        exit_on_error=False,
        allow_abbrev=False,
        version=__version__,
    )
    subcommands = parser.add_subcommands(required=True)
    functions: dict[str, Callable[..., Any]] = {}
    for name, line in LIGHTNING_VERBS.items():
        subcommands.add_subcommand(name, ArgumentParser(exit_on_error=False), help=line)
    for name, (target, line) in VERBS.items():
        subparser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=line)
        if name == verb:
            functions[name] = _load(target)
            if "config" not in inspect.signature(functions[name]).parameters:
                subparser.add_argument("--config", action="config", help="YAML file with the options below.")
            subparser.add_function_arguments(functions[name], as_positional=False)
        subcommands.add_subcommand(name, subparser, help=line)
    return parser, functions


def _load(target: str) -> Callable[..., Any]:
    module, function = target.split(":")
    return getattr(importlib.import_module(module), function)


def _options(functions: dict[str, Callable[..., Any]]) -> list[str]:
    """Every option that a mistyped one can be compared with."""
    own = [f"--{name}" for function in functions.values() for name in inspect.signature(function).parameters]
    return [*own, "--help", "--config" if own else "--version"]


def near(word: str, known: Sequence[str]) -> str:
    """Name the likeliest of `known` for a mistyped `word`, else all of them if they are few.

    `near("fitt", ["fit", "test"])` is `", did you mean fit?"`.
    """
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f", did you mean {' or '.join(close)}?"
    return f", choose one of {', '.join(known)}" if 0 < len(known) <= 12 else ""


class _Stderr(logging.StreamHandler):
    """Writes to what sys.stderr is now, not to what it was when the handler was made."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Keep no stream."""


def _configure_logging() -> None:
    """Show our own messages, from the first process alone, as bare lines on stderr."""
    logger = logging.getLogger("sinelr_lightning")
    if not logger.handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
