"""Checkpoints to convert: random ones made here in a moment, and ones that real ranks saved."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nld_train.config import ModelConfig, ParallelConfig, RunConfig
from nld_train.convert.config_json import make_config_json
from nld_train.convert.export import ExportOptions, write_hf_folder
from nld_train.convert.import_checkpoint import write_imported_output, write_initial_checkpoint
from nld_train.convert.source import open_checkpoint_source, open_source_tokenizer, read_output_token_ids
from nld_train.convert.torch_dist import TensorRange
from nld_train.convert.vision_json import vision_entries
from nld_train.convert.weight_table import MINISTRAL, NLD, NLD_VLM, WeightMapping, weight_mappings
from nld_train.recipe import run_to_json
from nld_train.vision_config import VisionConfig
from tests.distributed.ranks import on, small_run, train_together
from tests.vision_folder import image_tokenizer

VISION = VisionConfig(
    layers=1, hidden=16, ffn=24, heads=2, patch_size=4, longest_edge=48,
    image_token_id=20, break_token_id=21, end_token_id=22,
)  # fmt: skip


def random_output(run: RunConfig, dtype: torch.dtype, spread: float = 0.2) -> Path:
    """The output folder of a run that never ran: random weights, wide enough that every one of them shows in logits.

    spread: their standard deviation.
    """
    output = Path(run.output)
    output.mkdir(parents=True)
    (output / "run.json").write_text(run_to_json(run))
    (output / "model.json").write_text(json.dumps(asdict(run.model)))
    generator = torch.Generator().manual_seed(len(run.name))
    table = weight_mappings(run.model, NLD)
    write_initial_checkpoint(
        output, [piece for unit in table for piece in random_pieces(unit, run.model, dtype, generator, spread)]
    )
    return output


def random_pieces(
    unit: WeightMapping, model: ModelConfig, dtype: torch.dtype, generator: torch.Generator, spread: float
) -> list[TensorRange]:
    """A stacked unit as one piece, another one as two ranges of rows, as two tensor ranks store it."""
    numbers = torch.randn(unit.shape, generator=generator) * spread
    numbers = numbers + 1 if len(unit.shape) == 1 else numbers
    rest = (0,) * (len(unit.shape) - 1)
    if unit.layer is not None:
        size, offsets = (model.layers, *unit.shape), (unit.layer, 0, *rest)
        return [TensorRange(unit.name, size, offsets, (1, *unit.shape), dtype, lambda: numbers)]
    half = unit.shape[0] // 2
    return [
        TensorRange(unit.name, unit.shape, (first, *rest), tuple(cut.shape), dtype, lambda cut=cut: cut)
        for first, cut in ((0, numbers[:half]), (half, numbers[half:]))
    ]


def export(output: Path, target: Path, **options) -> Path:
    """Export the newest checkpoint of an output folder."""
    source = open_checkpoint_source(output)
    options = options if source.vision is None else {"naming": NLD_VLM} | options
    tokenizer = open_source_tokenizer(source, None)
    target.mkdir(parents=True)
    write_hf_folder(
        source, read_output_token_ids(source, tokenizer, False), tokenizer.folder, target, ExportOptions(**options)
    )
    return target


def imported(folder: Path, target: Path, text_only: bool = False) -> Path:
    target.mkdir(parents=True)
    write_imported_output(folder, target, text_only=text_only)
    return target


@pytest.fixture(scope="session")
def random_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with random float32 weights."""
    folder = tmp_path_factory.mktemp("random")
    run = small_run("run", folder, alpha=0.3, init=None, parallel=on(1))
    run = replace(run, data=replace(run.data, tokenizer=str(prepared / "tokenizer")))
    return random_output(run, torch.float32)


@pytest.fixture(scope="session")
def exported(random_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export in float32."""
    return export(random_run, tmp_path_factory.mktemp("exported") / "hf", dtype=torch.float32)


@pytest.fixture
def copy_of(tmp_path: Path):
    """Copies a folder, to be damaged."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copy


@pytest.fixture(scope="session")
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the Python files of folders that it loads here, not into the user's cache."""
    import transformers.dynamic_module_utils as loading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture
def ministral(random_run: Path, prepared: Path, tmp_path: Path):
    """Makes a Ministral-3 folder with random bfloat16 weights and a vision tower; tied or with a head of its own."""

    def make(tied: bool) -> Path:
        folder = tmp_path / f"ministral_{tied}"
        image_tokenizer(prepared / "tokenizer", folder)
        source = open_checkpoint_source(random_run)
        traits = read_output_token_ids(source, open_source_tokenizer(source, None), False)
        text = make_config_json(source.model, traits, torch.bfloat16) | {"model_type": "ministral3"}
        for name in ("mask_token_id", "block_size", "architectures", "auto_map", "eos_token_id"):
            del text[name]
        content = {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "model_type": "mistral3",
            "text_config": text | {"tie_word_embeddings": tied},
            **vision_entries(VISION),
        }
        (folder / "config.json").write_text(json.dumps(content))
        parts = [part for unit in weight_mappings(source.model, MINISTRAL, VISION) for part in unit.parts]
        stored = [part for part in parts if not (tied and part.name == MINISTRAL.head)]
        generator = torch.Generator().manual_seed(1)
        tensors = {part.name: torch.randn(part.shape, generator=generator).bfloat16() for part in stored}
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def frozen(name: str, folder: Path, init: str, parallel: ParallelConfig) -> RunConfig:
    """A run of one step too small to change a float32 weight: its checkpoint is `init` in another layout."""
    run = small_run(name, folder, alpha=0.3, init=init, parallel=parallel)
    return replace(
        run,
        train=replace(run.train, iterations=1),
        optimizer=replace(run.optimizer, lr=1e-30, min_lr=0.0, decay_iterations=0),
        checkpoint=replace(run.checkpoint, interval=1),
    )


@pytest.fixture(scope="session")
def saved(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """Runs that real ranks saved: `start` on one rank; from it, in other layouts; and one from an import of it."""
    folder = tmp_path_factory.mktemp("saved")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    start = small_run("start", folder, alpha=0.3, init=None, parallel=on(1))
    train_together([start], folder)
    imported(export(Path(start.output), folder / "start_hf", dtype=torch.float32), folder / "start_imported")
    two = [
        frozen("tensor2", folder, "start", on(2, tensor=2)),
        frozen("pipeline2", folder, "start", on(2, pipeline=2)),
        frozen("from_import", folder, "start_imported", on(2)),
    ]
    four = [frozen("tensor2_pipeline2", folder, "start", on(4, tensor=2, pipeline=2))]
    train_together(two, folder)
    train_together(four, folder)
    return {run.name: run for run in [start, *two, *four]}
