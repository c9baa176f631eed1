"""Runs seeded cases of bad input, each in a forked child of one process that has imported everything, and judges them.

    python -m tests.fuzz.drive --seed 1 --cases 200          prints the table, and every case that failed
    python -m tests.fuzz.drive --seed 1 --only 17            runs one case and shows what it printed

A case is refused (status 2 and one line), harmless (it ends well; what it made is as without the damage, or the file
holds nothing that could show it), silent (the damage changed the result, could be seen, and not a word was said), a
traceback, or a hang. The last three must not occur.
"""

import argparse
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from tests.fuzz.damages import damages_of, is_evident
from tests.fuzz.material import build_material
from tests.fuzz.readers import READERS, Reader

SECONDS = 60  # of wall time; a case takes one at most on a free core
MEMORY = 3 << 30  # bytes of address space that a case may take
CLASSES = ("refused", "harmless", "silent", "traceback", "hang")
FAILURES = CLASSES[2:]
FIGURES = re.compile(r"[\d.,]+ tokens/s|\d+(\.\d+)? s\b")  # of time: they differ from run to run
PYTHON_FAILED = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    status: int | None  # None: it had to be killed
    out: str
    err: str
    made: tuple[bytes, ...]  # what it wrote


@dataclass(frozen=True)
class Verdict:
    """One case, judged."""

    number: int
    reader: str
    damage: str
    kind: str
    said: str


def prepare_command(number: int, seed: int) -> tuple[Reader, str, str]:
    """Damage the current folder as this case does. Returns: its reader, what was damaged, and how."""
    random, reader = Random(f"{seed} {number}"), READERS[number % len(READERS)]
    if reader.files:
        path = random.choice(list(reader.files))
        damage = random.choice([damage for damage in damages_of(path) if damage.__name__ not in reader.without])
        return reader, path, damage(random, Path(path)) or damage.__name__
    if reader.bodies:
        body = random.choice(list(reader.bodies))
        Path("recipe.py").write_bytes(body.encode("utf-8" if body.isascii() else "latin-1"))
        return reader, "recipe.py", repr(body)[:80]
    if reader.rooms:
        return reader, "disk", str(random.choice(list(reader.rooms)))
    return reader, "command", random.choice(list(reader.words))


def command_words(reader: Reader, word: str) -> list[str]:
    return [part.replace("{}", word) for part in reader.command.split(" ")]


def run_command(words: Sequence[str]) -> int:
    """The command line in this process; returns its exit status as Python would give it."""
    from nld_train.cli import main

    sys.argv = ["nld", *words]
    try:
        return main()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def in_child(work: Callable[[], int], folder: Path, room: int | None = None) -> Ending:
    """Run `work` in a forked child inside of `folder`, with a limit of time and of memory.

    room: bytes that a file may have, behind which the disk is full to the child; None: it never is.
    """
    pipes = [os.pipe() for _ in range(2)]
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, (_, write) in enumerate(pipes, start=1):
            os.dup2(write, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)  # not what the parent's were
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        if room is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        status = 1
        try:
            status = work()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status & 0xFF)
    for _, write in pipes:
        os.close(write)
    said = [bytearray(), bytearray()]
    end = time.monotonic() + SECONDS
    ended, code = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < end:
        drain_pipes(pipes, said, 0.005)
        ended, code = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    drain_pipes(pipes, said, 0)
    for read, _ in pipes:
        os.close(read)
    status = os.waitstatus_to_exitcode(code) if ended else None
    out, err = (text.decode("utf-8", "backslashreplace") for text in said)
    return Ending(status, out, err, ())


def drain_pipes(pipes: Sequence[tuple[int, int]], said: Sequence[bytearray], seconds: float) -> None:
    """Read what stands in the pipes, after a wait of at most so long."""
    while ready := select.select([read for read, _ in pipes], [], [], seconds)[0]:
        blocks = [(number, os.read(read, 1 << 16)) for number, (read, _) in enumerate(pipes) if read in ready]
        for number, block in blocks:
            said[number].extend(block)
        if not any(block for _, block in blocks):  # both ends are closed
            time.sleep(seconds)
            return


def run_case(material: Path, folder: Path, number: int, seed: int | None) -> tuple[Ending, str, str]:
    """One case in a copy of the material; seed None: without its damage. Returns: its end, what was damaged, how."""
    reader = READERS[number % len(READERS)]
    shutil.copytree(
        material, folder, ignore=shutil.ignore_patterns("pipe", "README.md", "*_nemotron_labs_diffusion.py")
    )
    os.mkfifo(folder / "pipe")
    before = os.getcwd()
    os.chdir(folder)
    _, path, damage = (reader, "", "nothing") if seed is None else prepare_command(number, seed)
    os.chdir(before)
    words = command_words(reader, damage if path == "command" else "")
    end = in_child(lambda: run_command(words), folder, int(damage) if path == "disk" else None)
    made = tuple((folder / name).read_bytes() for name in reader.outputs if (folder / name).is_file())
    shutil.rmtree(folder)
    return Ending(end.status, end.out, end.err, made), path, damage


