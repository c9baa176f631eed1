"""The session with Weights & Biases: where its server does not take a run, it is recorded offline and goes on."""

import functools
import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from nld_train.config import RunConfig

ANSWER_SECONDS = 10  # for the server's first answer of any kind
START_SECONDS = 30  # for the server to take the run
END_SECONDS = 60  # for what is not uploaded yet when the run ends; all of it stays on disk
MODE = "WANDB_MODE"  # wandb's own variable; set by the start


class WandbSession:
    """What stands in for `wandb.init`, `wandb.log` and `wandb.finish`: they take bounded time, and no failure of W&B
    ends the run, but for a start with log.wandb=required."""

    def __init__(self, run: RunConfig, say: Callable[[str], None]) -> None:
        """say: shows a line."""
        self.run, self.say, self.lost = run, say, False

    def start(self, init: Callable[..., Any], **given: Any) -> Any:
        """Start the session online, or offline where that fails. init: `wandb.init`; given: its arguments.

        Raises: wandb's errors, and OSError, where log.wandb=required.
        """
        import wandb

        limits = wandb.Settings(init_timeout=START_SECONDS, finish_timeout=END_SECONDS, finish_timeout_raises=True)
        try:
            if os.environ[MODE] == "online":
                check_server_answers(wandb.setup().settings.base_url)
            session = init(**given, settings=limits)
        except (wandb.errors.Error, OSError, ValueError) as error:  # ValueError: a key of the wrong form
            if self.run.log.wandb == "required":
                raise
            reason = " ".join(str(error).split())[:200]
            self.say(f"W&B: {reason}; recorded offline in {self._folder} for `wandb sync`; training goes on")
            session = init(**given, mode="offline", settings=limits)
        wandb.log = functools.partial(self.keep_on, wandb.log)  # which it has set to that of this session
        return session

    def keep_on(self, call: Callable[..., None], *given: Any, **named: Any) -> None:
        """Make a call of W&B's; after the first that fails, none."""
        from wandb.errors import Error
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        if self.lost:
            return
        try:
            call(*given, **named)
        except (Error, OSError, HandleAbandonedError, MailboxClosedError) as error:  # a TimeoutError is an OSError
            self.lost = True
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"W&B: {reason}; what it has not sent is recorded in {self._folder} for `wandb sync`")

    @property
    def _folder(self) -> str:
        return f"{self.run.output}/wandb"


def check_server_answers(address: str) -> None:
    """Ask for an answer of any kind. wandb itself takes over a minute to find that there is none. Raises: OSError."""
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # else it has answered, and wandb knows other certificates
            raise OSError(f"no answer from {address}: {error.reason}") from error
    except http.client.HTTPException:
        return
    except OSError as error:
        raise OSError(f"no answer from {address}: {error}") from error
