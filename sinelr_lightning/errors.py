"""The one exception for a user's mistake."""

__all__ = ["MissingExtraError", "UserError"]


class UserError(Exception):
    """Something the user can put right: one line that names the file, key or value and says what is accepted.

    The command line prints it as `error: …` and exits with code 2, without a traceback.
    """


class MissingExtraError(UserError):
    """An optional dependency is needed now and is not installed; the message carries its install line."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f'{what} needs {package}: pip install "sinelr-lightning[{extra}]"')
