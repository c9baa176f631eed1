"""What an evaluation has found so far, one record a line: a killed evaluation goes on where it stopped.

The first line says what is evaluated and how. Another evaluation under the same name is refused, never mixed in.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nld_train.errors import UserError, require
from nld_train.files import full_disk_refused, refuse_existing, unwritable_refused, write_text

logger = logging.getLogger(__name__)
Record = Mapping[str, Any]  # "key" and JSON values
COUNT = "records"  # name in an identity: how many records a finished file has


class RecordFile:
    """A file of records, each with a key of its own under "key". Every record is on disk when `append` returns."""

    def __init__(self, path: Path, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        """identity: JSON values that say what is evaluated and how. overwrite: begin anew whatever is there.

        A file without records may be of any evaluation: that one found nothing.
        Raises: UserError where the file is of another evaluation, or cannot be written.
        """
        self.path, self.identity = path, dict(identity)
        with unwritable_refused(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        exists = not overwrite and path.exists() and path.stat().st_size > 0
        found, records = read_records(path) if exists else (self.identity, [])
        if not records:
            found = self.identity
        self._check_identity(found)
        self.records: dict[str, Record] = {record["key"]: record for record in records}
        write_text(path, "".join([_line(found), *map(_line, self.records.values())]))  # without a torn last line
        if self.records:
            logger.info("%s: %d records are there already, and are kept", path, len(self.records))

    def _check_identity(self, found: Mapping[str, Any]) -> None:
        names = [name for name in found.keys() | self.identity if found.get(name) != self.identity.get(name)]
        if names:
            name = min(names)
            raise UserError(
                f"{self.path} holds another evaluation: {name}={found.get(name)!r}, here {self.identity.get(name)!r}",
                "the settings it was begun with",
                "give another --output, or --overwrite to begin anew",
            )

    def append(self, record: Record) -> None:
        """Write a record; its "key" must be new. Raises: UserError where the disk is full."""
        assert record["key"] not in self.records, f"{record['key']} is recorded already"
        with full_disk_refused(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that have no record yet, in their order."""
        return [key for key in keys if key not in self.records]


def read_records(path: Path) -> tuple[Mapping[str, Any], list[Record]]:
    """(identity, records) of a file; a torn last line is left out. Raises: UserError for a file of another kind."""
    require(path.is_file(), f"no file {path}", "what `nld eval` wrote", "run it first")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    parsed = []
    for number, line in enumerate(lines[:-1], start=1):  # behind the last line end stands nothing, or a torn line
        try:
            parsed.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not JSON", "what `nld eval` wrote", "begin anew") from error
    objects = all(isinstance(value, dict) for value in parsed)
    keyed = objects and all("key" in value for value in parsed[1:])
    require(bool(parsed) and keyed, f"{path} is no file of records", "what `nld eval` wrote", "begin anew")
    return parsed[0], parsed[1:]


def merge_record_files(parts: Sequence[Path], target: Path, overwrite: bool, same: Callable[[str], bool]) -> int:
    """Write the records of the parts of one evaluation into one file, ordered by their keys. Returns: their number.

    same: whether the parts must agree in a name of their identities. Raises: UserError where they are of different
    evaluations, a part has not all of its records, or a record stands in two.
    """
    require(len(parts) > 0, f"no parts of {target.name}", "what the shards wrote", "run them first")
    if not overwrite:
        refuse_existing([target])
    merged: dict[str, Record] = {}
    counted = True
    first: Mapping[str, Any] = {}
    for part in parts:
        identity, records = read_records(part)
        due = identity.get(COUNT, len(records))
        goes_on = "give its command again: it goes on"
        require(len(records) == due, f"{part} has {len(records)} of {due} records", "finished parts", goes_on)
        counted = counted and COUNT in identity
        shared = {name: value for name, value in identity.items() if same(name) and name != COUNT}
        first = first or shared
        require(shared == first, f"{part} is of another evaluation than {parts[0]}", "parts of one", "run it again")
        for record in records:
            twice = record["key"] in merged
            require(not twice, f"{part}: {record['key']} stands in two parts", "every record once", "run them again")
            merged[record["key"]] = record
    if not counted:
        logger.warning("%s: its parts do not say how many records they should have", target)
    whole = {**first, COUNT: len(merged)} if counted else first
    write_text(target, "".join([_line(whole), *(_line(merged[key]) for key in sorted(merged))]))
    return len(merged)


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
