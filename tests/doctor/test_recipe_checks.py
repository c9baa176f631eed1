"""What a run needs, on real token files, tokenizers and folders, sound and damaged."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.data import text_rows
from nld_train.data.run_rows import open_run_rows
from nld_train.data.token_file import bin_path
from nld_train.doctor.accelerator import Gpus
from nld_train.doctor.examine import run_findings
from nld_train.doctor.finding import DoctorFinding
from nld_train.doctor.machine import SLURM, nearest_existing_folder
from nld_train.doctor.recipe_checks import (
    check_checkpoints,
    check_data_files,
    check_data_passes,
    check_disk,
    check_first_start,
    check_memory,
    check_rows_read_before,
    check_tokenizer,
    check_validation_rows,
    run_start_check,
)
from nld_train.errors import UserError
from nld_train.plan.memory import checkpoint_size, worst_stage
from nld_train.plan.row_counts import run_tokens
from nld_train.run_folder.checkpoints import MANIFEST, checkpoint_file_names, checksum_files, write_checkpoint_manifest
from nld_train.run_folder.frozen import freeze_run
from nld_train.run_folder.paths import data_index_folder, step_folder

NO_GPU = Gpus(names=(), memory=(), reported=(), driver="", cuda="", nccl="", hidden=False)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> RunConfig:
    blend = f"data.blend=0.7:{folder}/data/a,0.3:{folder}/data/b"
    more = [
        f"data.tokenizer={folder}/tokenizer",
        f"output={folder}/out",
        "train.iterations=20",
        "train.eval_interval=10",
    ]
    return recipe.load_recipe("tiny_stage1_ar", [blend, *more])


def verdicts(findings: list[DoctorFinding]) -> list[str]:
    return [finding.verdict for finding in findings]


def flip_a_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_sound_files_are_counted_and_how_often_they_are_read(run: RunConfig, folder: Path) -> None:
    first, second, often, *_ = check_data_files(run, verify=True)
    assert verdicts([first, second]) == ["ok", "ok"]
    assert "tokens in" in first.found and "SHA-256 verified" in second.found
    assert f"{run_tokens(run):,} to train on" in often.found


def test_a_truncated_file_fails_and_the_others_are_still_looked_at(run: RunConfig, folder: Path) -> None:
    path = bin_path(folder / "data" / "a")
    path.write_bytes(path.read_bytes()[:-2])
    first, second = check_data_files(run, verify=False)
    assert verdicts([first, second]) == ["FAIL", "ok"]
    assert "a.bin" in first.found and "nld data prepare" in first.do


def test_a_flipped_bit_is_found_by_reading_the_file(run: RunConfig, folder: Path) -> None:
    flip_a_byte(bin_path(folder / "data" / "b"), at=100)
    assert "FAIL" not in verdicts(check_data_files(run, verify=False))
    assert verdicts(check_data_files(run, verify=True)) == ["ok", "FAIL"]


def test_a_bad_blend_is_one_finding(run: RunConfig) -> None:
    twice = replace(run, data=replace(run.data, blend=(run.data.blend[0], run.data.blend[0])))
    assert verdicts(check_data_files(twice, verify=False)) == ["FAIL"]


def test_a_file_read_many_times_is_noted(run: RunConfig) -> None:
    plenty, scarce = 100 * run_tokens(run), run_tokens(run) // 20
    assert check_data_passes(run, [(None, "a", plenty), (None, "b", plenty)]).verdict == "ok"
    noted = check_data_passes(run, [(0.9, "a", plenty), (0.1, "b", scarce // 10)])
    assert noted.verdict == "note" and "b is read 20 times" in noted.found


def test_a_validation_part_shorter_than_an_evaluation_is_noted(run: RunConfig, folder: Path) -> None:
    few = replace(run, data=replace(run.data, blend=(f"{folder}/data/b",)), train=replace(run.train, eval_batches=8))
    (noted,) = check_validation_rows(few)
    assert noted.verdict == "note"
    assert re.search(
        r"an evaluation takes 64 rows; .*/data/b has \d for validation, so each of them is read", noted.found
    )
    assert not check_validation_rows(replace(few, train=replace(run.train, eval_batches=0)))
    many = replace(few, data=replace(few.data, split="50,50,0", sequence_length=32))
    assert not check_validation_rows(many)


def test_a_part_without_documents_is_refused_by_the_doctor(run: RunConfig) -> None:
    empty = replace(run, data=replace(run.data, split="100,0,0"))
    refusal = next(finding for finding in run_findings(empty, verify=False) if finding.check == "data")
    assert refusal.verdict == "FAIL" and "none of them for validation under data.split=100,0,0" in refusal.found


def test_rows_that_init_has_read_are_noted(run: RunConfig, folder: Path) -> None:
    """Stage 1 takes 20 steps of 8 rows; stage 2 begins where it ended, a quarter before, behind, or on other rows."""
    Path(run.output).mkdir()
    freeze_run(run)

    def second(**data: object) -> list[DoctorFinding]:
        stage = replace(run, init=run.output, output=f"{folder}/second", data=replace(run.data, **data))
        return check_rows_read_before(stage)

    (again,) = second(skip_rows=120)
    assert again.verdict == "note" and "begins at row 120: 25% of its rows are read again" in again.found
    assert "data.skip_rows=160" in again.do
    assert "100% of its rows" in second()[0].found
    for rows in (160, 1000):
        assert [finding.verdict for finding in second(skip_rows=rows)] == ["ok"]
    assert second(shuffle_seed=5) == second(blend=run.data.blend[:1]) == []
    save(run, 5)
    assert "ended at row 40" in second()[0].found, "what it saved counts, not what it planned"


def test_the_tokenizer_says_what_the_mask_is(run: RunConfig, folder: Path) -> None:
    assert check_tokenizer(run).verdict == "ok" and "<SPECIAL_100>" in check_tokenizer(run).found
    as_text = replace(run, diffusion=replace(run.diffusion, mask_token_id=300))
    refusal = check_tokenizer(as_text)
    assert refusal.verdict == "FAIL" and "is the text" in refusal.found
    beyond = replace(run, diffusion=replace(run.diffusion, mask_token_id=400))
    assert check_tokenizer(beyond).verdict == "ok" and "400 is without text" in check_tokenizer(beyond).found
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    assert check_tokenizer(run).verdict == "FAIL"


def test_every_door_is_asked(run: RunConfig) -> None:
    def refuse(run: RunConfig) -> None:
        raise UserError("3 ranks", "2", "use 2")

    assert verdicts([run_start_check("a", refuse, run), run_start_check("b", lambda run: None, run)]) == ["FAIL", "ok"]


def test_a_model_must_fit_its_gpu() -> None:
    big = recipe.load_recipe("nld_8b_stage2_joint")
    need = worst_stage(big).total
    fits, small = (replace(NO_GPU, names=("GPU",), memory=(size,)) for size in (need, need - 1))
    assert check_memory(big, fits).verdict == "ok"
    assert check_memory(big, small).verdict == "FAIL"


def test_a_model_must_fit_main_memory(run: RunConfig) -> None:
    assert check_memory(run, NO_GPU).verdict == "ok"
    assert check_memory(recipe.load_recipe("nld_14b_stage1_ar"), NO_GPU).verdict == "FAIL"


def test_the_disk_must_hold_the_kept_checkpoints_and_one_more(run: RunConfig, tmp_path: Path) -> None:
    one = checkpoint_size(run).total
    assert check_disk(run).verdict == "ok"
    assert f"{(2 * one) / 1e9:.3g} GB needed" in check_disk(run).found, "one in 20 iterations, and one being written"
    free = shutil.disk_usage(tmp_path).free
    many = free // one + 1
    often = replace(run, checkpoint=replace(run.checkpoint, interval=1, keep=many))
    endless = replace(often, train=replace(run.train, iterations=2 * many))
    assert check_disk(endless).verdict == "FAIL"


def test_what_is_saved_already_is_not_needed_again(run: RunConfig) -> None:
    one = checkpoint_size(run).total
    folder = step_folder(Path(run.output), 10)
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(bytes(one))
    assert f"{one / 1e9:.3g} GB needed" in check_disk(run).found


def test_an_output_below_a_file_fails(run: RunConfig, folder: Path) -> None:
    (folder / "file").touch()
    assert check_disk(replace(run, output=str(folder / "file" / "out"))).verdict == "FAIL"
    assert nearest_existing_folder(folder / "no" / "such") == folder


def test_without_checkpoints_the_run_starts_anew(run: RunConfig) -> None:
    (finding,) = check_checkpoints(run, verify=True)
    assert finding.verdict == "ok" and "step 0" in finding.found


def save(run: RunConfig, step: int) -> Path:
    """A checkpoint of two files, complete."""
    folder = step_folder(Path(run.output), step)
    folder.mkdir(parents=True)
    for name in ("__0_0.distcp", "common.pt"):
        (folder / name).write_bytes(bytes(1000))
    write_checkpoint_manifest(folder, checksum_files(folder, checkpoint_file_names(folder)))
    return folder


def test_complete_checkpoints_are_ok(run: RunConfig) -> None:
    save(run, 5)
    save(run, 10)
    (finding,) = check_checkpoints(run, verify=True)
    assert finding.verdict == "ok" and "2 complete, newest at step 10" in finding.found


def test_a_damaged_newest_checkpoint_is_noted_by_name(run: RunConfig) -> None:
    save(run, 5)
    newest = save(run, 10)
    flip_a_byte(newest / "common.pt", at=500)
    assert verdicts(check_checkpoints(run, verify=False)) == ["ok"]
    whole, damaged = check_checkpoints(run, verify=True)
    assert "newest at step 5" in whole.found
    assert damaged.verdict == "note" and "iter_0000010/common.pt" in damaged.found


def test_no_complete_checkpoint_fails(run: RunConfig) -> None:
    (save(run, 5) / "common.pt").write_bytes(b"")
    (finding,) = check_checkpoints(run, verify=False)
    assert finding.verdict == "FAIL" and "iter_0000005/common.pt" in finding.found


def test_a_first_save_that_was_cut_off_is_noted(run: RunConfig) -> None:
    (save(run, 5) / MANIFEST).unlink()
    (finding,) = check_checkpoints(run, verify=False)
    assert finding.verdict == "note" and "starts at step 0" in finding.do


def test_too_many_ranks_are_noted_where_slurm_has_more_machines(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = replace(
        run,
        init=f"{tmp_path}/none",
        parallel=replace(run.parallel, world_size=1024),
        train=replace(run.train, global_batch=4096),
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    found = run_findings(large, verify=False)
    assert [(finding.check, finding.verdict) for finding in found[:2]] == [("ranks", "FAIL"), ("start", "FAIL")]
    for command in SLURM:
        (tmp_path / command).touch(mode=0o755)
    found = run_findings(large, verify=False)
    assert [(finding.check, finding.verdict) for finding in found[:2]] == [("ranks", "note"), ("start", "FAIL")]
    assert "nld launch" in found[0].do


def test_broken_files_are_told_once(run: RunConfig, folder: Path) -> None:
    found = run_findings(run, verify=False)
    assert "FAIL" not in verdicts(found) and "data" in [finding.check for finding in found]
    bin_path(folder / "data" / "a").unlink()
    found = run_findings(run, verify=False)
    assert verdicts(found).count("FAIL") == 1 and "data" not in [finding.check for finding in found]


def test_what_the_first_start_takes_is_said_until_the_order_is_made(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(run, output=str(tmp_path / "out"))
    assert not check_first_start(run), "a small file is ordered in a moment"
    monkeypatch.setattr(text_rows, "KEPT_FROM", 1)
    (said,) = check_first_start(run)
    assert re.search(r"rows of [\d,]+ documents are ordered at the first start: about \d+ s", said.found)
    open_run_rows(run, data_index_folder(run.output))
    assert not check_first_start(run)
