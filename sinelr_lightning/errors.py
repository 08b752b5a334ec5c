"""The one exception for a user's mistake."""

__all__ = ["UserError"]


class UserError(Exception):
    """Something the user can put right: one line that names the file, key or value and says what is accepted.

    The command line prints it as `error: …` and exits with code 2, without a traceback.
    """
