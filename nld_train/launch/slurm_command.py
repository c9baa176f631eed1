"""Slurm's commands, run and waited for."""

import subprocess

SECONDS = 60  # how long a command may take


def slurm_command(*words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; returns what it printed and its exit status. given: its input."""
    return subprocess.run(words, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)
