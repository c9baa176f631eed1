import json
import math
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nld_train.cli import main
from nld_train.errors import UserError
from nld_train.report.history import read_stages
from nld_train.report.page import MOST, ReportExtras, write_report
from nld_train.report.stage_table import HEADER, text_table

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Fails on tags that are not closed in order; gathers tips and table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tips: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.open += [tag] * (tag not in VOID)

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open[-2:] == ["circle", "title"]:
            self.tips.append(data)
        if self.open[-1:] == ["td"]:
            self.cells.append(data)


def entries(joint: bool, start: float, end: float, steps: int = 20) -> list[dict]:
    """A run that is evaluated at both ends and logs every fifth step."""

    def values(share: float) -> dict:
        loss = start + share * (end - start)
        return {"AR loss": loss} | ({"diffusion loss": loss + 2, "mask ratio": 0.5} if joint else {})

    trained = {"gradient norm": 1.0, "learning rate": 3e-3, "tokens/s": 1234.0}
    lines = [{"step": s, "kind": "train", **values(s / steps), **trained} for s in range(5, steps + 1, 5)]
    evaluated = [{"step": s, "kind": "validation", **values(s / steps)} for s in (0, steps)]
    return [evaluated[0], *lines, evaluated[1]]


@pytest.fixture
def outputs(folder) -> list[Path]:
    return [folder("stage1_ar", entries(False, 7.5, 4.0)), folder("stage2_joint", entries(True, 4.0, 3.5))]


def written(outputs, tmp_path: Path, entropy: float | None = 6.25, title: str = "A <title> & more") -> str:
    target = tmp_path / "report.html"
    write_report(outputs, target, entropy, title)
    return target.read_text()


def test_the_page_is_well_formed_and_stands_alone(outputs, tmp_path) -> None:
    html, checker = written(outputs, tmp_path), Checker()
    checker.feed(html)
    assert not checker.open
    assert "A &lt;title&gt; &amp; more" in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"<script|src=(?!.data:)|<link|@import|url\(|https?://(?!www\.w3\.org/2000/svg)", html)


def test_every_logged_value_can_be_read_from_the_page(outputs, tmp_path) -> None:
    checker = Checker()
    checker.feed(written(outputs, tmp_path))
    assert "tiny_stage1_ar, step 5, training: AR loss 6.625" in checker.tips
    assert "tiny_stage2_joint, step 0, validation: diffusion loss 6" in checker.tips
    assert "tiny_stage2_joint, step 20, training: mask ratio 0.5" in checker.tips
    terms, evaluations, logged = 3, 2, 4  # AR twice, diffusion once; then gradient norm and rate twice, mask ratio once
    assert len(checker.tips) == terms * (evaluations + logged) + 5 * logged


def test_the_table_states_start_end_gain_and_drop(outputs, tmp_path) -> None:
    checker = Checker()
    checker.feed(written(outputs, tmp_path))
    first, second = checker.cells[: len(HEADER)], checker.cells[len(HEADER) :]
    assert first == ["tiny_stage1_ar", "20", "81,920", "7.500", "4.000", "6.250", "2.250", "-", "-", "-", "1,234"]
    ar, diffusion = ["4.000", "3.500", "6.250", "2.750"], ["6.000", "5.500", "0.500"]
    assert second == ["tiny_stage2_joint", "20", "81,920", *ar, *diffusion, "1,234"]


def test_the_findings_are_said_in_sentences(outputs, tmp_path) -> None:
    text = re.sub("<[^>]+>", "", written(outputs, tmp_path))
    assert "AR loss at the end of tiny_stage2_joint: 3.500 nats per token, 2.750 below the unigram entropy" in text
    assert "5.500 nats per token, 0.500 below where the stage started (6.000)" in text
    assert "AR loss 4.0000 at the end of the one, 4.0000 before the first step of the other" in text


def test_losses_that_rose_are_called_above(folder, tmp_path) -> None:
    text = re.sub("<[^>]+>", "", written([folder("stage2_joint", entries(True, 6.0, 7.0))], tmp_path))
    assert "0.750 above the unigram entropy" in text
    assert "1.000 above where the stage started" in text


def test_a_stage_that_starts_elsewhere_is_not_compared(folder, tmp_path) -> None:
    outputs = [folder("stage2_joint", entries(True, 4.0, 3.5)), folder("stage1_ar", entries(False, 7.5, 4.0))]
    assert "starts from" not in written(outputs, tmp_path)


