import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_prep import prepare_chat as module
from data_prep.encode_chat import REPORTS
from data_prep.prepare_chat import ChatOptions, prepare_chat
from nld_train.data.chat_encoder import load_chat_encoder
from nld_train.data.chat_template import Message
from nld_train.data.manifest import check_token_file_tokenizer, read_manifest
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError

ONE = ChatOptions(workers=1)
SUFFIXES = (".bin", ".idx", ".manifest.json", ".supervised.bin")


def conversation(number: int) -> dict:
    asked = [{"role": "user", "content": f"what is {number}? " * (number % 5 + 1)}]
    told = [{"role": "assistant", "content": f"function_{number} " * (number % 7 + 1)}]
    return {"messages": [*([{"role": "system", "content": "be short"}] if number % 3 else []), *(asked + told) * 2]}


def write_lines(path: Path, values: list) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def read(prefix: Path) -> dict[str, bytes]:
    return {suffix: Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES}


def output(folder: Path) -> Path:
    return folder / "out" / "chat"


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir()) if (folder / "out").exists() else []


def test_documents_and_their_supervision_are_those_of_the_encoder(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [conversation(number) for number in range(20)])
    manifest = prepare_chat([source], output(tmp_path), tokenizer, ONE)
    encoder = load_chat_encoder(load_tokenizer(tokenizer), thinking=False)
    tokens, supervision = TokenFile(output(tmp_path)), Supervision(output(tmp_path))
    for number in range(20):
        expected = encoder.conversation([Message(**turn) for turn in conversation(number)["messages"]])
        assert tokens[number].tolist() == expected.tokens.tolist()
        assert supervision.of(number).tolist() == expected.supervised.tolist()
    assert (
        manifest
        == read_manifest(output(tmp_path))
        == check_token_file_tokenizer(output(tmp_path), tokenizer, verify_hashes=True)
    )
    chat = manifest.chat
    assert chat is not None
    assert (chat.conversations, chat.supervised_tokens) == (20, supervision.flat.sum())
    assert (chat.dropped, chat.end_of_turn_id, chat.thinking, chat.last_turn_only) == ({}, 11, False, False)
    assert (manifest.end_of_document_id, manifest.bad_lines, manifest.sources) == (None, 0, ["a.jsonl"])
    assert left_behind(tmp_path) == [f"chat{suffix}" for suffix in SUFFIXES]


