"""OUTPUT/data.json: which data a run trains on, so that a resume on data made again under the same names is refused.

{"row order": ORDER, "files": {PREFIX: SHA-256 over the digests in the file's manifest}}
"""

import hashlib
import json
import logging
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.data.manifest import parse_blend, read_manifest
from nld_train.data.trajectory_rows import run_collection
from nld_train.files import write_text
from nld_train.json_file import read_json_object
from nld_train.run_folder.paths import DATA

logger = logging.getLogger(__name__)
ORDER = 1  # of the rows: raise it where the same files and settings would give a row another number


def file_identity(prefix: str) -> str:
    """SHA-256 over the digests of tokens, index, supervision and images in a file's manifest. Raises UserError."""
    manifest = read_manifest(prefix)
    digests = [manifest.bin_sha256, manifest.idx_sha256]
    if manifest.chat is not None:
        digests.append(manifest.chat.supervised_sha256)
        if manifest.chat.images is not None:
            digests += manifest.chat.images.digests(prefix).values()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def data_identities(run: RunConfig) -> dict[str, str]:
    """The files of a run, and the SHA-256 that stands for each. Raises UserError."""
    if run.sampler is not None:
        record = run_collection(run)
        return {str(record.folder): hashlib.sha256(record.identity.read_bytes()).hexdigest()}
    return {prefix: file_identity(prefix) for _, prefix in parse_blend(run.data.blend)}


def check_data_identity(run: RunConfig) -> None:
    """Refuse to go on with other data than a run began with. A folder without data.json, of before there was one,
    passes. Raises UserError."""
    path = Path(run.output) / DATA
    if not path.is_file():
        return
    recorded = read_json_object(path, "the record of a run's data")
    order, files = recorded.get("row order"), recorded.get("files")
    require(
        isinstance(files, dict) and isinstance(order, int),
        f"{path} does not say which data the run began with",
        "the file as the run wrote it",
        "copy it again, or take it away: what the run goes on with is recorded then",
    )
    require(
        order == ORDER,
        f"{path} has the rows in order {order}",
        f"{ORDER}, in which this version numbers them",
        "go on with the version that began the run, or choose another output=",
    )
    for prefix, identity in data_identities(run).items():
        require(
            recorded["files"].get(prefix) == identity,
            f"{prefix} holds other data than {run.output} began with",
            "the files of the first start: rows are numbered by them",
            "put those files back, or choose another output=",
        )


def record_data_identity(run: RunConfig, *, resumes: bool) -> None:
    """Write OUTPUT/data.json, and say so where a run that goes on had none. Raises UserError."""
    path = Path(run.output) / DATA
    if resumes and not path.is_file():
        logger.warning(
            "%s does not say which data the run began with: whether it is the same now was not checked, and versions "
            "before 2026-11-28 read rows of text in another order. The data is recorded from here on",
            run.output,
        )
    write_text(path, json.dumps({"row order": ORDER, "files": data_identities(run)}, indent=2) + "\n")
