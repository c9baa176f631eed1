"""Asking Slurm."""

import subprocess

SECONDS = 60  # that its commands may take


def slurm_command(*words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """What one of Slurm's commands says, and how it ends. given: its input."""
    return subprocess.run(words, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)
