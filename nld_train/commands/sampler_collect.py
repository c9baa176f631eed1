"""`nld sampler collect`: denoising trajectories of a model, for the training of its sampler."""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nld_train.commands.eval import (
    add_model_options,
    add_prompt_options,
    asked_identity,
    file_prompts,
    model_choice,
    parse_numbers,
)
from nld_train.commands.eval_sol import MOST_BLOCK, check_block_lengths
from nld_train.errors import UserError, require
from nld_train.exit_status import FINISHED
from nld_train.objective_sections import POLICIES

if TYPE_CHECKING:  # they import torch
    from nld_train.sampler.collect import CollectionPlan

HELP = """\
Collect denoising trajectories of a model: blocks behind prompts, a seed token and masks, filled step by step, and of
every step the features of all masked positions and whether their prediction is the token that finally stands there.

  nld sampler collect out/demo/hf --prompts prompts.jsonl --output out/trajectories
  nld sampler collect out/demo/hf --prompts prompts.jsonl --output out/trajectories --dry-run
  nld sampler collect out/demo/hf --prompts prompts.jsonl --output out/trajectories --shard 2/4

policies:
  confidence  commits the most confident position of every step; its own text stands before the next block
  hybrid      first commits what agrees with the ground truth, then as confidence; the true text stands before every
              block. The truth is the prompt's "reference"; greedy AR's answer where it has none

Prompts that stand twice are taken once. The size is said before, and must fit on the disk. Killed, the same command
goes on where it stopped. Shards may write into one --output; what several wrote becomes one when their files are put
into one folder and `nld sampler merge` checks it. `nld launch sampler` does this on a Slurm cluster.
"""
PUBLISHED = 20_000_000  # trajectories that --dry-run sizes at the 8B
PUBLISHED_PROMPT = 1024  # tokens of a prompt there


