"""Proof that a PEFT folder holds a drafter's checkpoint: bits, and logits through PEFT's own forward."""

from pathlib import Path

from nld_train.convert.adapter import AdapterSource, StoredAdapter, differing
from nld_train.convert.config_json import read_traits
from nld_train.convert.hugging_face import open_folder
from nld_train.convert.network import PROBE_BLOCKS, Network, probe
from nld_train.convert.output import Source
from nld_train.convert.table import NLD
from nld_train.convert.travelling import Runnable, fitting_layers
from nld_train.convert.verify import Finding, differs, distance, starts


def verify_stored(source: AdapterSource, folder: Path) -> list[Finding]:
    """Compare the adapter in a folder with its checkpoint, bit for bit. Raises: UserError."""
    stored = StoredAdapter(folder, source.model)
    for name in differing(source, stored):
        raise differs(f"{name} differs from the checkpoint's numbers")
    if (stored.rank, stored.scale) != (source.drafter.rank, source.drafter.alpha / source.drafter.rank):
        raise differs(f"rank {stored.rank} and scale {stored.scale:g} are not the checkpoint's")
    count = f"{len(stored.units)} = 2 x {source.model.layers} tensors"
    return [Finding("adapter", f"{count}, rank {stored.rank}, scale {stored.scale:g}, every bit equal")]


def verify_drafts(base: Source, folder: Path, layers: int | None = None) -> list[Finding]:
    """Compare drafting through PEFT, over a past of the base model, with the training-time forward.

    folder: an export with the adapter in it; layers: how many are run, None: what fits. Raises: UserError.
    """
    described, weights = open_folder(folder)
    traits = read_traits(described.content, base.model.vocab_size)
    fitting = fitting_layers(base.model) if layers is None else layers
    runnable = Runnable(folder, described, weights, fitting)
    runnable.adapt(folder)
    adapter = StoredAdapter(folder, base.model)
    network = Network(base.model, base.weights, weights.dtype(NLD.head), fitting, adapter)
    findings = []
    for start in starts(base, PROBE_BLOCKS * traits.block_size):
        row = probe(base.model, traits.mask_token_id, traits.block_size, start)
        noisy, _ = network.logits(row).chunk(2)
        off = distance("drafting", runnable.block_logits(row), noisy)
        findings.append(Finding("logits, drafting", f"off by {off:.0e}, positions {start:,}.., PEFT's forward"))
    return findings
