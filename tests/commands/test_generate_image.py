"""`nld generate --image`: every mode, and one line with status 2 for every bad input."""

import json
import sys
from pathlib import Path

import pytest
import torch

from nld_train import cli
from nld_train.report.decoded_answers import read_answers
from tests.convert.conftest import export, imported
from tests.vision_folder import write_picture


@pytest.fixture
def nld(monkeypatch, capsys):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nld", "generate", *map(str, words)])
        status = cli.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_every_mode_answers_to_images_and_the_exact_ones_alike(vision_export, nld, tmp_path) -> None:
    pictures = [write_picture(tmp_path / f"{seed}.png", 40, 20, seed) for seed in range(3)]
    words = ["--model", vision_export, "--mode", "all", "--chat", "--prompt", "what?", "--max-new-tokens", 8]
    words += ["--block-length", 4, "--json", tmp_path / "answers.json"]
    texts = []
    for shown in (pictures[:2], pictures[1:]):
        status, out, err = nld(*words, *(word for picture in shown for word in ("--image", picture)))
        assert status == 0 and out.count("tokens per forward") == 4, err
        _, (ar, _, linear, quadratic) = read_answers(tmp_path / "answers.json")
        assert ar.pieces == linear.pieces == quadratic.pieces
        assert json.loads((tmp_path / "answers.json").read_text())["images"] == [str(picture) for picture in shown]
        texts.append(ar.pieces)
    assert texts[0] != texts[1], "the answer hangs on the images"
    status, out, _ = nld(*words)
    assert status == 0 and out.count("tokens per forward") == 4, "text alone"


def test_bad_images_are_one_line_with_status_2(vision_export, exported_text, nld, tmp_path) -> None:
    whole = write_picture(tmp_path / "whole.png", 40, 20)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:500])
    words = ["--mode", "ar", "--prompt", "what?", "--max-new-tokens", 4]
    chat = [*words, "--chat", "--model"]
    for given, message in (
        ([*chat, vision_export, "--image", broken], "broken.png is no image that can be read"),
        ([*chat, vision_export, "--image", tmp_path / "nowhere.png"], "nowhere.png; allowed: an image file"),
        ([*words, "--model", vision_export, "--image", whole], "--image without --chat"),
        ([*chat, exported_text, "--image", whole], "which has no processor_config.json; allowed: an export of a model"),
        ([*chat, vision_export, "--image", whole, "--infill", "x", "--infill-length", 2], "--image with --infill"),
        ([*chat, vision_export, "--image", whole, "--prompt", "<|im_end|>"], "spells the control token"),
        ([*chat, vision_export, "--image", whole, "--max-new-tokens", 250], "allowed: 256 positions together"),
    ):  # fmt: skip
        status, _, err = nld(*given)
        assert status == 2 and message in err and err.count("\n") == 1, err


@pytest.fixture(scope="module")
def exported_text(vision_export, tmp_path_factory) -> Path:
    """The same language model alone."""
    made = tmp_path_factory.mktemp("text")
    return export(imported(vision_export, made / "out", text_only=True), made / "hf", dtype=torch.float32)
