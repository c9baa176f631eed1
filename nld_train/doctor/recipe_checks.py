"""What one run needs of this machine: that its start checks pass, its data, tokenizer, memory, disk and checkpoints."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.data.manifest import check_token_file_tokenizer, parse_blend
from nld_train.data.run_rows import describe_first_start, describe_repeats, estimate_validation_rows
from nld_train.data.tokenizer import check_mask_id, load_tokenizer
from nld_train.data.trajectory_rows import check_trajectory_data
from nld_train.doctor.accelerator import Gpus
from nld_train.doctor.finding import DoctorFinding, Verdict, any_fails, counted_noun, gb_text, refusal_finding
from nld_train.doctor.machine import nearest_existing_folder, total_memory
from nld_train.errors import UserError
from nld_train.plan import memory
from nld_train.plan.row_counts import run_tokens
from nld_train.run_folder.checkpoints import MANIFEST, checkpoint_problem, checkpoint_steps, newest_complete_step
from nld_train.run_folder.frozen import read_run_if_any
from nld_train.run_folder.paths import checkpoints_folder, data_index_folder, step_folder

# Settings of the data section that decide which row a number means.
ORDER_OF_ROWS = ("blend", "sequence_length", "text_length", "split", "chat", "long_conversations", "shuffle_seed")
MANY_TIMES = 4  # a run that reads its tokens more often learns them by heart


def run_start_check(name: str, check: Callable[[RunConfig], None], run: RunConfig) -> DoctorFinding:
    """Make one start check, and give its refusal as a finding."""
    try:
        check(run)
    except UserError as error:
        return refusal_finding(name, error)
    return DoctorFinding(name, "accepted")


def check_data_files(run: RunConfig, verify: bool) -> list[DoctorFinding]:
    """Compare each token file with its manifest by size or, with `verify`, by SHA-256, and say how often it is read."""
    if run.sampler is not None:
        return [check_trajectories(run)]
    try:
        blend = parse_blend(run.data.blend)
    except UserError as error:
        return [refusal_finding("data.blend", error)]
    counts: list[tuple[float | None, str, int]] = []
    findings = []
    for weight, prefix in blend:
        try:
            found = check_token_file_tokenizer(prefix, run.data.tokenizer, verify)
        except UserError as error:
            findings.append(refusal_finding(f"data {prefix}", error))
            continue
        counts.append((weight, prefix, found.tokens))
        how = "SHA-256 verified" if verify else "sizes as in its manifest"
        said = f"{counted_noun(found.tokens, 'token')} in {counted_noun(found.documents, 'document')}; {how}"
        findings.append(DoctorFinding(f"data {prefix}", said))
    if any_fails(findings):
        return findings
    return [*findings, check_data_passes(run, counts), *check_rows_read_before(run), *check_validation_rows(run)]


def check_trajectories(run: RunConfig) -> DoctorFinding:
    """Look at the trajectories of a sampler's run, and say how often it reads them."""
    name = f"data {run.data.blend[0]}"
    try:
        found = check_trajectory_data(run)
    except UserError as error:
        return refusal_finding(name, error)
    count = sum(found.trajectories.values())
    times = run.train.iterations * run.train.global_batch / max(count, 1)
    said = f"{count:,} trajectories of {found.prompts:,} prompts; each is read {times:.2g} times, those held out apart"
    return DoctorFinding(name, said)


def check_rows_read_before(run: RunConfig) -> list[DoctorFinding]:
    """Say what share of the run's rows its `init` has read, where that is a run on the same rows in the same order."""
    if run.init is None:
        return []
    try:
        before = read_run_if_any(Path(run.init))
    except UserError:
        return []  # the start checks refuse it, or another version wrote it
    if before is None or any(getattr(before.data, name) != getattr(run.data, name) for name in ORDER_OF_ROWS):
        return []
    steps = newest_complete_step(Path(run.init)) or before.train.iterations
    ended = before.data.skip_rows + steps * before.train.global_batch
    first, count = run.data.skip_rows, run.train.iterations * run.train.global_batch
    again = max(0, min(ended, first + count) - max(before.data.skip_rows, first))
    said = f"init={run.init} ended at row {ended:,} of this data, the run begins at row {first:,}"
    if not again:
        return [DoctorFinding("rows", f"{said}: none is read again before the data is")]
    do = f"set data.skip_rows={ended} to go on where it ended"
    return [DoctorFinding("rows", f"{said}: {again / count:.0%} of its rows are read again", "note", do)]


def check_validation_rows(run: RunConfig) -> list[DoctorFinding]:
    """Note a validation part that is shorter than one evaluation."""
    if not run.train.eval_batches:
        return []
    try:
        rows = estimate_validation_rows(run)
    except UserError as error:
        return [refusal_finding("validation", error)]
    said = describe_repeats(run, rows) if all(rows) else None  # a file without any is refused as a start check
    do = "lower train.eval_batches, or give validation a larger share of data.split"
    return [] if said is None else [DoctorFinding("validation", said, "note", do)]


