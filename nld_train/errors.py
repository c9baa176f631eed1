"""The one exception a user is meant to see."""


class UserError(Exception):
    """Bad input. The `nld` command prints it as one line and exits with status 2, without a traceback.

    Name three things, so that nobody has to read code: what was got, what is allowed, what to do.
    """

    def __init__(self, got: str, allowed: str, do: str) -> None:
        self.got, self.allowed, self.do = got, allowed, do
        super().__init__(got, allowed, do)  # the arguments as they are: the error can travel between processes

    def __str__(self) -> str:
        got, allowed, do = self.args
        return f"{got}; allowed: {allowed}; do: {do}"
