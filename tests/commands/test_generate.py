"""`nld generate`: what it prints, and one line for every bad input."""

import io
import json
import sys
from dataclasses import fields, replace

import pytest

from nld_train import cli
from nld_train.commands.generate import (
    HELP,
    SAMPLED,
    TextStream,
    chat_prompts,
    choose_device,
    decode_settings,
    read_prompts,
    with_end_of_turn,
)
from nld_train.data.tokenizer import CONTROL_IDS, load_tokenizer
from nld_train.decode.modes import MODES
from nld_train.decode.settings import DecodeConfig
from nld_train.decode.stop_texts import before_stop, ends_with_stop
from nld_train.errors import UserError
from nld_train.report.decoded_answers import read_answers
from tests.decode.random_sampler import constant_parts, put_sampler

GAP = ["--infill", "b", "--infill-length", "4"]


def nld(monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["nld", *map(str, words)])
    return cli.main()


def test_every_setting_has_a_flag_with_a_help_text():
    assert list(HELP) == [field.name for field in fields(DecodeConfig)]


def test_flags_become_settings_and_the_rest_keeps_its_default():
    words = ["--model", "X", "--mode", "ar", "--max-new-tokens", "64", "--threshold", "none", "--temperature", "0.5"]
    made = decode_settings(cli.parse_words(["generate", *words]))
    assert made == DecodeConfig(max_new_tokens=64, threshold=None, temperature=0.5)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_prints_the_text_and_then_its_figures(folder, monkeypatch, capsys, mode):
    arguments = ["generate", "--model", folder, "--mode", mode, "--max-new-tokens", 16, "--block-length", 8]
    assert nld(monkeypatch, *arguments, "--prompt", "import os", "--eos-token-id", 399) == 0
    *text, figures = capsys.readouterr().out.rstrip("\n").split("\n")
    assert any(text) and figures.startswith(f"[{mode}] ")
    assert "NFE " in figures and "tokens per forward" in figures and "tokens/s" in figures


def test_self_speculation_prints_what_ar_prints(folder, monkeypatch, capsys):
    texts = []
    for mode in ("ar", "self-spec", "quadratic"):
        words = ["--max-new-tokens", 16, "--block-length", 4, "--prompt", "def main"]
        assert nld(monkeypatch, "generate", "--model", folder, "--mode", mode, *words) == 0
        texts.append(capsys.readouterr().out.rsplit(f"[{mode}]", 1)[0])
    assert texts[0] == texts[1] == texts[2]


def test_prompts_come_from_a_file_or_from_standard_input(folder, monkeypatch, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("import os\n\ndef main\n")
    words = ["generate", "--model", folder, "--mode", "ar", "--max-new-tokens", 4]
    assert nld(monkeypatch, *words, "--prompt-file", file) == 0
    out = capsys.readouterr().out
    assert "1 of 2, ar: import os" in out and "2 of 2, ar: def main" in out and out.count("NFE 4") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("import os\nimport re\n"))
    assert nld(monkeypatch, *words) == 0
    assert capsys.readouterr().out.count("NFE 4") == 1


def test_all_modes_are_written_for_the_report(folder, monkeypatch, capsys, tmp_path):
    file = tmp_path / "answers.json"
    words = ["--mode", "all", "--prompt", "import os", "--json", file, "--eos-token-id", 399]
    limits = ["--max-new-tokens", 16, "--block-length", 8]
    assert nld(monkeypatch, "generate", "--model", folder, *words, *limits) == 0
    prompt, answers = read_answers(file)
    assert (prompt, [answer.mode for answer in answers]) == ("import os", list(MODES))
    ar, *_ = answers
    assert ar.order == list(range(1, 17)) and ar.forwards == 16 and "prefill 1, decode 15" in ar.detail
    assert all(len(answer.pieces) == len(answer.order) == 16 for answer in answers)


@pytest.mark.parametrize(("thinking", "tail"), [(False, "<think></think>"), (True, "<think>\n")])
def test_a_chat_prompt_is_a_users_turn_in_the_folders_template(folder, thinking, tail):
    tokenizer = load_tokenizer(folder)
    encode, end = chat_prompts(tokenizer, thinking)
    prompt = encode("import <|im_end|>")
    told = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nimport <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompt) == told + tail
    assert [token for token in prompt if token < CONTROL_IDS] == [10, 11, 10, 11, 10] and end == 11


def test_a_chat_ends_with_the_turn_unless_told_otherwise():
    assert with_end_of_turn(DecodeConfig(), 11) == DecodeConfig(eos_token_id=(11,))
    assert with_end_of_turn(DecodeConfig(eos_token_id=(7,)), 11) == DecodeConfig(eos_token_id=(7,))


