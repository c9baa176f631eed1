"""Proof that a PEFT folder holds a drafter's checkpoint: bits, and logits through PEFT's own forward."""

from pathlib import Path

from nld_train.convert.adapter import AdapterSource, StoredAdapter, differing_tensors
from nld_train.convert.config_json import read_config_token_ids
from nld_train.convert.exported_code import ExportedModel, fitting_layers
from nld_train.convert.hf_folder import open_hf_folder
from nld_train.convert.reference_network import PROBE_BLOCKS, ReferenceNetwork, make_probe_row, probed_token_ids
from nld_train.convert.source import CheckpointSource
from nld_train.convert.verify import VerifyFinding, difference_error, logit_distance, logit_row_starts
from nld_train.convert.weight_table import NLD


def verify_adapter_bits(source: AdapterSource, folder: Path) -> list[VerifyFinding]:
    """Compare the adapter in a folder with its checkpoint, bit for bit. Raises: UserError."""
    stored = StoredAdapter(folder, source.model)
    for name in differing_tensors(source, stored):
        raise difference_error(f"{name} differs from the checkpoint's numbers")
    if (stored.rank, stored.scale) != (source.drafter.rank, source.drafter.alpha / source.drafter.rank):
        raise difference_error(f"rank {stored.rank} and scale {stored.scale:g} are not the checkpoint's")
    count = f"{len(stored.units)} = 2 x {source.model.layers} tensors"
    return [VerifyFinding("adapter", f"{count}, rank {stored.rank}, scale {stored.scale:g}, every bit equal")]


def verify_adapter_logits(base: CheckpointSource, folder: Path, layers: int | None = None) -> list[VerifyFinding]:
    """Compare drafting through PEFT, over a past of the base model, with the training-time forward.

    folder: an export with the adapter in it; layers: how many are run, None: what fits. Raises: UserError.
    """
    described, weights = open_hf_folder(folder)
    traits = read_config_token_ids(described.content, base.model.vocab_size)
    fitting = fitting_layers(base.model) if layers is None else layers
    ids = probed_token_ids(base.model.vocab_size, traits.mask_token_id)
    runnable = ExportedModel(folder, described, weights, fitting, ids)
    runnable.adapt(folder)
    adapter = StoredAdapter(folder, base.model)
    network = ReferenceNetwork(base.model, base.weights, weights.dtype(NLD.head), fitting, adapter)
    findings = []
    for start in logit_row_starts(base, PROBE_BLOCKS * traits.block_size):
        row = make_probe_row(base.model, traits.mask_token_id, traits.block_size, start)
        noisy, _ = network.logits(row, ids, runnable.inverse_frequencies()).chunk(2)
        off = logit_distance("drafting", runnable.block_logits(row), noisy)
        findings.append(VerifyFinding("logits, drafting", f"off by {off:.0e}, positions {start:,}.., PEFT's forward"))
    return findings
