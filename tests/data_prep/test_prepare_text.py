import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import prepare_text as module
from data_prep.prepare_text import TextOptions, prepare_text
from nld_train.data.manifest import check_token_file_tokenizer, read_manifest
from nld_train.data.token_file import TokenFile
from nld_train.data.tokenizer import CONTROL_IDS, load_tokenizer
from nld_train.errors import UserError

ONE = TextOptions(workers=1)
SUFFIXES = (".bin", ".idx", ".manifest.json")


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def decoded(prefix: Path, tokenizer: Path) -> list[str]:
    library = load_tokenizer(tokenizer)
    return [library.decode(document) for document in TokenFile(prefix)]


def output(folder: Path) -> Path:
    return folder / "out" / "data"


def left_behind(folder: Path) -> list[str]:
    """What lies in the output folder, but for the hidden folder of parts with which a next try goes on."""
    names = [path.name for path in (folder / "out").iterdir()] if (folder / "out").exists() else []
    return [name for name in names if not name.startswith(".data.parts-")]


def test_text_comes_back_from_its_tokens_and_every_document_ends(tmp_path: Path, tokenizer: Path) -> None:
    texts = ["one", "zwei: Grüße\r\n\n", "世界 🌍\t", " a\x00b "]
    files = [jsonl(tmp_path / "a.jsonl", texts[:2]), tmp_path / "b.txt", jsonl(tmp_path / "c.jsonl", texts[3:])]
    files[1].write_bytes(texts[2].encode())
    manifest = prepare_text(files, output(tmp_path), tokenizer, ONE)
    assert decoded(output(tmp_path), tokenizer) == [text + "</s>" for text in texts]
    assert all(document[-1] == 2 for document in TokenFile(output(tmp_path)))
    assert (
        manifest
        == read_manifest(output(tmp_path))
        == check_token_file_tokenizer(output(tmp_path), tokenizer, verify_hashes=True)
    )
    assert manifest.sources == ["a.jsonl", "b.txt", "c.jsonl"]
    assert (manifest.documents, manifest.files, manifest.end_of_document_id) == (4, 3, 2)
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)


