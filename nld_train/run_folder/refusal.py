"""OUTPUT/refused.txt: what a rank found that the same command cannot mend. Every node reads it, and the scheduler's
script: no job is queued again for it."""

import contextlib
from pathlib import Path

from nld_train.run_folder.paths import REFUSAL


def record_refusal(output: Path, reason: str) -> None:
    """Called by the rank that found it, before it leaves; of several ranks the first one's line stays.

    Ranks find it at the same moment, on several nodes, so none may replace another one's file. Readers come after the
    ranks have ended.
    """
    with contextlib.suppress(FileExistsError), (output / REFUSAL).open("x", encoding="utf-8") as file:
        file.write(f"{reason}\n")


def read_refusal(output: Path) -> str | None:
    """The line that a rank of the last start left behind; None where it left none."""
    path = output / REFUSAL
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None


def forget_refusal(output: Path) -> None:
    """Called by the next start, which tries again."""
    (output / REFUSAL).unlink(missing_ok=True)
