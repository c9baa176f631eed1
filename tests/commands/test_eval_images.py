"""`nld eval decode` on prompts with images: every mode, blindfolded, the page, and what is refused."""

import json
from pathlib import Path

import pytest

from nld_train import cli
from tests.vision_folder import write_picture

SMALL = ["--chat", "--block", "4", "--max-new-tokens", "8", "--dtype", "float32"]


@pytest.fixture
def ask(vision_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `nld eval decode` on rows of a prompt file; returns its exit status."""
    write_picture(tmp_path / "wide.png", 40, 16)
    write_picture(tmp_path / "high.png", 9, 30, seed=1)

    def run(rows: list[dict], *words: str, folder: Path = vision_export, command: str = "decode") -> int:
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = [str(folder), "--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["nld", "eval", command, *given, *words])
        return cli.main()

    return run


ROWS = [
    {"id": "a", "prompt": "what is it", "images": ["wide.png"], "reference": "nothing"},
    {"id": "b", "prompt": "and these", "images": ["wide.png", "high.png"]},
    {"id": "c", "prompt": "no image"},
]


def records(folder: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folder / "decode.jsonl").read_text().splitlines()[1:]]
    return {line["key"]: line for line in lines}


def test_every_mode_is_shown_the_images_and_the_page_shows_them_too(ask, tmp_path: Path) -> None:
    assert ask(ROWS, "--mode", "all", "--batch", "3", *SMALL) == 0
    figures = json.loads((tmp_path / "out" / "decode.json").read_text())
    lossless = [point for point in figures["points"] if point["lossless"]]
    assert len(lossless) == 2 and all(point["exact"] for point in lossless)
    assert all(point["overall"]["agreement"] == 1.0 for point in figures["points"] if point["mode"] != "diffusion")
    assert [picture["question"] for picture in figures["pictures"]] == ["what is it", "and these"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "What the model was shown." in page
    together = records(tmp_path / "out")
    # One by one, the answers are the same.
    assert ask(ROWS, "--mode", "all", *SMALL, "--overwrite") == 0
    alone = records(tmp_path / "out")
    assert {key: one["ids"] for key, one in together.items()} == {key: one["ids"] for key, one in alone.items()}


def test_grey_images_give_other_answers_and_the_page_says_so(ask, tmp_path: Path) -> None:
    assert ask(ROWS, "--mode", "ar", *SMALL) == 0
    seeing = records(tmp_path / "out")
    assert ask(ROWS, "--mode", "ar", "--blank-images", *SMALL) == 2  # another evaluation is never mixed in
    assert ask(ROWS, "--mode", "ar", "--blank-images", "--overwrite", *SMALL) == 0
    blind = records(tmp_path / "out")
    assert [seeing[key]["ids"] == blind[key]["ids"] for key in ("ar|a/1", "ar|b/1", "ar|c/1")] == [False, False, True]
    assert [one["prompt_tokens"] for one in seeing.values()] == [one["prompt_tokens"] for one in blind.values()]
    assert "grey images in place of these" in (tmp_path / "out" / "report.html").read_text()


def test_other_pixels_under_the_same_name_are_another_evaluation(ask, tmp_path: Path, capsys) -> None:
    assert ask(ROWS, "--mode", "ar", *SMALL) == 0
    write_picture(tmp_path / "high.png", 9, 30, seed=2)
    assert ask(ROWS, "--mode", "ar", *SMALL) == 2
    assert "another evaluation: images=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ([{"prompt": "x", "images": ["gone.png"]}], SMALL, "prompts.jsonl row 1: no file"),
        ([{"prompt": "x", "images": "wide.png"}], SMALL, "row 1: images='wide.png'; allowed: a list of paths"),
        ([{"turns": ["x", "y"], "images": ["wide.png"]}], SMALL, "1 images and 2 turns; allowed: images in one turn"),
        (ROWS, [word for word in SMALL if word != "--chat"], "allowed: images in one turn, with --chat"),
        (ROWS[2:], [*SMALL, "--blank-images"], "--blank-images; allowed: prompts with images"),
    ],
)
def test_what_cannot_be_shown_is_refused(ask, capsys, rows: list[dict], words: list[str], said: str) -> None:
    assert ask(rows, *words) == 2
    assert said in capsys.readouterr().err


def test_a_text_model_and_other_evaluations_refuse_images(ask, folder: Path, capsys) -> None:
    assert ask(ROWS, *SMALL, folder=folder) == 2
    assert "which has no processor_config.json" in capsys.readouterr().err
    assert ask(ROWS, "--chat", "--block", "4", "--max-new-tokens", "8", command="sol") == 2
    assert "`nld eval decode`" in capsys.readouterr().err
