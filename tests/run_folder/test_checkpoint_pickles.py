"""Folders that bring code: nothing of it runs, whichever command reads them, and the file and the class are named."""

import io
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.config import RunConfig
from nld_train.convert.actions import ExportRequest, export_checkpoint, verify_folder
from nld_train.doctor.start_checks import check_init
from nld_train.errors import UserError
from nld_train.recipe import run_from_json
from nld_train.run_folder.checkpoint_pickles import check_checkpoint_pickles, read_checkpoint_metadata
from nld_train.run_folder.checkpoints import (
    MANIFEST,
    checkpoint_file_names,
    checksum_files,
    complete_steps,
    write_checkpoint_manifest,
)
from nld_train.run_folder.paths import step_folder
from nld_train.start.resume import resume_step


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def into_metadata(folder: Path, bomb: Bomb) -> None:
    metadata = read_checkpoint_metadata(folder)
    metadata.planner_data = bomb
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def into_object(folder: Path, bomb: object) -> None:
    """In the place of a quantisation state, which lies between the tensors."""
    metadata = read_checkpoint_metadata(folder)
    index = next(index for index in metadata.storage_data if "_extra_state" in index.fqn)
    stored = io.BytesIO()
    torch.save([bomb], stored)
    (folder / "__9_9.distcp").write_bytes(stored.getvalue())
    place = replace(metadata.storage_data[index], relative_path="__9_9.distcp", offset=0, length=len(stored.getvalue()))
    metadata.storage_data[index] = place
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def into_train_state(folder: Path, bomb: Bomb) -> None:
    torch.save({"step": torch.tensor(0), "more": bomb}, folder / "train_state.pt")


def into_common(folder: Path, bomb: Bomb) -> None:
    """The file of older versions of Megatron, which still read it where it is there; not a zip file, but a pickle."""
    torch.save({"args": bomb}, folder / "common.pt", _use_new_zipfile_serialization=False)


def into_unknown_file(folder: Path, bomb: Bomb) -> None:
    (folder / "modelopt_state").mkdir()
    torch.save({"args": bomb}, folder / "modelopt_state" / "state")


PLACES = {
    ".metadata": into_metadata,
    ".distcp": into_object,
    "train_state.pt": into_train_state,
    "common.pt": into_common,
    "modelopt_state/state": into_unknown_file,
}


def hostile(output: Path, place: str, made: Path) -> Path:
    """The output folder with such an object in its checkpoint, which is complete by its manifest."""
    (step,) = complete_steps(output)
    folder = step_folder(output, step)
    (folder / MANIFEST).unlink()
    PLACES[place](folder, Bomb(made))
    write_checkpoint_manifest(folder, checksum_files(folder, checkpoint_file_names(folder)))
    return output


def export(output: Path, exported: Path, folder: Path) -> None:
    export_checkpoint(
        ExportRequest(
            output=output, target=folder / "hf", step=None, dtype="bf16", tokenizer=None, chat=False, shard_gb=None,
            verified=False, overwrite=False,
        )
    )  # fmt: skip


def verify(output: Path, exported: Path, folder: Path) -> None:
    verify_folder(output, exported, None, 1)


def start_from(output: Path, exported: Path, folder: Path) -> None:
    run = run_from_json((output / "run.json").read_text())
    check_init(replace(run, output=str(folder / "next"), init=str(output)))


def resume(output: Path, exported: Path, folder: Path) -> None:
    resume_step(output)


READERS: list[Callable[[Path, Path, Path], None]] = [export, verify, start_from, resume]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("read", READERS)
def test_code_in_a_checkpoint_is_refused_and_not_run(
    random_run: Path, exported: Path, copy_of, tmp_path: Path, read: Callable, place: str
) -> None:
    made = tmp_path / "made"
    output = hostile(copy_of(random_run), place, made)
    with pytest.raises(UserError, match=rf"{place}.* names posix.mkdir") as caught:
        read(output, exported, tmp_path)
    assert "\n" not in str(caught.value)
    assert not made.exists() and not (tmp_path / "hf").exists()


def test_what_transformer_engine_would_unpickle_is_refused(random_run: Path, copy_of, tmp_path: Path) -> None:
    """It takes the bytes of a tensor for a pickle, which no reader of tensors sees."""
    (folder,) = (copy_of(random_run) / "checkpoints").glob("iter_*")
    content = pickle.dumps(Bomb(tmp_path / "made"))
    into_object(folder, torch.frombuffer(bytearray(content), dtype=torch.uint8))
    with pytest.raises(UserError, match=r"_extra_state/shard_0_4\) holds a state that Transformer Engine may unpickle"):
        check_checkpoint_pickles(folder)
    into_object(folder, torch.empty(0, dtype=torch.uint8))  # what it saves in bfloat16
    check_checkpoint_pickles(folder)


def test_metadata_names_no_file_outside(random_run: Path, copy_of) -> None:
    (folder,) = (copy_of(random_run) / "checkpoints").glob("iter_*")
    metadata = read_checkpoint_metadata(folder)
    index, place = next(iter(metadata.storage_data.items()))
    metadata.storage_data[index] = replace(place, relative_path="../../../secret")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="lies outside of the folder"):
        read_checkpoint_metadata(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", b"\x80\x04N.", b"\x80\x04}.", b"garbage", b"PK\x03\x04" + bytes(99)]
)
@pytest.mark.parametrize("name", [".metadata", "train_state.pt"])
def test_what_is_no_data_is_one_line(random_run: Path, copy_of, name: str, content: bytes) -> None:
    (folder,) = (copy_of(random_run) / "checkpoints").glob("iter_*")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} cannot be read as data: \S") as caught:
        check_checkpoint_pickles(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.megatron
def test_what_ranks_saved_is_data(saved: dict[str, RunConfig]) -> None:
    """Cut in every way, and with all that Megatron saves beside the weights."""
    for run in saved.values():
        for step in complete_steps(Path(run.output)):
            check_checkpoint_pickles(step_folder(Path(run.output), step))
