"""OUTPUT/stop: while it is there, the run stops after its step; its first rank answers in it.

Whoever asks makes the file, with any content or none: `nld train` on a signal, or a person. The first rank writes SEEN,
so that the launcher knows that it is alive, or LEAVE where every rank has to leave without a checkpoint.
"""

from pathlib import Path

from nld_train.files import write_text
from nld_train.run_folder.paths import STOP

SEEN, LEAVE = "seen\n", "leave\n"


def stop_file(output: str) -> Path:
    return Path(output) / STOP


def stop_answer(path: Path) -> str | None:
    """What is in the stop file; None where nobody asks the run to stop."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def answer_stop(path: Path, answer: str) -> None:
    write_text(path, answer)
