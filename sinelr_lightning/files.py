"""Files that are either whole or not there."""

import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from sinelr_lightning.errors import UserError

__all__ = ["atomic_path", "searched_in", "user_file", "user_folder"]

MARKER = ".sinelr_export"  # in a folder of ours: what else we wrote there, a name a line


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, remove it if it does not.

    The suffix is kept (writers choose a format by it) and missing parent folders are created, so a reader of
    `path` sees the old content or the new, never half of it, and two writers at once do not meet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def user_file(path: str | os.PathLike[str]) -> Generator[Path]:
    """Do as `atomic_path` does, for a file that the user named.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; name a file in a folder of yours") from error


@contextmanager
def user_folder(path: str | os.PathLike[str]) -> Generator[Path]:
    """Do the same for a folder that the user named; it may replace an empty one, or an earlier one of ours.

    What was written is listed in a hidden file in it, by which an earlier one is known: of a folder in which there is
    anything else, something would be lost.

    Raises:
        UserError: it exists and holds something else, or cannot be written.
    """
    place = Path(os.path.realpath(path))
    temporary, earlier = _beside(place), _beside(place)
    made: list[Path] = []
    try:
        _check_replaceable(place, path)
        made = [parent for parent in place.parents if not parent.exists()]
        temporary.mkdir(parents=True)
        yield temporary
        (temporary / MARKER).write_text("".join(f"{name}\n" for name in sorted(_inside(temporary))), "utf-8")
        _check_replaceable(place, path)  # writing took its time
        if place.exists():
            os.replace(place, earlier)
        os.replace(temporary, place)
    except OSError as error:
        reason = error.strerror or str(error).replace(str(temporary), str(path))
        raise UserError(f"{path} cannot be written: {reason}") from error
    finally:
        if os.path.lexists(earlier) and not os.path.lexists(place):  # stopped between the two
            os.replace(earlier, place)
        for folder in (temporary, earlier):
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # it holds what was written, as a rule
                parent.rmdir()


def _check_replaceable(place: Path, called: str | os.PathLike[str]) -> None:
    marker = place / MARKER
    if marker.is_file():
        others = _inside(place) - {MARKER, *marker.read_text("utf-8", errors="replace").splitlines()}
        if others:
            raise UserError(f"{called} holds {min(others)}, which no export wrote: name another folder")
    elif place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{called} exists and is no earlier export: name another folder")


def _inside(folder: Path) -> set[str]:
    """Names of all files and folders in it and below."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _beside(path: Path) -> Path:
    """A hidden name beside `path` that no other writer takes."""
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")


def searched_in(path: Path) -> str:
    """Say where a path that was not found led: ` in /home/me` if it is relative, nothing if it says so itself."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"