def add_sampler_collect_parser(actions: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    collect = actions.add_parser("collect", help="trajectories to train it on", description=HELP, formatter_class=raw)
    add_model_options(collect)
    add_prompt_options(collect)
    collect.add_argument("--block", default="8,32", metavar="B,B", help="block lengths (default: %(default)s)")
    collect.add_argument(
        "--policy", default="confidence,hybrid", metavar="P,P", help="how blocks are filled (default: %(default)s)"
    )
    collect.add_argument(
        "--part", type=int, default=64, metavar="N", help="prompts that are written together (default: %(default)s)"
    )
    collect.add_argument("--dry-run", action="store_true", help="say the size, and that of 20M trajectories of the 8B")
    collect.set_defaults(run=run_collect)


def run_collect(args: argparse.Namespace) -> int:
    """Say the size, then write the parts that are missing."""
    # 1. The command line, the prompts, the size and the output folder, before a model is loaded.
    from nld_train.evaluation.results import parse_shard

    require(args.output is not None, "no --output", "the folder of the trajectories", "add --output DIR")
    require(args.adapter is None, f"--adapter {args.adapter}", "the model itself denoises", "leave it out")
    shard, folder = parse_shard(args.shard), Path(args.output)
    alone = shard is None or not args.overwrite
    require(alone, f"--overwrite with --shard {args.shard}", "one of them", "remove the folder before the shards start")
    plan, read = read_plan(args)

    from nld_train.sampler.collect import (
        check_part_contexts,
        check_same_collection,
        collect_parts,
        missing_parts,
        open_collection_folder,
    )

    own = plan.shard_parts(shard)
    require(len(own) > 0, f"--shard {args.shard} of {plan.parts} parts holds none", "as many shards as parts",
            "lower N, or --part")  # fmt: skip
    parts = list(own) if args.overwrite else missing_parts(folder, own)
    for line in size_lines(plan, read, parts):
        print(line)
    if args.dry_run:
        for line in published_lines(plan):
            print(line)
        return FINISHED

    from nld_train.evaluation.evaluated_model import model_identity, open_evaluated_model
    from nld_train.evaluation.progress_bar import evaluation_progress
    from nld_train.hf.sampler_features_nemotron_labs_diffusion import STATISTICS
    from nld_train.trajectories.embedding_pca import COMPONENTS

    choice = model_choice(args)
    identity = {
        "kind": "sampler",
        **model_identity(choice),
        **asked_identity(args),
        "part": args.part,
        "blocks": list(plan.blocks),
        "policies": list(plan.policies),
        "parts": plan.parts,
        "prompts_read": read,
        "duplicates": read - len(plan.prompts),
        "statistics": list(STATISTICS),
        "components": COMPONENTS,
    }
    check_free_disk(folder, plan.size(plan.contexts(parts)).bytes)
    if not args.overwrite:
        check_same_collection(folder, identity)

    # 2. The parts that are missing.
    evaluated = open_evaluated_model(choice)
    check_part_contexts(evaluated, plan, parts)
    open_collection_folder(folder, identity, args.overwrite)
    with evaluation_progress("tokens", plan.tokens(plan.contexts(parts))) as progress:
        collect_parts(evaluated, plan, folder, parts, progress.advance)
    left = missing_parts(folder, range(plan.parts))
    print(f"wrote {folder}: {plan.parts - len(left)} of {plan.parts} parts" + ("" if left else ", and the index"))
    return FINISHED


def read_plan(args: argparse.Namespace) -> "tuple[CollectionPlan, int]":
    """What the command line asks for, and how many prompts the file has. Raises: UserError."""
    from nld_train.sampler.collect import CollectionPlan, distinct_prompts

    blocks = parse_numbers("--block", args.block, int, 2, MOST_BLOCK)  # a seed, and a mask at least
    check_block_lengths(blocks, args.max_new_tokens)
    policies = [policy for policy in POLICIES if policy in args.policy.split(",")]
    known = set(args.policy.split(",")) == set(policies)
    require(known, f"--policy {args.policy}", " and ".join(POLICIES) + " with a comma between", "correct it")
    require(args.part >= 1, f"--part {args.part}", "1 or more", "use 64")
    prompts = file_prompts(args)
    chosen = (tuple(blocks), tuple(policies), args.part, args.chat, args.thinking, args.max_new_tokens)
    return CollectionPlan(distinct_prompts(prompts), *chosen), len(prompts)


def size_lines(plan: "CollectionPlan", read: int, parts: Iterable[int]) -> list[str]:
    """What is collected, and how large it becomes."""
    from nld_train.sampler.collection_size import trajectory_bytes

    contexts = plan.contexts(parts)
    size, twice = plan.size(contexts), read - len(plan.prompts)
    each = ", ".join(f"{trajectory_bytes(length) / (length - 1):.0f} at block {length}" for length in plan.blocks)
    return [
        f"{read:,} prompts, {twice:,} of them duplicates that are left out; {contexts:,} contexts to do",
        f"at most {size.trajectories:,} trajectories, {size.steps:,} steps, {size.positions:,} masked positions",
        f"bytes a step: {each}; {shown_bytes(size.bytes)} in all",
    ]


def published_lines(plan: "CollectionPlan") -> list[str]:
    """20M trajectories of the 8B, as many of each block length."""
    from nld_train.model_sizes import NLD_8B
    from nld_train.sampler.collection_size import collecting_memory, plain_bytes, sized_trajectories

    counts = [(length, PUBLISHED // len(plan.blocks)) for length in plan.blocks]
    size = sized_trajectories(counts)
    plain = sum(plain_bytes(length) * number for length, number in counts)
    memory = collecting_memory(NLD_8B, PUBLISHED_PROMPT, plan.max_new_tokens)
    parts = ", ".join(f"{name} {shown_bytes(count)}" for name, count in memory.items())
    total = shown_bytes(sum(memory.values()))
    return [
        f"{PUBLISHED:,} trajectories of the 8B at these block lengths: {size.steps:,} steps, {shown_bytes(size.bytes)} "
        f"on disk ({size.step_bytes:.0f} bytes a step; {shown_bytes(plain)} with all features of all positions)",
        f"memory of the GPU behind prompts of {PUBLISHED_PROMPT:,} tokens: {total} ({parts})",
    ]


def shown_bytes(count: float) -> str:
    """E.g. "19.2 GB", of 1e9 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def check_free_disk(folder: Path, needed: int) -> None:
    """Raises: UserError where the disk of a folder, which may not be there yet, has less than `needed` bytes free."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{shown_bytes(needed)} for {folder}, where {shown_bytes(free)} are free",
            "a disk with room for all trajectories",
            "free some space, choose another --output, or collect fewer prompts or block lengths",
        )
