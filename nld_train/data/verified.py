"""Payloads of token files against the SHA-256 of their manifests: read once per file and machine, before first use.

XDG_CACHE_HOME/nld-train/verified.jsonl keeps one line for each file that was found whole: path, size, time of its last
change and digest. A file that differs in any of them is read again. Lines are only ever appended, so that several
starts at once need no lock; a torn one costs a reading.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.data.manifest import manifest_path, parse_blend, payload_digests, read_manifest
from nld_train.data.token_file import BLOCK_DIGESTS, COPY_BYTES, DIGEST_BLOCK, REMAKE, join_digests
from nld_train.data.trajectory_rows import run_collection, trajectory_digests
from nld_train.errors import UserError

logger = logging.getLogger(__name__)
AT_ONCE = 20_000_000_000  # bytes that a start waits for; it goes on beside the reading of more
THREADS = 16  # at most, and no more than cores; hashing leaves Python's lock
PATIENCE = 20.0  # seconds between two lines that say how far it is


@dataclass(frozen=True)
class Payload:
    """A file as it was found on disk, and the digest that it should have."""

    path: str
    size: int  # bytes
    mtime_ns: int
    digest: str


class ReadBytes:
    """How many bytes all threads have read, and whether they go on."""

    def __init__(self, left: threading.Event) -> None:
        self.count, self.left, self._lock = 0, left, threading.Lock()

    def add(self, size: int) -> None:
        """Count `size` more."""
        with self._lock:
            self.count += size


@contextlib.contextmanager
def verified_run_data(run: RunConfig, refuse: Callable[[UserError], None]) -> Iterator[None]:
    """Verify the run's data before the block or, where more than AT_ONCE bytes are to be read, beside it.

    refuse: called from another thread, where a file that is read beside the block is not what its manifest says.
    Raises: UserError where that is found before the block.
    """
    missing = unread_payloads(run)
    size = sum(payload.size for payload in missing)
    if size <= AT_ONCE:
        compare_payloads(missing, threading.Event())
        yield
        return
    logger.info("%.0f GB of data are compared with their checksums beside the training", size / 1e9)
    left = threading.Event()

    def verify_beside() -> None:
        try:
            compare_payloads(missing, left)
        except UserError as error:
            if not left.is_set():
                refuse(error)

    beside = threading.Thread(target=verify_beside)
    beside.start()
    try:
        yield
    finally:
        left.set()
        beside.join()


def compare_payloads(missing: dict[Payload, str], left: threading.Event) -> None:
    """Compare files with their manifests, and remember those that are whole. missing: file -> its manifest; left: once
    set, what is not read yet is left unread. Raises: UserError where a file differs."""
    record = verified_file()
    for payload, digest in hash_payloads(list(missing), left).items():
        if digest != payload.digest:
            raise UserError(
                f"{payload.path} has SHA-256 {digest}", f"{payload.digest} as in {missing[payload]}", REMAKE
            )
        if find_payload(Path(payload.path), payload.digest) == payload:  # nobody changed it meanwhile
            append_verified(record, payload)


def unread_payloads(run: RunConfig) -> dict[Payload, str]:
    """The files of the run that are to be read: those not known to be whole, each with its manifest. Under
    data.verify=never none is, and it says so."""
    if run.data.verify == "never":
        count = len(run.data.blend)
        logger.warning("data.verify=never: the tokens of %d file(s) are not compared with a checksum", count)
        return {}
    known = read_verified()
    found = {}
    for where, digests in run_digests(run).items():
        for path, digest in digests.items():
            payload = find_payload(path, digest)
            if payload not in known:
                found[payload] = where
    return found


def run_digests(run: RunConfig) -> dict[str, dict[Path, str]]:
    """By the file that names the digests, the files of a run and the digest that each should have. Raises UserError."""
    if run.sampler is not None:
        record = run_collection(run)
        return {str(record.identity): trajectory_digests(record.folder)}
    prefixes = [prefix for _, prefix in parse_blend(run.data.blend)]
    return {str(manifest_path(prefix)): payload_digests(prefix, read_manifest(prefix)) for prefix in prefixes}


def find_payload(path: Path, digest: str) -> Payload:
    """A file as it is now."""
    found = path.resolve().stat()
    return Payload(str(path.resolve()), found.st_size, found.st_mtime_ns, digest)


def verified_file() -> Path:
    """The user's record of files that were found whole."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "nld-train" / "verified.jsonl"


def read_verified() -> set[Payload]:
    """What was found whole before. A line that says nothing is passed over: that file is read again."""
    record = verified_file()
    found = set()
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines() if record.is_file() else []:
        try:
            found.add(Payload(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def append_verified(record: Path, payload: Payload) -> None:
    """Remember a file that was found whole; where that cannot be written, say so: it is read again next time."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(payload)) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s): %s is read whole at every start", record, error, payload.path)


def hash_payloads(payloads: list[Payload], left: threading.Event) -> dict[Payload, str]:
    """The digest of each file, of the kind that its manifest has, read in parallel threads."""
    if not payloads:
        return {}
    read, whole = ReadBytes(left), sum(payload.size for payload in payloads)
    threads = min(THREADS, len(os.sched_getaffinity(0)))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        jobs = {
            payload: [pool.submit(hash_stretch, payload.path, start, size, read) for start, size in stretches(payload)]
            for payload in payloads
        }
        waiting = {job for of_file in jobs.values() for job in of_file}
        try:
            while waiting:
                waiting = concurrent.futures.wait(waiting, PATIENCE).not_done
                if waiting:
                    logger.info("comparing the data with its checksums: %.1f of %.1f GB", read.count / 1e9, whole / 1e9)
        except BaseException:
            left.set()  # the pool waits for its jobs
            raise
    return {payload: join_digests([job.result() for job in of_file]) for payload, of_file in jobs.items()}


def stretches(payload: Payload) -> list[tuple[int, int]]:
    """(start, size) in bytes of what is hashed by itself: the blocks of a digest by blocks, else the whole file."""
    if not payload.digest.startswith(BLOCK_DIGESTS):
        return [(0, payload.size)]
    return [(start, min(DIGEST_BLOCK, payload.size - start)) for start in range(0, payload.size, DIGEST_BLOCK)]


def hash_stretch(path: str, start: int, size: int, read: ReadBytes) -> bytes:
    """The SHA-256 of `size` bytes of a file from `start` on."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while size and not read.left.is_set() and (block := file.read(min(COPY_BYTES, size))):
            digest.update(block)
            size -= len(block)
            read.add(len(block))
    return digest.digest()
