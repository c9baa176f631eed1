import json
import re
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.report.decoded_answers import decoded_section

ANSWER = {
    "mode": "diffusion",
    "pieces": ["de", "f <x>"],
    "order": [3, 1],
    "forwards": 4,
    "detail": "prefill 1, denoise 2, refresh 1",
    "tokens_per_forward": 0.5,
    "tokens_per_second": 12.0,
    "accepted_lengths": [1, 2],
}


def test_every_token_shows_its_forward(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"prompt": "im<port", "answers": [ANSWER]}))
    html = decoded_section([path])
    assert 'title="forward 3">de</span>' in html
    assert 'title="forward 1">f &lt;x&gt;</span>' in html
    assert "im&lt;port" in html
    assert "2 tokens in 4 forwards (prefill 1, denoise 2, refresh 1): 0.50 tokens per forward" in html
    assert "1.50 tokens per verification" in html


def test_the_race_has_a_frame_for_every_forward_of_the_slowest_mode(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    slow = ANSWER | {"mode": "ar", "forwards": 9, "order": [1, 9]}
    path.write_text(json.dumps({"prompt": "", "answers": [ANSWER, slow]}))
    html = decoded_section([path, path])
    assert html.count('min="0" max="9" value="9"') == 2 and html.count("<script>") == 1
    assert re.findall(r'data-forward="(\d+)"', html) == ["3", "1", "1", "9"] * 2
    assert re.findall(r'data-forwards="(\d+)"', html) == ["4", "9"] * 2


def test_an_answer_stands_below_a_turn_and_right_behind_a_text(tmp_path: Path) -> None:
    for chat, between in ((True, "\n"), (False, "")):
        path = tmp_path / "answers.json"
        path.write_text(json.dumps({"prompt": "Who?", "chat": chat, "answers": [ANSWER]}))
        assert f"Who?{between}</span>" in decoded_section([path])


def test_later_tokens_are_darker(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"prompt": "", "answers": [ANSWER]}))
    html = decoded_section([path])
    late, early = (float(html.split(f'" title="forward {step}"')[0].rsplit("/ ", 1)[1][:4]) for step in (3, 1))
    assert late > early


@pytest.mark.parametrize("text", ["", "{}", '{"prompt": "", "answers": [{"mode": "ar"}]}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"answers\.json"):
        decoded_section([path])


@pytest.mark.parametrize(
    "change",
    [
        {"order": [1]},
        {"order": [1, "3"]},
        {"order": 3},
        {"pieces": None},
        {"forwards": -1},
        {"forwards": True},
        {"tokens_per_second": "fast"},
        {"mode": 3},
        {"more": 1},
    ],
)
def test_an_answer_with_a_field_of_another_kind_is_refused(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"prompt": "", "answers": [ANSWER | change]}))
    with pytest.raises(UserError, match=r"answers\.json holds no answers"):
        decoded_section([path])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        decoded_section([tmp_path / "none.json"])