def test_without_eos_the_documents_are_the_texts(tmp_path: Path, tokenizer: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    manifest = prepare_text([source], output(tmp_path), tokenizer, TextOptions(workers=1, append_eos=False))
    assert decoded(output(tmp_path), tokenizer) == ["one", "two"] and manifest.end_of_document_id is None


def test_the_spelling_of_control_tokens_stays_text(tmp_path: Path, tokenizer: Path) -> None:
    text = "stop </s> <s> <|im_start|>user<|im_end|> <SPECIAL_100><unk>"
    prepare_text([jsonl(tmp_path / "a.jsonl", [text])], output(tmp_path), tokenizer, ONE)
    document = TokenFile(output(tmp_path))[0]
    assert document[:-1].min() >= CONTROL_IDS and document[-1] == 2
    assert decoded(output(tmp_path), tokenizer) == [text + "</s>"]


def test_the_same_bytes_for_any_number_of_workers_and_any_cuts(
    tmp_path: Path, corpus: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = jsonl(tmp_path / "a.jsonl", [f"document {i} " * (i % 7 + 1) for i in range(300)])
    made = {}
    for name, workers, piece_bytes in (("whole", 1, 1 << 21), ("cut", 1, 777), ("parallel", 3, 777)):
        monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
        prefix = tmp_path / name / "data"
        prepare_text([lines, corpus], prefix, tokenizer, TextOptions(workers=workers))
        made[name] = [Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES]
        assert sorted(os.listdir(prefix.parent)) == [f"data{suffix}" for suffix in SUFFIXES]
    assert made["whole"] == made["cut"] == made["parallel"]


def test_bad_lines_within_the_limit_are_named_counted_and_skipped(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 40)  # the bad lines lie in different pieces
    lines = ['{"text": "good"}'] * 12
    lines[3], lines[10] = "{", '{"text": 1}'
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in files:
        path.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        manifest = prepare_text(files, output(tmp_path), tokenizer, TextOptions(workers=1, max_bad_lines=4))
    assert (manifest.bad_lines, manifest.documents) == (4, 20)
    named = [" ".join(record.getMessage().split()[:2]) for record in caplog.records]
    assert named == [f"skipped {path}:{number}:" for path in files for number in (4, 11)]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_lines_beyond_the_limit_name_the_first_and_leave_nothing(
    tmp_path: Path, tokenizer: Path, workers: int
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "good"}\n{"text": \n{"body": ""}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match="more than 1 bad lines") as error:
        prepare_text([source], output(tmp_path), tokenizer, TextOptions(workers=workers, max_bad_lines=1))
    assert f"{source}:2: broken JSON" in str(error.value) and f"{source}:3: no field" in str(error.value)
    assert "\n" not in str(error.value)
    assert left_behind(tmp_path) == []


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path: Path, tokenizer: Path) -> None:
    source = tmp_path / "latin.txt"
    source.write_bytes("ja\nnein\nGrüße".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt:3: not UTF-8"):
        prepare_text([source], output(tmp_path), tokenizer, ONE)
    assert left_behind(tmp_path) == []


def test_empty_files_are_counted_and_no_document_at_all_is_an_error(tmp_path: Path, tokenizer: Path) -> None:
    empty, blank, full = (tmp_path / name for name in ("empty.py", "blank.py", "full.py"))
    for path, text in ((empty, ""), (blank, "\n \n"), (full, "x = 1\n")):
        path.write_text(text)
    assert prepare_text([empty, blank, full], output(tmp_path), tokenizer, ONE).empty_files == 2
    with pytest.raises(UserError, match="no document"):
        prepare_text([empty, blank], tmp_path / "none", tokenizer, ONE)
    assert not list(tmp_path.glob("*none*")) and not list(tmp_path.glob(".none*"))


def test_an_output_is_replaced_only_on_request(tmp_path: Path, tokenizer: Path) -> None:
    sources_of = [jsonl(tmp_path / f"{name}.jsonl", [name]) for name in ("old", "new")]
    prepare_text(sources_of[:1], output(tmp_path), tokenizer, ONE)
    with pytest.raises(UserError, match="exists"):
        prepare_text(sources_of[1:], output(tmp_path), tokenizer, ONE)
    assert decoded(output(tmp_path), tokenizer) == ["old</s>"]
    prepare_text(sources_of[1:], output(tmp_path), tokenizer, TextOptions(workers=1, overwrite=True))
    assert decoded(output(tmp_path), tokenizer) == ["new</s>"]


@pytest.mark.parametrize("options", [{"workers": 0}, {"max_bad_lines": -1}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UserError):
        TextOptions(**options)


SCRIPT = """
import logging, sys
from data_prep import prepare_text as module
from data_prep.prepare_text import TextOptions, prepare_text
from nld_train.errors import UserError
if len(sys.argv) > 4:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    module.PIECE_BYTES = int(sys.argv[4])
if __name__ == "__main__":
    try:
        prepare_text([sys.argv[1]], sys.argv[2], sys.argv[3], TextOptions(workers=2))
    except UserError as error:
        sys.exit(f"UserError: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


def children(pid: int) -> list[int]:
    """Worker processes of a process."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            found.append(int(child))
    return found


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("blow", ["kill worker", "interrupt", "kill parent"])
def test_a_run_that_is_cut_off_leaves_no_output(tmp_path: Path, tokenizer: Path, blow: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["some words of a long document " * 10_000] * 20)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, source, output(tmp_path), tokenizer, "200000"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: len(children(run.pid)) == 2)
    workers = children(run.pid)
    if blow != "interrupt":  # that one comes while the workers are starting: none may speak of it
        wait_for(lambda: list(tmp_path.glob("out/.data.parts-*/.part-*")))
    if blow == "kill worker":
        os.kill(workers[0], signal.SIGKILL)
    elif blow == "interrupt":
        os.killpg(run.pid, signal.SIGINT)
    else:
        run.kill()
    _, said = run.communicate(timeout=20)
    assert run.returncode != 0
    if blow == "kill worker":
        assert said.splitlines()[-1].startswith("UserError: a worker process was killed")
    if blow == "interrupt":
        assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert left_behind(tmp_path) == []
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def contents(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES]


def test_killed_and_run_again_the_files_are_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [f"document {i}: some words" * 40 for i in range(2000)])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, source, output(tmp_path), tokenizer, "8000"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: len(list(tmp_path.glob("out/.data.parts-*/*.reports.json"))) >= 5)
    run.kill()
    run.communicate(timeout=20)
    wait_for(lambda: run.returncode is not None)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/.data.parts-*/part-*")}
    assert left_behind(tmp_path) == [] and len(finished) >= 15
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    changed: set[Path] = set()
    while again.poll() is None:
        seen = {path: path.stat().st_mtime_ns for path in finished if path.exists()}
        changed |= {path for path, time_ns in seen.items() if time_ns != finished[path]}
        time.sleep(0.01)
    said = again.communicate()[1]
    assert again.returncode == 0 and "parts are finished already" in said and not changed, said
    prepare_text([source], tmp_path / "whole" / "data", tokenizer, ONE)
    assert contents(output(tmp_path)) == contents(tmp_path / "whole" / "data")
    assert sorted(os.listdir(tmp_path / "out")) == [f"data{suffix}" for suffix in SUFFIXES]  # no part is left


