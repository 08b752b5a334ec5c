"""The one exception for a user's mistake, and what is quoted in it of others."""

__all__ = ["UserError", "first_line"]


class UserError(Exception):
    """Something the user can put right: one line that names the file, key or value and says what is accepted.

    The command line prints it as `error: …` and exits with code 2, without a traceback.
    """


def first_line(error: BaseException) -> str:
    """Give what an error of somebody else's says in its first line, or its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
