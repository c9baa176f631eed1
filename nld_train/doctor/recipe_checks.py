"""What one run needs of this machine: its doors, data, tokenizer, memory, disk and checkpoints."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.data.manifest import check_prefix, parse_blend
from nld_train.data.tokenizer import load_tokenizer
from nld_train.doctor.accelerator import Gpus
from nld_train.doctor.finding import Finding, Verdict, any_fails, gb, plural, refused
from nld_train.doctor.machine import existing, total_memory
from nld_train.errors import UserError
from nld_train.plan import memory
from nld_train.plan.rows import tokens
from nld_train.run_folder.checkpoints import MANIFEST, problem, saved_steps
from nld_train.run_folder.paths import checkpoints, step_folder

MANY_TIMES = 4  # a run that reads its tokens oftener learns them by heart


def asked(name: str, check: Callable[[RunConfig], None], run: RunConfig) -> Finding:
    """What a check at the start of `nld train` says."""
    try:
        check(run)
    except UserError as error:
        return refused(name, error)
    return Finding(name, "accepted")


def data(run: RunConfig, verify: bool) -> list[Finding]:
    """Each token file against its manifest, in size or, with `verify`, in SHA-256; and how often the run reads it."""
    try:
        blend = parse_blend(run.data.blend)
    except UserError as error:
        return [refused("data.blend", error)]
    counts: list[tuple[float | None, str, int]] = []
    findings = []
    for weight, prefix in blend:
        try:
            found = check_prefix(prefix, run.data.tokenizer, verify)
        except UserError as error:
            findings.append(refused(f"data {prefix}", error))
            continue
        counts.append((weight, prefix, found.tokens))
        how = "SHA-256 verified" if verify else "sizes as in its manifest"
        said = f"{plural(found.tokens, 'token')} in {plural(found.documents, 'document')}; {how}"
        findings.append(Finding(f"data {prefix}", said))
    return findings if any_fails(findings) else [*findings, passes(run, counts)]


def passes(run: RunConfig, counts: Sequence[tuple[float | None, str, int]]) -> Finding:
    """How often the run reads the file it reads most, by tokens: (weight, prefix, tokens) of each."""
    share = sum(weight if weight is not None else size for weight, _, size in counts)
    often = {
        prefix: tokens(run) * (weight if weight is not None else size) / share / max(size, 1)
        for weight, prefix, size in counts
    }
    prefix = max(often, key=lambda name: often[name])
    said = f"{tokens(run):,} to train on; {prefix} is read {often[prefix]:.2g} times"
    if often[prefix] <= MANY_TIMES:
        return Finding("tokens", said)
    return Finding("tokens", said, "note", "add data, lower its weight, or train fewer iterations")


def tokenizer(run: RunConfig) -> Finding:
    """The tokenizer, and what it calls the mask."""
    try:
        found = load_tokenizer(run.data.tokenizer)
    except UserError as error:
        return refused("tokenizer", error)
    mask = run.diffusion.mask_token_id
    added = found.library.get_added_tokens_decoder()
    name = found.library.id_to_token(mask)
    said = f"{plural(found.vocab_size, 'id')}; mask_token_id {mask} is {name!r}"
    if mask not in added or not added[mask].special:
        do = "set diffusion.mask_token_id to a control token, which no text is encoded as"
        return Finding("tokenizer", f"{said}, which is no control token", "note", do)
    return Finding("tokenizer", said)


def room(run: RunConfig, gpus: Gpus) -> Finding:
    """The plan's memory of the fullest rank against a GPU; without one, the states of all ranks against main memory."""
    need = memory.worst_stage(run)
    if gpus.memory:
        said = f"{gb(need.total)} planned per GPU, {gb(min(gpus.memory))} there"
        fits = need.total <= min(gpus.memory)
    else:
        states = run.parallel.world_size * (need.weights + need.gradients + need.optimizer)
        said = f"{gb(states)} of weights, gradients and optimizer on {run.parallel.world_size} CPU rank(s)"
        said, fits = f"{said}, {gb(total_memory())} there", states <= total_memory()
    if fits:
        return Finding("memory", said)
    do = "cut the model by parallel.tensor or parallel.pipeline, or give it more machines"
    return Finding("memory", said, "FAIL", do)


def disk(run: RunConfig) -> Finding:
    """Free space against the checkpoints still to come: the K kept and the one being written, less what is there."""
    output = Path(run.output)
    folder = existing(output)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return Finding("disk", f"{folder} cannot be written", "FAIL", "choose another output=")
    one = memory.checkpoint_size(run).total
    most = min(run.checkpoint.keep, math.ceil(run.train.iterations / run.checkpoint.interval)) + 1
    there = sum(file.stat().st_size for file in checkpoints(output).rglob("*") if file.is_file())
    need, free = max(0, most * one - there), shutil.disk_usage(folder).free
    said = f"{gb(free)} free for {output}; {gb(need)} needed: {most} checkpoints of {gb(one)}"
    said += f", less {gb(there)} there" if there else f" (checkpoint.keep={run.checkpoint.keep}, and one being written)"
    if need <= free:
        return Finding("disk", said)
    return Finding("disk", said, "FAIL", "free some space, lower checkpoint.keep, or choose another output=")


def saved(run: RunConfig, verify: bool) -> list[Finding]:
    """The checkpoints in the output folder: which are complete, what is wrong with the others."""
    output = Path(run.output)
    problems = {step: problem(step_folder(output, step), contents=verify) for step in saved_steps(output)}
    if not problems:
        return [Finding("checkpoints", f"none in {output}: the run starts at step 0")]
    complete = [step for step, wrong in problems.items() if wrong is None]
    damaged = [wrong for wrong in problems.values() if wrong is not None]
    if not complete:
        finished = any((step_folder(output, step) / MANIFEST).is_file() for step in problems)
        verdict: Verdict = "FAIL" if finished else "note"
        do = "choose another output=, or copy a whole checkpoint back"
        do = do if finished else "nothing: no save was ever finished, and the run starts at step 0"
        return [Finding("checkpoints", f"none is complete: {wrong}", verdict, do) for wrong in damaged]
    how = "checksums verified" if verify else "by their sizes; --verify reads them"
    do = "nothing: the run takes the newest complete one"
    return [
        Finding("checkpoints", f"{len(complete)} complete, newest at step {max(complete):,}; {how}"),
        *(Finding("checkpoints", wrong, "note", do) for wrong in damaged),
    ]