def test_a_higher_limit_of_bad_lines_goes_on_with_the_parts(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{\n')
    with pytest.raises(UserError, match="more than 0 bad lines"):
        prepare_text([tmp_path / "a.jsonl"], output(tmp_path), tokenizer, ONE)
    with caplog.at_level(logging.INFO):
        prepare_text([tmp_path / "a.jsonl"], output(tmp_path), tokenizer, TextOptions(workers=1, max_bad_lines=1))
    assert "1 of 1 parts are finished already" in caplog.text
    assert sorted(left_behind(tmp_path)) == [f"data{suffix}" for suffix in SUFFIXES]


def test_a_larger_input_has_larger_parts() -> None:
    assert module.part_bytes(0) == module.part_bytes(8 << 30) == 2 << 20
    assert module.part_bytes((8 << 30) + 1) == 4 << 20
    assert module.part_bytes(4_200_000_000_000) == 256 << 20  # a trillion tokens: 16 thousand parts


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("NO FULL DISK TESTED: mounting a small one needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, small_disk: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 50_000)
    source = jsonl(tmp_path / "a.jsonl", [f"document {i}: some words" * 40 for i in range(300)])
    (small_disk / "else").write_bytes(b"x" * 1_800_000)
    prefix = small_disk / "data"
    with pytest.raises(UserError, match="No space left") as error:
        prepare_text([source], prefix, tokenizer, TextOptions(workers=workers))
    assert "\n" not in str(error.value) and not list(small_disk.glob("data*"))
    finished = len(list(small_disk.glob(".data.parts-*/*.reports.json")))
    assert finished > 0
    (small_disk / "else").unlink()
    prepare_text([source], prefix, tokenizer, TextOptions(workers=workers))
    prepare_text([source], tmp_path / "whole" / "data", tokenizer, ONE)
    assert contents(prefix) == contents(tmp_path / "whole" / "data")


def test_a_mask_that_is_text_is_refused_before_anything_is_read(tmp_path: Path, tokenizer: Path) -> None:
    for mask, problem in (
        (300, "--mask-id=300 is the text .* set --mask-id=100"),
        (100, "no file|does not exist|none"),
    ):
        with pytest.raises(UserError, match=problem):
            prepare_text([tmp_path / "none.jsonl"], output(tmp_path), tokenizer, TextOptions(workers=1, mask_id=mask))