def check_first_start(run: RunConfig) -> list[DoctorFinding]:
    """Say how long the first start orders rows, where their order is not made yet."""
    try:
        said = describe_first_start(run, data_index_folder(run.output))
    except UserError:
        return []  # the checks of the files refuse it
    return [] if said is None else [DoctorFinding("first start", said)]


def check_data_passes(run: RunConfig, counts: Sequence[tuple[float | None, str, int]]) -> DoctorFinding:
    """How often the run reads the file that it reads most. counts: (weight, prefix, tokens) of each file."""
    share = sum(weight if weight is not None else size for weight, _, size in counts)
    often = {
        prefix: run_tokens(run) * (weight if weight is not None else size) / share / max(size, 1)
        for weight, prefix, size in counts
    }
    prefix = max(often, key=lambda name: often[name])
    said = f"{run_tokens(run):,} to train on; {prefix} is read {often[prefix]:.2g} times"
    if often[prefix] <= MANY_TIMES:
        return DoctorFinding("tokens", said)
    return DoctorFinding("tokens", said, "note", "add data, lower its weight, or train fewer iterations")


def check_tokenizer(run: RunConfig) -> DoctorFinding:
    """Read the tokenizer, and see what it calls the mask token."""
    mask = run.diffusion.mask_token_id
    try:
        found = load_tokenizer(run.data.tokenizer)
        check_mask_id(found, mask, "diffusion.mask_token_id")
    except UserError as error:
        return refusal_finding("tokenizer", error)
    name = found.library.id_to_token(mask)
    said = f"{counted_noun(found.vocab_size, 'id')}; mask_token_id {mask} is " + (
        "without text" if name is None else repr(name)
    )
    return DoctorFinding("tokenizer", said)


def check_memory(run: RunConfig, gpus: Gpus) -> DoctorFinding:
    """Compare the planned memory of the fullest rank with a GPU; without GPUs, all ranks' states with main memory."""
    need = memory.worst_stage(run)
    if gpus.memory:
        said = f"{gb_text(need.total)} planned per GPU, {gb_text(min(gpus.memory))} there"
        fits = need.total <= min(gpus.memory)
    else:
        states = run.parallel.world_size * (need.weights + need.gradients + need.optimizer)
        said = f"{gb_text(states)} of weights, gradients and optimizer on {run.parallel.world_size} CPU rank(s)"
        said, fits = f"{said}, {gb_text(total_memory())} there", states <= total_memory()
    if fits:
        return DoctorFinding("memory", said)
    do = "cut the model by parallel.tensor or parallel.pipeline, or give it more machines"
    return DoctorFinding("memory", said, "FAIL", do)


def check_disk(run: RunConfig) -> DoctorFinding:
    """Compare the free space with the checkpoints to come: those that are kept and the one being written, less those
    that are there."""
    output = Path(run.output)
    folder = nearest_existing_folder(output)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return DoctorFinding("disk", f"{folder} cannot be written", "FAIL", "choose another output=")
    one = memory.checkpoint_size(run).total
    most = min(run.checkpoint.keep, math.ceil(run.train.iterations / run.checkpoint.interval)) + 1
    there = sum(file.stat().st_size for file in checkpoints_folder(output).rglob("*") if file.is_file())
    need, free = max(0, most * one - there), shutil.disk_usage(folder).free
    said = f"{gb_text(free)} free for {output}; {gb_text(need)} needed: {most} checkpoints of {gb_text(one)}"
    said += (
        f", less {gb_text(there)} there"
        if there
        else f" (checkpoint.keep={run.checkpoint.keep}, and one being written)"
    )
    if need <= free:
        return DoctorFinding("disk", said)
    return DoctorFinding("disk", said, "FAIL", "free some space, lower checkpoint.keep, or choose another output=")


def check_checkpoints(run: RunConfig, verify: bool) -> list[DoctorFinding]:
    """Say which checkpoints in the output folder are complete, and what is wrong with the others."""
    output = Path(run.output)
    problems = {
        step: checkpoint_problem(step_folder(output, step), contents=verify) for step in checkpoint_steps(output)
    }
    if not problems:
        return [DoctorFinding("checkpoints", f"none in {output}: the run starts at step 0")]
    complete = [step for step, wrong in problems.items() if wrong is None]
    damaged = [wrong for wrong in problems.values() if wrong is not None]
    if not complete:
        finished = any((step_folder(output, step) / MANIFEST).is_file() for step in problems)
        verdict: Verdict = "FAIL" if finished else "note"
        do = "choose another output=, or copy a whole checkpoint back"
        do = do if finished else "nothing: no save was ever finished, and the run starts at step 0"
        return [DoctorFinding("checkpoints", f"none is complete: {wrong}", verdict, do) for wrong in damaged]
    how = "checksums verified" if verify else "by their sizes; --verify reads them"
    do = "nothing: the run takes the newest complete one"
    return [
        DoctorFinding("checkpoints", f"{len(complete)} complete, newest at step {max(complete):,}; {how}"),
        *(DoctorFinding("checkpoints", wrong, "note", do) for wrong in damaged),
    ]
