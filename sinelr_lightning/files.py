"""Files that are either whole or not there."""

import os
import shutil
import uuid
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from sinelr_lightning.errors import UserError

__all__ = ["atomic_path", "searched_in", "user_file", "user_folder"]


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
def user_folder(path: str | os.PathLike[str], ours: Collection[str]) -> Generator[Path]:
    """Do the same for a folder that the user named; it may replace an empty one, or one that holds a file of `ours`.

    Raises:
        UserError: it exists and holds something else, or cannot be written.
    """
    place = Path(path).absolute()
    if place.exists() and not (
        place.is_dir() and (not any(place.iterdir()) or any((place / name).is_file() for name in ours))
    ):
        raise UserError(f"{path} exists and is no earlier export: name another folder")
    temporary, earlier = _beside(place), _beside(place)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if place.exists():
            os.replace(place, earlier)
        os.replace(temporary, place)
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name beside `path` that no other writer takes."""
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")


def searched_in(path: Path) -> str:
    """Say where a path that was not found led: ` in /home/me` if it is relative, nothing if it says so itself."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"
