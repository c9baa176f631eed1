"""The one exception a user is meant to see, and the checks of settings that raise it."""

from typing import get_args


class UserError(Exception):
    """Bad input. The `nld` command prints it as one line and exits with status 2, without a traceback.

    Name three things, so that nobody has to read code: what was got, what is allowed, what to do.
    """

    def __init__(self, got: str, allowed: str, do: str) -> None:
        self.got, self.allowed, self.do = got, allowed, do
        super().__init__(got, allowed, do)  # the arguments as they are: the error can travel between processes

    def __str__(self) -> str:
        """One line: what comes from a file or a command line may hold line ends, and commands to a terminal."""
        got, allowed, do = self.args
        text = f"{got}; allowed: {allowed}; do: {do}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def require(ok: bool, got: str, allowed: str, do: str) -> None:
    """Raise UserError unless `ok`."""
    if not ok:
        raise UserError(got, allowed, do)


def require_choice(name: str, value: str, choices: object) -> None:
    """Raise UserError unless the setting `name` has one of the values of a Literal."""
    allowed = get_args(choices)
    require(value in allowed, f"{name}={value!r}", ", ".join(allowed), "choose one of them")
