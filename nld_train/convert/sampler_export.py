"""A trained sampler as the folder sampler/ beside the weights of a Hugging Face export."""

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nld_train.config import require
from nld_train.convert.config_json import read_folder_config
from nld_train.convert.hf_folder import HFWeights
from nld_train.convert.import_checkpoint import require_finite
from nld_train.convert.run_paths import locate_named_path
from nld_train.convert.torch_dist import StoredWeights
from nld_train.convert.weight_table import NLD, WeightMapping
from nld_train.errors import UserError
from nld_train.files import staged_folder
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork
from nld_train.hf.trained_sampler_nemotron_labs_diffusion import (
    SAMPLER_FOLDER,
    SAMPLER_WEIGHTS,
    load_trained_sampler,
    save_trained_sampler,
)
from nld_train.objectives.sampler import AUC, sampler_shape
from nld_train.run_folder.checkpoints import check_checkpoint_contents, complete_steps, step_to_read
from nld_train.run_folder.early_end import best_evaluation
from nld_train.run_folder.frozen import read_frozen_run
from nld_train.run_folder.metrics import entries_of_kind, read_metrics_so_far
from nld_train.run_folder.paths import METRICS, step_folder
from nld_train.trajectories.embedding_pca import PIECE, EmbeddingPCA
from nld_train.trajectories.stored_parts import read_pca

logger = logging.getLogger(__name__)
NETWORK = "network."  # before the names of its weights in a checkpoint
SAME_EMBEDDING = 0.05  # that two roundings of one embedding differ by at most; a PCA's numbers are of order one


def export_sampler(output: Path, folder: Path, step: int | None, overwrite: bool) -> None:
    """The sampler of a run into FOLDER/sampler, where FOLDER is an export of the model that it judges.

    step: None: the one with the best held-out AUC of those that are kept. Raises: UserError; then nothing is left.
    """
    run = read_frozen_run(output)
    require(
        run.sampler is not None, f"{output} is no sampler's run", "the output of a recipe with a sampler", "correct it"
    )
    chosen = best_step(output) if step is None else step_to_read(output, step, "--step ")
    pca = read_pca(locate_named_path(output, run, run.data.blend[0]))
    check_same_embedding(folder, pca)
    assert run.sampler is not None, "it was looked at"
    shape = sampler_shape(run.sampler, pca.coordinates.shape[1])
    state = read_network(step_folder(output, chosen), shape)
    with staged_folder(folder / SAMPLER_FOLDER, overwrite) as partial:
        save_trained_sampler(partial, shape, state, pca.coordinates)
        written = load_file(partial / SAMPLER_WEIGHTS)
        different = [name for name, tensor in state.items() if not torch.equal(written[name], tensor)]
        require(not different, f"{partial}: {different} is not as it was read", "what was written", "look at the disk")
    load_trained_sampler(folder, run.model.vocab_size)
    logger.info("the sampler of step %d of %s is in %s", chosen, output, folder / SAMPLER_FOLDER)


def best_step(output: Path) -> int:
    """The complete checkpoint with the best held-out AUC; without evaluations the newest. Raises: UserError."""
    newest = step_to_read(output, None, "--step ")
    kept = set(complete_steps(output))
    evaluated = [
        entry for entry in entries_of_kind(read_metrics_so_far(output / METRICS), "validation") if AUC in entry
    ]
    there = [entry for entry in evaluated if entry["step"] in kept]
    if not there:
        logger.warning("%s: no checkpoint was evaluated; the newest is exported", output)
        return newest
    best, overall = best_evaluation(there, AUC), best_evaluation(evaluated, AUC)
    if overall["step"] != best["step"]:
        logger.warning("%s: step %d was better (AUC %.4f), and is not kept", output, overall["step"], overall[AUC])
    logger.info("step %d has the best held-out AUC of the checkpoints that are kept: %.4f", best["step"], best[AUC])
    return int(best["step"])


def check_same_embedding(folder: Path, pca: EmbeddingPCA) -> None:
    """Refuse an export of another model than the trajectories are of, as its embedding tells. Raises: UserError."""
    described = read_folder_config(folder)
    weights, name = HFWeights(folder), NLD.embedding
    got = f"{folder} holds another model than the one whose trajectories the sampler was trained on"
    same = weights.shapes[name] == (len(pca.coordinates), len(pca.mean))
    worst = 0.0
    for first in range(0, described.model.vocab_size if same else 0, PIECE):
        rows = weights.read(name, first, min(first + PIECE, described.model.vocab_size)).double()
        coordinates = (rows - pca.mean) @ pca.basis / pca.scale
        worst = max(worst, float((coordinates - pca.coordinates[first : first + PIECE].double()).abs().max()))
    do = "give the export that `nld sampler collect` was given"
    require(same and worst <= SAME_EMBEDDING, got, "an embedding with the same PCA", do)


def read_network(checkpoint: Path, shape: NetworkShape) -> dict[str, Tensor]:
    """The network's weights in float32, by their own names, of any shape. Raises: UserError for another network, and
    numbers that are not finite."""
    check_checkpoint_contents(checkpoint)
    stored = StoredWeights(checkpoint)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in SamplerNetwork(shape).state_dict().items()}
    found = {name.removeprefix(NETWORK): size for name, size in stored.shapes.items()}
    if found != wanted:
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise UserError(
            f"{checkpoint}: {wrong[0]} is {found.get(wrong[0])}", f"{wanted.get(wrong[0])}", "copy it again"
        )
    units = [WeightMapping(NETWORK + name, None, size, ()) for name, size in wanted.items()]
    return {
        unit.name.removeprefix(NETWORK): require_finite(stored.read(unit, torch.float32), unit.name, checkpoint)
        for unit in units
    }
