"""`nld eval decode` on the checkpoint folder that the decoders are tested with."""

import json
import shutil
from pathlib import Path

import pytest

from nld_train import cli
from nld_train.report.evaluation_page import write_evaluation_page
from tests.decode.random_sampler import constant_parts, put_sampler

ROWS = [
    {"id": "a", "category": "code", "prompt": "import os", "reference": "x"},
    {"id": "b", "category": "text", "prompt": "Return the"},
    {"id": "c", "category": "text", "prompt": "def main"},
]
SMALL = ["--block", "4", "--threshold", "0.02,0.9", "--max-new-tokens", "8"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def evaluate(folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `nld eval decode` into a folder; returns its exit status."""

    def run(output: Path, *words: str) -> int:
        given = ["eval", "decode", str(folder), "--prompts", str(prompts), "--output", str(output)]
        monkeypatch.setattr("sys.argv", ["nld", *given, *SMALL, *words])
        return cli.main()

    return run


def without_time(figures: object) -> object:
    if isinstance(figures, dict):
        return {key: without_time(value) for key, value in figures.items() if key != "tokens_per_second"}
    return [without_time(value) for value in figures] if isinstance(figures, list) else figures


def read(output: Path) -> dict:
    return json.loads((output / "decode.json").read_text())


def test_one_command_gives_a_table_figures_and_a_page(evaluate, tmp_path: Path, capsys) -> None:
    assert evaluate(tmp_path / "out") == 0
    shown = capsys.readouterr().out
    figures = read(tmp_path / "out")
    names = [point["name"] for point in figures["points"]]
    assert names == [
        "ar",
        "diffusion, block 4, threshold 0.02",
        "diffusion, block 4, threshold 0.9",
        "self-spec, block 4",
        "quadratic, block 4",
    ]
    assert all(name in shown for name in names)
    by_name = {point["name"]: point for point in figures["points"]}
    assert by_name["self-spec, block 4"]["exact"] and by_name["quadratic, block 4"]["exact"]
    quick, careful = (by_name[f"diffusion, block 4, threshold {p}"]["overall"] for p in (0.02, 0.9))
    assert quick["tokens_per_forward"] > careful["tokens_per_forward"]
    assert by_name["ar"]["overall"]["judged"] == 1 and sorted(by_name["ar"]["categories"]) == ["code", "text"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") >= 2 and "Agreement against tokens per forward" in page and "By category" in page


def test_killed_and_gone_on_gives_the_same_figures(evaluate, tmp_path: Path, caplog) -> None:
    evaluate(tmp_path / "whole")
    evaluate(tmp_path / "cut")
    records = (tmp_path / "cut" / "decode.jsonl").read_bytes()
    (tmp_path / "cut" / "decode.jsonl").write_bytes(records[: len(records) // 2])
    (tmp_path / "cut" / "decode.json").unlink()
    with caplog.at_level("INFO"):
        assert evaluate(tmp_path / "cut") == 0
    assert "records are there already, and are kept" in caplog.text
    assert without_time(read(tmp_path / "cut")) == without_time(read(tmp_path / "whole"))


def test_other_settings_in_the_same_folder_are_refused(evaluate, tmp_path: Path, capsys) -> None:
    evaluate(tmp_path / "out")
    assert evaluate(tmp_path / "out", "--threshold", "0.5") == 2
    assert "holds another evaluation: points=" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", "--threshold", "0.5", "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "fast"], "--mode fast; allowed: ar, diffusion, self-spec, quadratic, all"),
        (["--block", "0"], "--block 0"),
        (["--block", "8,x"], "--block 8,x"),
        (["--threshold", "1.5"], "--threshold 1.5"),
        (["--shard", "3/2"], "--shard 3/2"),
        (["--batch", "0"], "--batch 0"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--max-new-tokens", "6"], "use 8"),
        (["--max-new-tokens", "4096"], "prompt a/1 of"),
        (["--category", "math"], "--category ['math']; allowed: code, text"),
        (["--thinking"], "--thinking without --chat"),
        (["--step", "3"], "--step 3"),
        (["--sampler", "--mode", "ar,self-spec"], "--sampler with --mode ar,self-spec; allowed: diffusion among"),
        (["--sampler"], "no sampler/config.json in "),
    ],
)
def test_bad_input_is_one_line(evaluate, tmp_path: Path, capsys, words, message) -> None:
    assert evaluate(tmp_path / "out", *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nld: ")]
    assert len(said) == 1 and message in said[0]


def test_turns_need_a_template_and_get_greedy_answers_between_them(
    evaluate, prompts: Path, tmp_path: Path, capsys
) -> None:
    prompts.write_text(json.dumps({"id": "t", "turns": ["import os", "def main"]}) + "\n")
    assert evaluate(tmp_path / "plain") == 2
    assert "prompt t has 2 turns; allowed: one without --chat" in capsys.readouterr().err
    assert evaluate(tmp_path / "chat", "--chat", "--mode", "self-spec") == 0
    lines = (tmp_path / "chat" / "decode.jsonl").read_text().splitlines()[1:]
    found = {record["key"]: record for record in map(json.loads, lines)}
    first, second = found["ar|t/1"], found["ar|t/2"]
    assert second["prompt_tokens"] > first["prompt_tokens"] + len(first["ids"]) / 2
    assert found["self-spec, block 4|t/2"]["ids"] == second["ids"]


def test_a_page_of_other_figures_is_refused(tmp_path: Path) -> None:
    from nld_train.errors import UserError

    with pytest.raises(UserError, match="no figures"):
        write_evaluation_page([tmp_path], tmp_path / "page.html")
    (tmp_path / "decode.json").write_text('{"kind": "decode", "identity": {"model": "m"}}')
    with pytest.raises(UserError, match="holds other figures"):
        write_evaluation_page([tmp_path], tmp_path / "page.html")


def test_several_checkpoints_stand_side_by_side_and_in_the_report_of_runs(
    evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    evaluate(tmp_path / "one", "--mode", "self-spec")
    evaluate(tmp_path / "two", "--mode", "diffusion")
    words = ["eval", "page", str(tmp_path / "one"), str(tmp_path / "two"), "--html", str(tmp_path / "page.html")]
    monkeypatch.setattr("sys.argv", ["nld", *words])
    assert cli.main() == 0
    page = (tmp_path / "page.html").read_text()
    assert "Side by side" in page and page.count("<h2>Decoding") == 2
    exact = read(tmp_path / "one")["points"][1]["overall"]["tokens_per_forward"]
    assert f"<td>{exact:.3f}</td>" in page.partition("<h2>Decoding")[0]
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.argv", ["nld", *words[:2], str(tmp_path / "empty"), *words[2:]])
    assert cli.main() == 2 and "no figures in" in capsys.readouterr().err


def test_diffusion_is_measured_without_a_sampler_and_with_it(
    evaluate, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Shards, merged, are what one process finds; other weights of the sampler are another evaluation."""
    evaluate(tmp_path / "base", "--mode", "diffusion")
    files = put_sampler(folder, *constant_parts(400, 9.0))
    assert evaluate(tmp_path / "both", "--mode", "diffusion", "--sampler") == 0
    shown, whole = capsys.readouterr().out, read(tmp_path / "both")
    plain = ["diffusion, block 4, threshold 0.02", "diffusion, block 4, threshold 0.9"]
    assert [point["name"] for point in whole["points"]] == [
        "ar", plain[0], f"{plain[0]}, sampler", plain[1], f"{plain[1]}, sampler"
    ]  # fmt: skip
    assert f"{plain[1]}, sampler" in shown and whole["identity"]["sampler"] is not None
    figures = {point["name"]: point for point in whole["points"]}
    assert [without_time(figures[name]) for name in plain] == without_time(read(tmp_path / "base")["points"][1:])
    for name in plain:  # always sure: a block takes one forward, whatever the threshold
        found = figures[f"{name}, sampler"]["overall"]
        assert found["forwards"] <= found["answers"] * 4 and figures[f"{name}, sampler"]["sampler"]
    page = (tmp_path / "both" / "report.html").read_text()
    assert "diffusion, sampler" in page and 'class="line plain marked"' in page
    for shard in ("1/2", "2/2"):
        evaluate(tmp_path / "parts", "--mode", "diffusion", "--sampler", "--shard", shard)
    monkeypatch.setattr("sys.argv", ["nld", "eval", "merge", str(tmp_path / "parts")])
    assert cli.main() == 0 and without_time(read(tmp_path / "parts")["points"]) == without_time(whole["points"])
    shutil.rmtree(files)
    put_sampler(folder, *constant_parts(400, 8.0))
    assert evaluate(tmp_path / "both", "--mode", "diffusion", "--sampler") == 2
    assert "holds another evaluation: sampler=" in capsys.readouterr().err


def test_figures_of_versions_without_samplers_are_still_shown(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "out", "--mode", "diffusion")
    lines = [json.loads(line) for line in (tmp_path / "out" / "decode.jsonl").read_text().splitlines()]
    lines[0].pop("sampler")
    for record in lines[1:]:
        record["point"].pop("sampler")
    (tmp_path / "out" / "decode.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = read(tmp_path / "out")
    assert (
        evaluate(tmp_path / "out", "--mode", "diffusion") == 0 and read(tmp_path / "out")["points"] == before["points"]
    )
    for point in before["points"]:
        point.pop("sampler")
    (tmp_path / "out" / "decode.json").write_text(json.dumps(before))
    write_evaluation_page([tmp_path / "out"], tmp_path / "page.html")


def test_a_run_has_no_sampler(random_run: Path, prompts: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["eval", "decode", str(random_run), "--prompts", str(prompts), "--output", str(tmp_path / "out"), *SMALL]
    monkeypatch.setattr("sys.argv", ["nld", *words, "--sampler"])
    assert cli.main() == 2
    assert f"--sampler for the run {random_run}; allowed: a folder of `nld convert export`" in capsys.readouterr().err


def write_adapter_folder(folder: Path) -> None:
    """A drafter's adapter of the folder's model, with weights that change what it drafts."""
    import torch
    from safetensors.torch import save_file

    from nld_train.convert.adapter import FIXED
    from nld_train.peft_names import CONFIG, FOLDER, WEIGHTS, lora_names

    said = json.loads((folder / "config.json").read_text())
    hidden, joined, rank = said["hidden_size"], said["num_attention_heads"] * said["head_dim"], 4
    generator, tensors = torch.Generator().manual_seed(0), {}
    for layer in range(said["num_hidden_layers"]):
        for name, shape in zip(lora_names(layer), ((rank, joined), (hidden, rank)), strict=True):
            tensors[name] = torch.randn(shape, generator=generator)
    (folder / FOLDER).mkdir()
    content = FIXED | {"r": rank, "lora_alpha": 4 * rank, "lora_dropout": 0.0, "base_model_name_or_path": "x"}
    (folder / FOLDER / CONFIG).write_text(json.dumps(content))
    save_file(tensors, folder / FOLDER / WEIGHTS, metadata={"format": "pt"})


def test_a_drafter_is_measured_beside_its_base(evaluate, folder: Path, tmp_path: Path) -> None:
    """With the adapter other tokens are drafted, and still every answer is greedy AR's; without it nothing changes."""
    evaluate(tmp_path / "base", "--mode", "self-spec")
    write_adapter_folder(folder)
    assert evaluate(tmp_path / "both", "--mode", "self-spec", "--adapter", str(folder)) == 0
    figures = {point["name"]: point for point in read(tmp_path / "both")["points"]}
    assert list(figures) == ["ar", "self-spec, block 4", "self-spec, block 4, adapter"]
    assert figures["self-spec, block 4, adapter"]["exact"]
    assert without_time(figures["self-spec, block 4"]) == without_time(read(tmp_path / "base")["points"][1])
    lines = [json.loads(line) for line in (tmp_path / "both" / "decode.jsonl").read_text().splitlines()[1:]]
    drafts = {
        adapter: [record["refused"] for record in lines if record["point"]["adapter"] == adapter and record["accepted"]]
        for adapter in (False, True)
    }
    assert drafts[False] != drafts[True]


def test_a_folder_without_weights_is_one_line(evaluate, folder: Path, tmp_path: Path, capsys) -> None:
    (folder / "model.safetensors").unlink()
    assert evaluate(tmp_path / "out") == 2
    assert capsys.readouterr().err.count("nld: ") == 1