def test_parquet_holds_what_lines_hold(tmp_path: Path, tokenizer: Path) -> None:
    values = [conversation(number) for number in range(40)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet", row_group_size=7)
    write_lines(tmp_path / "a.jsonl", values)
    made = []
    for name in ("a.jsonl", "a.parquet"):
        prepare_chat([tmp_path / name], tmp_path / f"of {name}" / "chat", tokenizer, ONE)
        made.append(read(tmp_path / f"of {name}" / "chat"))
    assert made[0][".bin"] == made[1][".bin"] and made[0][".supervised.bin"] == made[1][".supervised.bin"]


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"question": "hello", "answer": "four"}] * 5 + [{"question": "hello", "answer": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(UserError, match=r"a\.parquet:6: empty answer"):
        prepare_chat([tmp_path / "a.parquet"], output(tmp_path), tokenizer, ONE)


def test_options_reach_the_encoder(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [conversation(1)])
    options = ChatOptions(workers=1, last_turn_only=True, thinking=True)
    manifest = prepare_chat([source], output(tmp_path), tokenizer, options)
    assert manifest.chat is not None and manifest.chat.last_turn_only and manifest.chat.thinking
    supervised = Supervision(output(tmp_path)).of(0).astype(int)
    assert (supervised[1:] > supervised[:-1]).sum() == 1  # one stretch


BAD_LINES = [
    ('{"messages": [', "broken JSON"),
    ('{"messages": [{"role": "wizard", "content": "x"}]}', "unknown role"),
    ('{"question": "hello", "answer": " "}', "empty answer"),
    ("", "empty line"),
    ('{"messages": [{"role": "user", "content": "hello"}]}', "no answer"),
]


def write_bad(path: Path) -> Path:
    """A good conversation before every bad line."""
    good = json.dumps(conversation(3))
    path.write_text("".join(f"{good}\n{line}\n" for line, _ in BAD_LINES))
    return path


def test_bad_conversations_are_counted_by_reason_named_and_skipped(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 100)  # the bad lines lie in different parts
    source = write_bad(tmp_path / "a.jsonl")
    with caplog.at_level(logging.WARNING):
        manifest = prepare_chat([source], output(tmp_path), tokenizer, ChatOptions(workers=1, max_bad_lines=5))
    assert manifest.chat is not None
    assert manifest.chat.dropped == {reason: 1 for _, reason in sorted(BAD_LINES, key=lambda line: line[1])}
    assert (manifest.bad_lines, manifest.chat.conversations) == (5, 5)
    named = [" ".join(record.getMessage().split()[:2]) for record in caplog.records]
    assert named == [f"skipped {source}:{number}:" for number in (2, 4, 6, 8, 10)]


def test_beyond_the_limit_the_first_are_named_and_a_higher_limit_goes_on(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 100)
    source = write_bad(tmp_path / "a.jsonl")
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="more than 3 bad lines") as error:
        prepare_chat([source], output(tmp_path), tokenizer, ChatOptions(workers=1, max_bad_lines=3))
    assert f"{source}:2: broken JSON" in str(error.value) and f"{source}:4: unknown role" in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(name.startswith("chat") for name in left_behind(tmp_path))
    with caplog.at_level(logging.INFO):
        prepare_chat([source], output(tmp_path), tokenizer, ChatOptions(workers=1, max_bad_lines=5))
    assert any("parts are finished already" in message for message in caplog.messages)
    assert left_behind(tmp_path) == [f"chat{suffix}" for suffix in SUFFIXES]


def test_an_input_without_a_conversation_is_an_error(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no conversation"):
        prepare_chat([tmp_path / "empty.jsonl"], output(tmp_path), tokenizer, ONE)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "said"), [("a.txt", b"hello", r"\.jsonl, .*\.parquet"), ("a.parquet", b"no", "not Parquet")]
)
def test_files_of_another_kind_are_refused(
    tmp_path: Path, tokenizer: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        prepare_chat([tmp_path / name], output(tmp_path), tokenizer, ONE)
    assert name in str(error.value) and "\n" not in str(error.value) and left_behind(tmp_path) == []


def test_an_output_is_replaced_only_on_request(tmp_path: Path, tokenizer: Path) -> None:
    sources = [write_lines(tmp_path / f"{i}.jsonl", [conversation(i)]) for i in (1, 2)]
    prepare_chat(sources[:1], output(tmp_path), tokenizer, ONE)
    before = read(output(tmp_path))
    with pytest.raises(UserError, match="exists"):
        prepare_chat(sources[1:], output(tmp_path), tokenizer, ONE)
    assert read(output(tmp_path)) == before
    prepare_chat(sources[1:], output(tmp_path), tokenizer, ChatOptions(workers=1, overwrite=True))
    assert read(output(tmp_path)) != before


SCRIPT = """
import logging, sys
from data_prep import prepare_chat as module
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    module.PIECE_BYTES = 2000
    options = module.ChatOptions(workers=int(sys.argv[4]))
    module.prepare_chat([sys.argv[1]], sys.argv[2], sys.argv[3], options)
"""


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_killed_and_run_again_the_files_are_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [conversation(number) for number in range(1000)])
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(prefix: Path, workers: int) -> subprocess.Popen:
        command = [sys.executable, tmp_path / "script.py", source, prefix, tokenizer, str(workers)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    run = start(output(tmp_path), 2)
    wait_for(lambda: len(list(tmp_path.glob(f"out/.chat.parts-*/*{REPORTS}"))) >= 5)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=20)
    assert run.returncode == -signal.SIGKILL and not any(name.startswith("chat") for name in left_behind(tmp_path))
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"out/.chat.parts-*/*{REPORTS}")}
    again = start(output(tmp_path), 1)
    changed: set[Path] = set()
    while again.poll() is None:
        seen = {path: path.stat().st_mtime_ns for path in finished if path.exists()}
        changed |= {path for path, time_ns in seen.items() if time_ns != finished[path]}
        time.sleep(0.01)
    assert again.returncode == 0 and not changed
    assert again.stderr is not None and "parts are finished already" in again.stderr.read()
    assert left_behind(tmp_path) == [f"chat{suffix}" for suffix in SUFFIXES]
    prepare_chat([source], tmp_path / "whole" / "chat", tokenizer, ONE)  # one process, other cuts, no interruption
    assert read(output(tmp_path)) == read(tmp_path / "whole" / "chat")


CLOCK = "{{ '<|im_start|>' + strftime_now('%Y-%m-%d') + '<|im_end|>' }}"


@pytest.fixture
def clock_tokenizer(tokenizer: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tokenizer, tmp_path / "clock")
    path = folder / "chat_template.jinja"
    path.write_text(CLOCK + path.read_text())
    return folder


def first_text(prefix: Path, tokenizer: Path) -> str:
    return load_tokenizer(tokenizer).decode(TokenFile(prefix)[0])