def judge_case(reader: Reader, path: str, damage: str, end: Ending, whole: Ending | None) -> str:
    """The class of a case. whole: how the command ends without the damage, None where there is no such command."""
    if end.status is None:
        return "hang"
    lines = [line for line in end.err.splitlines() if line.startswith("nld: ")]
    usage = end.err.startswith("usage: ") and ": error: " in end.err
    if PYTHON_FAILED in end.err or PYTHON_FAILED in end.out or end.status < 0:
        return "traceback"
    if end.status == 2:
        return "refused" if len(lines) == 1 and end.err.endswith(lines[0] + "\n") or usage else "traceback"
    if whole is None or end.status != 0 or same_result(end, whole) or end.err != whole.err:
        return "harmless"
    covered = reader.guarded and not path.endswith("manifest.json")
    return "silent" if covered or is_evident(damage, path) else "harmless"


def same_result(end: Ending, whole: Ending) -> bool:
    return (end.made, FIGURES.sub("", end.out)) == (whole.made, FIGURES.sub("", whole.out))


def load_everything() -> None:
    """Import what the commands import, so that no child has to."""
    import peft  # noqa: F401
    import torch

    import nld_train.decode.load
    import nld_train.launch.jobs_report
    import nld_train.launch.submit
    import nld_train.report.page
    import nld_train.start.start_run  # noqa: F401
    from nld_train.commands.generate import MODES
    from nld_train.hf import modeling_nemotron_labs_diffusion  # noqa: F401

    for mode in MODES.values():
        mode.load_function()
    torch.set_num_threads(1)


def drive(seed: int, numbers: Sequence[int], scratch: Path, show: bool) -> list[Verdict]:
    """Run these cases; `show` prints what the commands print."""
    load_everything()
    material = scratch / "material"
    material.mkdir()
    built = in_child(lambda: build_material() or 0, material)
    assert built.status == 0, built.err
    whole: dict[int, Ending] = {}
    verdicts = []
    for number in numbers:
        place = number % len(READERS)
        reader = READERS[place]
        if reader.files and place not in whole:
            whole[place], _, _ = run_case(material, scratch / "whole", place, None)
            assert whole[place].status == 0, f"{reader.name}: {whole[place]}"
        end, path, damage = run_case(material, scratch / "case", number, seed)
        kind = judge_case(reader, path, damage, end, whole.get(place))
        said = (end.err.strip() or end.out.strip()).splitlines()[-1:]
        verdicts.append(Verdict(number, reader.name, f"{path}: {damage[:60]!r}", kind, said[0][:300] if said else ""))
        if show:
            words = " ".join(command_words(reader, damage if path == "command" else ""))
            print(f"{path}: {damage[:200]!r}\nnld {words[:300]!r}\n{end.out[-4000:]}{end.err[-8000:]}")
            print(f"status {end.status}: {kind}")
    return verdicts


def result_table(verdicts: Sequence[Verdict]) -> str:
    """Readers down, classes across."""
    counts = Counter((verdict.reader, verdict.kind) for verdict in verdicts)
    lines = [f"{'reader':32}" + "".join(f"{kind:>10}" for kind in CLASSES)]
    for reader in [*dict.fromkeys(verdict.reader for verdict in verdicts), "all"]:
        chosen = [
            sum(n for (who, what), n in counts.items() if what == kind and reader in (who, "all")) for kind in CLASSES
        ]
        lines.append(f"{reader:32}" + "".join(f"{count:10}" for count in chosen))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases")
    parser.add_argument("--json", type=Path, help="write the verdicts there")
    args = parser.parse_args()
    # PATH: no Slurm may be asked, where there is one.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "PATH": "/nowhere"}
    with tempfile.TemporaryDirectory() as scratch:
        verdicts = drive(args.seed, args.only or range(args.cases), Path(scratch), args.only is not None)
    if args.json:
        args.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts]))
    print(f"seed {args.seed}\n{result_table(verdicts)}")
    failed = [verdict for verdict in verdicts if verdict.kind in FAILURES]
    for verdict in failed:
        print(f"{verdict.kind}: {verdict.reader}, {verdict.damage}: {verdict.said}")
        print(f"  python -m tests.fuzz.drive --seed {args.seed} --only {verdict.number}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
