"""What a check of the doctor found, and how findings are shown: as a table, as JSON and as one sentence."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from nld_train.errors import UserError

Verdict = Literal["ok", "note", "FAIL"]
GB = 1e9  # bytes


@dataclass(frozen=True)
class DoctorFinding:
    """One line of the doctor's table.

    ok: it is as it should be; note: a run starts, but read this; FAIL: a run would stop there. `do` is the advice; its
    name is its key in the JSON.
    """

    check: str
    found: str
    verdict: Verdict = "ok"
    do: str = ""

    def __post_init__(self) -> None:
        assert self.verdict == "ok" or self.do, f"{self.check}: say what to do about {self.found!r}"


def refusal_finding(check: str, error: UserError) -> DoctorFinding:
    """The FAIL that stands for the refusal of a start check."""
    return DoctorFinding(check, f"{error.got} (allowed: {error.allowed})", "FAIL", error.do)


def any_fails(findings: Sequence[DoctorFinding]) -> bool:
    return any(finding.verdict == "FAIL" for finding in findings)


def findings_table(findings: Sequence[DoctorFinding]) -> str:
    """One aligned line for each finding: check, verdict, found; below a finding that is not ok, what to do."""
    width = max(len(finding.check) for finding in findings) + 2
    lines = []
    for finding in findings:
        lines.append(f"{finding.check:<{width}}{finding.verdict:<6}{finding.found}")
        if finding.do:
            lines.append(f"{'':<{width}}      -> {finding.do}")
    return "\n".join(lines)


def findings_summary(findings: Sequence[DoctorFinding]) -> str:
    failed = [finding.check for finding in findings if finding.verdict == "FAIL"]
    if failed:
        return f"a run would fail: {', '.join(failed)}"
    notes = sum(finding.verdict == "note" for finding in findings)
    return f"nothing found that would stop a run ({notes} to note)" if notes else "nothing found that would stop a run"


def findings_json(findings: Sequence[DoctorFinding]) -> str:
    """{"ok": whether a run can start, "findings": [{"check", "found", "verdict", "do"}, ...]}."""
    listed = [asdict(finding) for finding in findings]
    return json.dumps({"ok": not any_fails(findings), "findings": listed}, indent=2) + "\n"


def gb_text(size: float) -> str:
    """A size in bytes as text, in GB of 1e9 bytes, with three digits."""
    return f"{size / GB:.3g} GB" if size < 1000 * GB else f"{size / GB:,.0f} GB"


def counted_noun(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