def test_chat_shows_the_answer_alone(folder, monkeypatch, capsys):
    words = ["generate", "--model", folder, "--mode", "ar", "--max-new-tokens", 8, "--prompt", "import os"]
    assert nld(monkeypatch, *words, "--chat") == 0
    chat = capsys.readouterr().out
    assert nld(monkeypatch, *words) == 0
    assert "[ar] 8 tokens" in chat and "im_start" not in chat and "import os" not in chat
    assert chat.split("[ar]")[0] != capsys.readouterr().out.split("[ar]")[0]


def test_a_gap_is_filled_between_two_texts(folder, monkeypatch, capsys, tmp_path):
    words = ["generate", "--model", folder, "--mode", "diffusion", "--block-length", 8, "--eos-token-id", 399]
    gap = ["--infill", "import os and import sys", "--infill-length", 5, "--json", tmp_path / "gap.json"]
    seen = []
    for prompt in ("import os", ""):
        assert nld(monkeypatch, *words, "--prompt", prompt, *gap) == 0
        figures, sight = capsys.readouterr().out.rstrip("\n").split("\n")[-2:]
        assert figures.startswith("[diffusion] 5 tokens") and "saw 3 of the" in sight
        shown, (answer,) = read_answers(tmp_path / "gap.json")
        assert shown == prompt and len(answer.pieces) == 5
        assert json.loads((tmp_path / "gap.json").read_text())["text_behind"] == "import os and import sys"
        seen.append(figures)
    assert "prefill 1," in seen[0] and "prefill 0," in seen[1]


def test_a_trained_sampler_changes_diffusion_alone_and_says_so(folder, monkeypatch, capsys, tmp_path):
    put_sampler(folder, *constant_parts(400, 9.0))
    words = ["generate", "--model", folder, "--mode", "all", "--prompt", "import os", "--eos-token-id", 399]
    limits, found = ["--max-new-tokens", 16, "--block-length", 8], []
    for given in ([], ["--sampler"]):
        assert nld(monkeypatch, *words, *limits, "--json", tmp_path / "all.json", *given) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(SAMPLED)]
        assert [line.split()[0] for line in lines] == ["[diffusion]"] * len(given)
        found.append({answer.mode: answer for answer in read_answers(tmp_path / "all.json")[1]})
    plain, sampled = found
    assert sampled["diffusion"].detail == f"prefill 1, denoise 2, refresh 1; {SAMPLED}"
    for mode in ("ar", "self-spec", "quadratic"):
        assert replace(sampled[mode], tokens_per_second=0) == replace(plain[mode], tokens_per_second=0)


BAD = {
    "half a gap": (["--prompt", "a", "--infill-length", "4"], "one of --infill and --infill-length; allowed: the two"),
    "half a gap, the text": (["--prompt", "a", "--infill", "b"], "one of --infill and --infill-length"),
    "a gap in every mode": (["--mode", "all", "--prompt", "a", *GAP], "--infill with --mode all; allowed: diffusion"),
    "a gap left to right": (["--mode", "ar", "--prompt", "a", *GAP], "--infill with --mode ar; allowed: diffusion"),
    "nothing behind": (["--prompt", "a", "--infill", "", "--infill-length", "4"], "an empty --infill"),
    "no UTF-8 behind": (["--prompt", "a", "--infill", "caf\udce9", "--infill-length", "4"], "--infill is not UTF-8"),
    "two lengths": (["--prompt", "a", *GAP, "--max-new-tokens", "32"], "--max-new-tokens 32 with --infill"),
    "no length": (["--prompt", "a", "--infill", "b", "--infill-length", "x"], "infill_length='x'"),
    "a long gap": (["--prompt", "a", "--infill", "b", "--infill-length", "32"], "a gap of 32 tokens with block_length"),
    "thinking in a gap": (
        ["--prompt", "a", *GAP, "--max-thinking-tokens", "2", "--end-think-token-id", "5"],
        "max_thinking_tokens=2 in a gap",
    ),
    "a sampler in AR": (["--mode", "ar", "--prompt", "a", "--sampler"], "--sampler with --mode ar; allowed: diffusion"),
    "a warm sampler": (["--prompt", "a", "--sampler", "--temperature", "1"], "sampler=true with temperature=1"),
    "no sampler": (["--prompt", "a", "--sampler"], "no sampler/config.json in "),
    "rounds": (["--prompt", "a", "--revise", "2", "--forwards-per-block", "2"], "forwards_per_block=2 with revise=2"),
    "no rounds": (["--prompt", "a", "--revise=-1"], "decode.revise=-1"),
    "thinking": (["--prompt", "a", "--thinking"], "--thinking without --chat"),
    "no folder": (["--model", "nowhere", "--prompt", "a"], "no config.json in nowhere"),
    "empty prompt": (["--prompt", ""], "prompt 0 is empty"),
    "no file": (["--prompt-file", "nowhere.txt"], "no file nowhere.txt"),
    "blocks": (["--prompt", "a", "--max-new-tokens", "33"], "max_new_tokens=33 with block_length=32"),
    "context": (["--prompt", "a " * 200, "--max-new-tokens", "32"], "128 positions together"),
    "json": (["--prompt", "a", "--prompt", "b", "--json", "x.json"], "--json with 2 prompts"),
    "number": (["--prompt", "a", "--temperature", "warm"], "temperature='warm'; allowed: numbers"),
    "no UTF-8": (["--prompt", "caf\udce9"], "--prompt is not UTF-8: 'caf\\udce9'"),
    "no UTF-8 to stop at": (["--prompt", "a", "--stop", "caf\udce9"], "--stop is not UTF-8"),
    "no stop": (["--prompt", "a", "--stop", ""], "an empty --stop"),
    "end outside": (["--prompt", "a", "--eos-token-id", "2,400"], "eos_token_id=400; allowed: ids from 0 on below"),
    "end below": (["--prompt", "a", "--eos-token-id=-1"], "decode.eos_token_id=-1"),
    "range": (["--prompt", "a", "--top-p", "2"], "top_p=2.0; allowed: above 0, at most 1"),
}


