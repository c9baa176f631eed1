"""Findings as a table, as JSON, and as a verdict on the whole."""

import json

import pytest

from nld_train.doctor.finding import (
    DoctorFinding,
    any_fails,
    findings_json,
    findings_summary,
    findings_table,
    gb_text,
    refusal_finding,
)
from nld_train.errors import UserError

GOOD = DoctorFinding("cores", "2")
NOTED = DoctorFinding("GPU", "none", "note", "nothing")
BAD = DoctorFinding("a longer check", "broken", "FAIL", "repair it")


def test_columns_are_aligned_and_what_to_do_stands_below() -> None:
    lines = findings_table([GOOD, BAD]).splitlines()
    assert [line.split() for line in lines] == [
        ["cores", "ok", "2"],
        ["a", "longer", "check", "FAIL", "broken"],
        ["->", "repair", "it"],
    ]
    assert lines[0].index("2") == lines[1].index("broken") == lines[2].index("->")


def test_only_a_fail_is_a_failure() -> None:
    assert not any_fails([GOOD, NOTED]) and any_fails([GOOD, BAD])
    assert "would stop" in findings_summary([GOOD, NOTED]) and "1 to note" in findings_summary([GOOD, NOTED])
    assert findings_summary([GOOD, BAD]) == "a run would fail: a longer check"


def test_json_says_all_the_table_says() -> None:
    written = json.loads(findings_json([GOOD, BAD]))
    assert written["ok"] is False
    assert [DoctorFinding(**entry) for entry in written["findings"]] == [GOOD, BAD]


def test_a_refusal_keeps_its_three_parts() -> None:
    finding = refusal_finding("data", UserError("no file x.idx", "a token file", "check the path"))
    assert finding.verdict == "FAIL" and finding.do == "check the path"
    assert "no file x.idx" in finding.found and "a token file" in finding.found


def test_a_finding_that_is_not_ok_must_say_what_to_do() -> None:
    with pytest.raises(AssertionError, match="say what to do"):
        DoctorFinding("GPU", "none", "note")


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 GB"), (48_300_000, "0.0483 GB"), (119e9, "119 GB"), (2e12, "2,000 GB")]
)
def test_sizes_are_short(size: float, said: str) -> None:
    assert gb_text(size) == said