def test_a_clock_says_one_date_also_after_midnight(
    tmp_path: Path, clock_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preparation that was cut off keeps the date of its first start; one that is given is kept as well."""
    monkeypatch.setattr(module, "PIECE_BYTES", 100)
    source = write_bad(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="more than 1 bad lines"):
        prepare_chat([source], output(tmp_path), clock_tokenizer, ChatOptions(workers=1, max_bad_lines=1))
    (folder,) = (tmp_path / "out").glob(".chat.parts-*")
    assert (folder / "date").read_text() == date.today().isoformat()
    (folder / "date").write_text("2020-02-29")  # it was begun then
    for part in folder.glob("part-*"):
        part.unlink()
    manifest = prepare_chat([source], output(tmp_path), clock_tokenizer, ChatOptions(workers=1, max_bad_lines=5))
    assert manifest.chat is not None and manifest.chat.date == "2020-02-29"
    assert first_text(output(tmp_path), clock_tokenizer).startswith("<|im_start|>2020-02-29<|im_end|>")
    given = ChatOptions(workers=1, max_bad_lines=5, date="2021-03-04", overwrite=True)
    prepare_chat([source], output(tmp_path), clock_tokenizer, given)
    assert first_text(output(tmp_path), clock_tokenizer).startswith("<|im_start|>2021-03-04<|im_end|>")
    with pytest.raises(UserError, match="--date tomorrow"):
        prepare_chat([source], output(tmp_path), clock_tokenizer, replace(given, date="tomorrow"))


def test_what_is_not_read_not_written_or_left_out_is_in_the_manifest(tmp_path: Path, tokenizer: Path) -> None:
    folder = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    no_system = "{% if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endif %}"
    (folder / "chat_template.jinja").write_text(f"{{% for m in messages %}}{no_system}{{% endfor %}}")
    rows = [{"id": i, "source": "web", **conversation(i), "rating": 5 if i else None} for i in range(4)]
    rows.append({"prompt": "a", "completion": "b", "label": False})
    source = write_lines(tmp_path / "a.jsonl", rows)
    chat = prepare_chat([source], output(tmp_path), folder, ChatOptions(workers=1, chosen=True)).chat
    assert chat is not None
    assert chat.unread == {"id": 4, "rating": 3, "source": 4}
    assert chat.losses == {"system text not written by this template": 2}
    assert chat.left_out == {"a row that is marked as bad: label false": 1} and chat.dropped == {}
    assert (chat.template, chat.date, chat.bos_token_id, chat.chosen) == ("chat_template.jinja", None, 1, True)
    assert read_manifest(output(tmp_path)).chat == chat


def test_reasoning_that_a_template_cuts_is_refused_or_counted(tmp_path: Path, tokenizer: Path) -> None:
    folder = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    body = "{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    (folder / "chat_template.jinja").write_text(f"{{% for m in messages %}}{body}{{% endfor %}}")
    source = write_lines(tmp_path / "a.jsonl", [{"question": "a", "answer": "<think>so</think>b"}])
    with pytest.raises(UserError, match="removes the reasoning of an answer: --allow-losses"):
        prepare_chat([source], output(tmp_path), folder, ONE)
    chat = prepare_chat([source], output(tmp_path), folder, ChatOptions(workers=1, allow_losses=True)).chat
    assert chat is not None and chat.losses_allowed and chat.losses == {"reasoning removed from answers": 1}


def test_a_mask_that_is_text_is_refused_before_anything_is_read(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(UserError, match="--mask-id=300 is the text .* set --mask-id=100"):
        prepare_chat([tmp_path / "none.jsonl"], output(tmp_path), tokenizer, ChatOptions(workers=1, mask_id=300))


def test_saved_truncation_and_padding_change_nothing(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [conversation(1)])
    prepare_chat([source], output(tmp_path), tokenizer, ONE)
    folder = shutil.copytree(tokenizer, tmp_path / "saved")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {"strategy": {"Fixed": 99}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                          "pad_type_id": 0, "pad_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    prepare_chat([source], tmp_path / "saved" / "chat", folder, ONE)
    assert TokenFile(tmp_path / "saved" / "chat")[0].tolist() == TokenFile(output(tmp_path))[0].tolist()


def test_a_conversation_is_filled_with_end_marks_to_whole_blocks(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [conversation(number) for number in range(20)])
    plain, filled = tmp_path / "plain", tmp_path / "filled"
    prepare_chat([source], plain, tokenizer, ONE)
    manifest = prepare_chat([source], filled, tokenizer, ChatOptions(workers=1, fill_blocks=16))
    assert manifest.chat is not None
    end, added = manifest.chat.end_of_turn_id, 0
    for number in range(20):
        answered = int(np.flatnonzero(Supervision(plain).of(number))[-1]) + 1
        tokens, supervised = TokenFile(filled)[number], Supervision(filled).of(number)
        assert len(tokens) == len(supervised) == answered + -answered % 16
        assert tokens[:answered].tolist() == TokenFile(plain)[number][:answered].tolist()
        assert supervised[:answered].tolist() == Supervision(plain).of(number)[:answered].tolist()
        assert set(tokens[answered - 1 :].tolist()) == {end} and supervised[answered - 1 :].all()
        added += len(tokens) - answered
    assert manifest.chat.losses == {"end marks that fill blocks of 16 tokens": added}
    assert 0 < added < 20 * 16


@pytest.mark.parametrize("length", [0, -1, 4097])
def test_blocks_of_no_length_are_refused(length: int) -> None:
    with pytest.raises(UserError, match=f"--fill-blocks {length}"):
        ChatOptions(workers=1, fill_blocks=length)
