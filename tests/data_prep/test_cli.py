from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.data.manifest import read_manifest
from nld_train.errors import UserError

Nld = Callable[..., int]


def test_tokenizer_then_token_file_then_report(
    tmp_path: Path, corpus: Path, nld: Nld, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, prefix = tmp_path / "tokenizer", tmp_path / "data"
    assert nld("data", "train-tokenizer", corpus, "--output", tokenizer, "--vocab-size", 380) == 0
    assert nld("data", "prepare", corpus, "--tokenizer", tokenizer, "--output", prefix, "--workers", 1) == 0
    assert nld("data", "inspect", prefix, "--tokenizer", tokenizer, "--samples", 1, "--verify") == 0
    said = capsys.readouterr().out
    assert "4 documents" in said and "documents: 4" in said and "--- document" in said


def test_every_option_of_prepare_arrives(tmp_path: Path, tokenizer: Path, nld: Nld) -> None:
    folder, prefix = tmp_path / "in", tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"body": "one"}\nbroken\n')
    (folder / "b.weird").write_text("two")
    (folder / "c.py").write_text("three")
    words = [
        "data",
        "prepare",
        folder,
        "--tokenizer",
        tokenizer,
        "--output",
        prefix,
        "--workers",
        1,
        "--text-key",
        "body",
    ]
    words += ["--max-bad-lines", 1, "--suffix", ".jsonl", ".weird", "--no-eos"]
    with pytest.raises(UserError, match="--mask-id=300 is the text"):
        nld(*words, "--mask-id", 300)
    assert nld(*words) == 0
    with pytest.raises(UserError, match="exists"):
        nld(*words)
    assert nld(*words, "--overwrite") == 0
    manifest = read_manifest(prefix)
    assert (manifest.files, manifest.documents, manifest.bad_lines, manifest.end_of_document_id) == (2, 2, 1, None)


def test_every_option_of_prepare_chat_arrives(
    tmp_path: Path, tokenizer: Path, nld: Nld, capsys: pytest.CaptureFixture[str]
) -> None:
    source, prefix = tmp_path / "a.jsonl", tmp_path / "chat"
    source.write_text('{"question": "one", "answer": "two"}\nbroken\n')
    words = ["data", "prepare-chat", source, "--tokenizer", tokenizer, "--output", prefix, "--workers", 1]
    words += ["--max-bad", 1, "--thinking", "--last-turn-only", "--chosen", "--allow-losses"]
    with pytest.raises(UserError, match="--date soon"):
        nld(*words, "--date", "soon")
    with pytest.raises(UserError, match="--mask-id=300 is the text"):
        nld(*words, "--mask-id", 300)
    assert nld(*words) == 0
    assert "1 conversations" in (said := capsys.readouterr().out) and "dropped 1 (1 broken JSON)" in said
    with pytest.raises(UserError, match="exists"):
        nld(*words)
    assert nld(*words, "--overwrite") == 0
    chat = read_manifest(prefix).chat
    assert chat is not None and chat.thinking and chat.last_turn_only and chat.dropped == {"broken JSON": 1}
    assert chat.chosen and chat.losses_allowed
    capsys.readouterr()
    assert nld("data", "inspect", prefix, "--tokenizer", tokenizer) == 0
    said = capsys.readouterr().out
    assert "chat, conversations: 1" in said and "chat, dropped: 1 broken JSON" in said


def test_demo_conversations_become_a_file(tmp_path: Path, nld: Nld, capsys: pytest.CaptureFixture[str]) -> None:
    assert nld("data", "stdlib-chat", "--output", tmp_path / "chat.jsonl") == 0
    assert "conversations" in capsys.readouterr().out and (tmp_path / "chat.jsonl").is_file()


def test_the_almanac_is_written_and_not_replaced_unasked(
    tmp_path: Path, nld: Nld, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nld("data", "almanac", "--output", tmp_path / "almanac") == 0
    assert "held_out.jsonl with 36 lines" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists"):
        nld("data", "almanac", "--output", tmp_path / "almanac")


def test_a_tokenizer_folder_is_replaced_only_on_request(tmp_path: Path, corpus: Path, nld: Nld) -> None:
    words = ["data", "train-tokenizer", corpus, "--output", tmp_path / "made", "--vocab-size", 360]
    assert nld(*words) == 0
    with pytest.raises(UserError, match="exists"):
        nld(*words)
    assert nld(*words, "--overwrite") == 0


@pytest.mark.parametrize(
    "command", ["prepare", "prepare-chat", "inspect", "train-tokenizer", "almanac", "stdlib", "stdlib-chat"]
)
def test_help_shows_an_example(command: str, nld: Nld, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        nld("data", command, "--help")
    assert end.value.code == 0
    assert f"nld data {command} " in capsys.readouterr().out.split("example:")[1]


def test_a_missing_tokenizer_is_one_line(tmp_path: Path, corpus: Path, nld: Nld) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json in .*missing") as error:
        nld("data", "prepare", corpus, "--tokenizer", tmp_path / "missing", "--output", tmp_path / "data")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_what_is_not_read_of_a_folder_is_in_the_summary_and_the_manifest(
    tmp_path: Path, tokenizer: Path, nld: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a.md", "b.png", "c.png", "package.json"):
        (folder / name).write_text("{}")
    assert nld("data", "prepare", folder, "--tokenizer", tokenizer, "--output", tmp_path / "x", "--workers", 1) == 0
    assert "; not read in the folders: 1 .json without 'text', 2 .png\n" in capsys.readouterr().out
    assert read_manifest(tmp_path / "x").unread == {".json without 'text'": 1, ".png": 2}


def test_files_can_be_taken_from_folders_by_suffix_alone(
    tmp_path: Path, tokenizer: Path, nld: Callable[..., int]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id,body\n1,one\n")
    (tmp_path / "in" / "b.md").write_text("two")
    words = ["--suffix", ".csv", "--text-key", "body", "--workers", 1]
    assert nld("data", "prepare", tmp_path / "in", "--tokenizer", tokenizer, "--output", tmp_path / "x", *words) == 0
    assert read_manifest(tmp_path / "x").unread == {".md": 1}


def test_shards_are_made_and_merged(
    tmp_path: Path,
    corpus: Path,
    tokenizer: Path,
    nld: Nld,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("data_prep.prepare_text.PIECE_BYTES", 5000)
    common = [corpus, "--tokenizer", tokenizer, "--workers", 1]
    for shard in ("2/2", "1/2"):
        assert nld("data", "prepare", *common, "--output", tmp_path / "data", "--shard", shard) == 0
    assert nld("data", "merge", tmp_path / "data", "--workers", 1) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("shard 2/2 is done: ") and said[0].endswith("2 parts of other shards are missing")
    assert said[1].endswith("0 parts of other shards are missing") and "data.bin, .idx" in said[2]
    assert nld("data", "prepare", *common, "--output", tmp_path / "whole") == 0
    for suffix in (".bin", ".idx", ".manifest.json"):
        assert Path(f"{tmp_path / 'data'}{suffix}").read_bytes() == Path(f"{tmp_path / 'whole'}{suffix}").read_bytes()
    with pytest.raises(UserError, match="I/N"):
        nld("data", "prepare", *common, "--output", tmp_path / "other", "--shard", "3/2")
