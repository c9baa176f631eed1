"""A run's paths do not depend on where its export is asked for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.convert.actions import ExportRequest, export_checkpoint
from nld_train.convert.run_paths import locate_named_path
from nld_train.run_folder.frozen import read_frozen_run
from tests.convert.test_adapter import drafter_run  # noqa: F401  (a fixture)


def test_a_drafter_is_exported_from_another_working_directory(
    random_run: Path,
    drafter_run: Path,  # noqa: F811
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its base and its tokenizer have the names that the run was started with."""
    project = tmp_path / "project"
    for source, name in ((random_run, "out/base"), (drafter_run, "out/drafter"), (prepared / "tokenizer", "tokenizer")):
        shutil.copytree(source, project / name)
    for name in ("out/base", "out/drafter"):
        said = json.loads((project / name / "run.json").read_text())
        said["output"], said["data"]["tokenizer"] = name, "tokenizer"
        said["init"] = None if name == "out/base" else "out/base"
        (project / name / "run.json").write_text(json.dumps(said))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for here, output in ((elsewhere, "../project/out/drafter"), (project / "out" / "drafter", ".")):
        monkeypatch.chdir(here)
        target = tmp_path / f"hf_{here.name}"
        export_checkpoint(
            ExportRequest(
                output=Path(output), target=target, step=None, dtype="fp32", tokenizer=None, chat=False,
                shard_gb=None, verified=True, overwrite=False,
            )
        )  # fmt: skip
        assert (target / "linear_spec_lora" / "adapter_model.safetensors").is_file()


def test_absolute_paths_and_paths_that_lie_nowhere_stay_as_they_are(random_run: Path, tmp_path: Path) -> None:
    run = read_frozen_run(random_run)
    assert locate_named_path(tmp_path, run, "base") == Path("base"), "the run's own output is absolute"
    relative = replace(run, output="out/drafter")
    assert locate_named_path(tmp_path / "drafter", relative, "/base") == Path("/base")
    assert locate_named_path(tmp_path / "drafter", relative, "out/base") == Path("out/base")
    (tmp_path / "base").mkdir()
    assert locate_named_path(tmp_path / "drafter", relative, "out/base") == tmp_path / "base"
