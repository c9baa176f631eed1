"""Which checkpoints are complete: the last act of a save puts a manifest of its files into it, by rename.

A folder without a manifest is a save that was cut off. Sizes show a truncated or missing file at once. Checksums show a
changed bit as well, and cost one reading of the files, several at a time.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nld_train.config import require
from nld_train.errors import UserError
from nld_train.run_folder.paths import STEP_PREFIX, TRAINED_OR_IMPORTED, checkpoints_folder, step_folder

MANIFEST = "manifest.json"
READ_BYTES = 1 << 24  # how much a thread reads at a time
# zlib's CRC-32 shows every change of up to 32 neighbouring bits, and one core computes it faster than most disks read.
CHECKSUM = "crc32"

Files = Mapping[str, Mapping[str, int | str]]  # path inside the folder -> {"bytes": ..., "crc32": ...}


def checkpoint_steps(output: Path) -> list[int]:
    """The steps that have a checkpoint folder, complete or not, in ascending order."""
    names = [path.name.removeprefix(STEP_PREFIX) for path in checkpoints_folder(output).glob(f"{STEP_PREFIX}*")]
    return sorted(int(name) for name in names if name.isdigit())


def complete_steps(output: Path) -> list[int]:
    """The steps whose checkpoint is complete by its manifest and the sizes of its files, in ascending order."""
    return [
        step
        for step in checkpoint_steps(output)
        if checkpoint_problem(step_folder(output, step), contents=False) is None
    ]


def step_reached(output: Path) -> int:
    """How far a run has come: the step of its newest complete checkpoint, 0 where there is none."""
    return max(complete_steps(output), default=0)


def newest_complete_step(output: Path) -> int | None:
    """The step of the newest complete checkpoint in an output folder; None where there is no checkpoint at all.

    Raises: UserError where there are checkpoints and none is complete.
    """
    complete, saved = complete_steps(output), checkpoint_steps(output)
    if saved and not complete:
        wrong = checkpoint_problem(step_folder(output, saved[-1]), contents=False)
        raise UserError(
            f"no complete checkpoint in {checkpoints_folder(output)}: {wrong}",
            "a folder with one checkpoint that was saved to its end",
            "choose another folder, or make this one again",
        )
    return complete[-1] if complete else None


def step_to_read(output: Path, step: int | None, option: str) -> int:
    """The step whose weights are read: `step`, or None for the newest, which must be whole. An older one is never taken
    in its place. option: how a step is asked for, such as "--step ".

    Raises: UserError.
    """
    saved = checkpoint_steps(output)
    require(bool(saved), f"no checkpoint in {checkpoints_folder(output)}", TRAINED_OR_IMPORTED, "train first")
    chosen = saved[-1] if step is None else step
    folder = step_folder(output, chosen)
    listed = ", ".join(map(str, saved))
    require(chosen in saved, f"{option}{chosen}: no {folder}", f"steps {listed}", "choose one of them")
    wrong = checkpoint_problem(folder, contents=False)
    if wrong is not None:
        whole = complete_steps(output)
        do = f"give {option}{whole[-1]} for the newest whole one" if whole else "choose another folder"
        what = f"the {'newest checkpoint' if step is None else 'checkpoint'} in {checkpoints_folder(output)}: {wrong}"
        raise UserError(what, "a checkpoint that was saved to its end", f"{do}; wait, if the run is saving it now")
    return chosen


def init_checkpoint(init: str, step: int | None) -> Path:
    """The checkpoint of a step, None: the newest, in the folder `init`, which a run or an import wrote.

    Raises: UserError where there is none, or it is not whole.
    """
    folder = Path(init)
    require(
        bool(checkpoint_steps(folder)),
        f"init={init!r}: no checkpoint in {checkpoints_folder(folder)}",
        "the output folder of a finished run or of an import, or a Hugging Face folder",
        "run the stage before first, or correct init=",
    )
    return step_folder(folder, step_to_read(folder, step, "init_step="))


def check_checkpoint_contents(folder: Path) -> None:
    """Read a checkpoint to its last byte, and refuse it where it is not what was saved, or would run code when it is
    read. Raises: UserError."""
    from nld_train.run_folder.checkpoint_pickles import check_checkpoint_pickles  # imports torch

    wrong = checkpoint_problem(folder, contents=True)
    require(
        wrong is None,
        f"{folder} is damaged: {wrong}",
        "a checkpoint as it was saved",
        "copy it again, or use another step",
    )
    check_checkpoint_pickles(folder)


def checkpoint_problem(folder: Path, contents: bool) -> str | None:
    """What is wrong with a checkpoint: one line that names the file, or None for a complete one.

    contents: whether to read the files and compare their checksums too, not their sizes alone.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"{folder.name} has no {MANIFEST}: its save was cut off"
    files = read_checkpoint_manifest(manifest)
    if files is None:
        return f"{folder.name}/{MANIFEST} is damaged"
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            return f"{folder.name}/{name} is missing"
        size = path.stat().st_size
        if size != recorded["bytes"]:
            return f"{folder.name}/{name} has {size:,} of {recorded['bytes']:,} bytes"
    if contents:
        for name, found in checksum_files(folder, files).items():
            if found != files[name]:
                return f"{folder.name}/{name} is not what was saved: its {CHECKSUM} is {found[CHECKSUM]}"
    return None


def read_checkpoint_manifest(manifest: Path) -> Files | None:
    """The files that a finished save has listed; None where the manifest is not what a save writes."""
    try:
        files = json.loads(manifest.read_bytes())["files"]
        kinds = {(type(entry["bytes"]), type(entry[CHECKSUM])) for entry in files.values()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # no JSON, or JSON of another shape
        return None
    return files if kinds == {(int, str)} else None


def checksum_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """File name -> its size in bytes and its checksum; several files are read at a time."""
    listed = list(names)
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(listed, pool.map(lambda name: _measured(folder / name), listed), strict=True))


def _measured(path: Path) -> dict[str, int | str]:
    size, checksum, buffer = 0, 0, memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            size, checksum = size + count, zlib.crc32(buffer[:count], checksum)
    return {"bytes": size, CHECKSUM: f"{checksum:08x}"}


def checkpoint_file_names(folder: Path) -> list[str]:
    """Every file of a checkpoint but its manifest, as paths inside it."""
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in inside if path.name.removeprefix(".").removesuffix(".partial") != MANIFEST)


def write_checkpoint_manifest(folder: Path, files: Files) -> None:
    """Declare a checkpoint complete: `files` are all of its files. The manifest is on disk before it takes its name."""
    partial = folder / f".{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"files": dict(sorted(files.items()))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)