@pytest.mark.parametrize(("words", "named"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_on_stderr_and_status_2(folder, monkeypatch, capsys, words, named):
    assert nld(monkeypatch, "generate", "--mode", "diffusion", "--model", folder, *words) == 2
    error = capsys.readouterr().err
    assert named in error and error.startswith("nld: ") and error.count("\n") == 1


def test_an_empty_prompt_file_is_refused(folder, monkeypatch, capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    words = ["--model", folder, "--mode", "ar", "--prompt-file", tmp_path / "empty.txt"]
    assert nld(monkeypatch, "generate", *words) == 2
    assert "holds no prompt" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused():
    assert (choose_device("auto", True), choose_device("auto", False), choose_device("cpu", True)) == (
        "cuda",
        "cpu",
        "cpu",
    )
    with pytest.raises(UserError, match="cuda without a GPU"):
        choose_device("cuda", False)


def test_the_stream_waits_for_whole_characters_and_hides_the_end_of_sequence():
    out = io.StringIO()
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), (0,), (), out)
    shown = []
    for tokens in ([104], [0xC3], [0xBC, 33], [0xE2, 0], []):
        stream(0, tokens)
        shown.append(out.getvalue())
    stream.close()
    assert shown == ["h", "h", "hü!", "hü!", "hü!"] and out.getvalue() == "hü!\ufffd\n"


def test_standard_input_that_is_no_utf_8_is_refused(folder, monkeypatch, capsys):
    for errors in ("strict", "surrogateescape"):  # what Python opens it with depends on the locale
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), "utf-8", errors))
        assert nld(monkeypatch, "generate", "--model", folder, "--mode", "ar") == 2
        error = capsys.readouterr().err
        assert error.startswith("nld: standard input is not UTF-8") and error.count("\n") == 1


def test_a_prompt_file_is_cut_at_line_ends_alone(tmp_path):
    file = tmp_path / "prompts.txt"
    prompts = ["a\u2028b\x0cc\x1cd\x85e\u2029f", " indented", "a\rb"]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*prompts[:2], "", prompts[2] + "\n \n"]).encode())
    args = cli.parse_words(["generate", "--model", "X", "--mode", "ar", "--prompt-file", str(file)])
    assert read_prompts(args, io.StringIO()) == prompts


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_ends_before_the_first_stop_text_in_every_mode(folder, monkeypatch, capsys, mode):
    words = ["generate", "--model", folder, "--mode", mode, "--max-new-tokens", 32, "--block-length", 8]
    assert nld(monkeypatch, *words, "--prompt", "import os", "--eos-token-id", 399) == 0
    text = capsys.readouterr().out.rpartition(f"\n[{mode}]")[0]
    stop = text[len(text) // 2 :][:3]
    assert nld(monkeypatch, *words, "--prompt", "import os", "--eos-token-id", 399, "--stop", "no", "--stop", stop) == 0
    shown, _, figures = capsys.readouterr().out.rpartition(f"\n[{mode}]")
    assert shown == before_stop(text, ["no", stop]) and int(figures.split()[0]) < 32


def test_the_stream_holds_back_what_may_become_a_stop_text():
    out = io.StringIO()
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), (), ("###", "#!"), out)
    shown = []
    for text in ("a#", "b", "##", "#c"):
        stream(0, list(text.encode()))
        shown.append(out.getvalue())
    stream.close()
    assert shown == ["a", "a#b", "a#b", "a#b"] and out.getvalue() == "a#b\n"


def test_a_stop_text_is_found_across_tokens():
    complete = ends_with_stop(lambda ids: bytes(ids).decode(errors="replace"), ["\n\n", "end"])
    assert [complete(list(text.encode())) for text in ("a\n", "a\n\n", "the en", "x" * 50 + "end")] == [
        *(False, True, False, True)
    ]