def test_without_an_entropy_neither_line_nor_gain_is_shown(outputs, tmp_path) -> None:
    html = written(outputs, tmp_path, entropy=None)
    checker = Checker()
    checker.feed(html)
    assert 'class="level"' not in html
    assert checker.cells[5:7] == ["-", "-"]


def test_the_first_stage_alone_has_no_mask_ratio_and_a_causal_picture(folder, tmp_path) -> None:
    html = written([folder("stage1_ar", entries(False, 7.5, 4.0))], tmp_path)
    assert "Mask ratio" not in html and "diffusion loss, training" not in html
    assert "Every token sees the tokens up to itself" in html


def test_a_run_that_has_only_been_evaluated_gives_a_page(folder, tmp_path) -> None:
    Checker().feed(written([folder("stage1_ar", entries(False, 7.5, 4.0)[:1])], tmp_path))


def test_long_runs_are_averaged_and_the_page_says_so(folder, tmp_path) -> None:
    html = written([folder("stage1_ar", entries(False, 7.5, 4.0, steps=50 * MOST))], tmp_path)
    assert html.count('class="spot ar"') == MOST
    assert "mean of up to 10 logged values" in html


def test_values_that_are_not_finite_are_left_out_and_counted(folder, tmp_path) -> None:
    broken = entries(False, 7.5, 4.0)
    broken[1]["AR loss"], broken[2]["gradient norm"] = math.inf, math.nan
    html = written([folder("stage1_ar", broken)], tmp_path)
    assert "Left out: 2 values that are not finite" in html
    assert html.count('class="spot ar"') == 3


def test_the_command_on_the_page_makes_the_page_again(outputs, tmp_path, monkeypatch, capsys) -> None:
    html = written(outputs, tmp_path, entropy=None)
    command = shlex.split(unescape(re.search(r"<pre>(nld report.*?)</pre>", html).group(1)))
    (tmp_path / "report.html").unlink()
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    assert (tmp_path / "report.html").read_text() == html
    assert text_table(read_stages(outputs), None) in capsys.readouterr().out


def test_the_command_names_the_data_of_the_entropy(outputs, tmp_path) -> None:
    assert "--data out/demo/data/almanac</pre>" in written(outputs, tmp_path)


def test_the_text_table_is_aligned(outputs) -> None:
    lines = text_table(read_stages(outputs), 6.25).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[4] == "4.000"


def test_nothing_is_written_for_a_folder_without_metrics(outputs, tmp_path) -> None:
    (outputs[1] / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        write_report(outputs, tmp_path / "report.html", 6.25, "title")
    assert not list(tmp_path.glob("*report.html*"))


def test_a_target_without_a_folder_is_refused(outputs, tmp_path) -> None:
    with pytest.raises(UserError, match="no folder"):
        write_report(outputs, tmp_path / "missing" / "report.html", 6.25, "title")


def test_losses_on_answers_are_told_apart_from_losses_on_text(outputs, folder, tmp_path) -> None:
    stages = [*outputs, folder("sft", entries(True, 3.9, 2.5))]
    page = written(stages, tmp_path, 6.3)
    assert "AR loss at the end of tiny_stage2_joint: <b>3.500</b>" in page, "the entropy is that of the text"
    assert "AR loss on answers at the end of tiny_sft: <b>2.500</b> nats per token (3.900 at its start)" in page
    assert "tiny_sft starts from" not in page, "other data: the two losses are not to be compared"
    assert "--data out/demo/data/almanac</pre>" in page
    row = text_table(read_stages(stages), 6.3).splitlines()[-1].split()
    assert row[:7] == ["tiny_sft", "20", "81,920", "3.900", "2.500", "-", "-"]


def test_evaluations_are_shown_beside_the_runs_and_told_in_the_command(outputs, tmp_path: Path) -> None:
    figures = {"answers": 1, "tokens_per_forward": 1.0, "tokens_per_forward_without_prefill": 1.1, "agreement": 1.0}
    figures |= {"equal": 1.0, "accuracy": None, "accepted_length": None, "kept": [], "tokens_per_second": 9.0}
    point = {"mode": "ar", "block": None, "threshold": None, "adapter": False, "name": "ar", "lossless": False}
    point |= {"exact": None, "overall": figures | {"right_was_choice": {}}, "categories": {}}
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "decode.json").write_text(
        json.dumps({"kind": "decode", "identity": {"model": "demo/hf"}, "points": [point]})
    )
    target = tmp_path / "report.html"
    write_report(outputs, target, None, "title", ReportExtras(evaluations=[tmp_path / "eval"]))
    page = target.read_text()
    assert "Decoding: demo/hf" in page and f"--eval {tmp_path / 'eval'}" in unescape(page)
