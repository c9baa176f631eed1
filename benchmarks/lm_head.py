"""Peak memory and CPU time of the LM-head loss, forward and backward, each kind in processes of its own.

    .venv/bin/python benchmarks/lm_head.py            # 4,096 rows, vocabulary 131,072, hidden 256, float32, on the CPU
    .venv/bin/python benchmarks/lm_head.py --ranks 2  # the vocabulary cut over two ranks (gloo)

Kinds: plain cross-entropy (one rank alone), ours in chunks of the vocabulary, and the order of work that makes the
gradients in the forward (loss/eager_head.py). The logits have standard deviation 1, as those of a model at its start:
wider ones make softmax values that are denormal numbers, which a CPU computes ten times slower. Memory is the growth of
a rank's peak over inputs and their gradients; seconds are CPU seconds of a rank with one thread. Rounds go through the
kinds in turn; medians are shown.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, distributed

from nld_train.bench.head_loss import HeadInputs, HeadShape, draw_head_inputs
from nld_train.loss.cross_entropy import cross_entropy
from nld_train.loss.eager_head import eager_head_loss
from nld_train.loss.lm_head import head_nll
from nld_train.loss.vocabulary import VocabularyShard

KINDS = ("plain", "chunked", "eager")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=131_072)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        measure(args)
        return
    kinds = KINDS if args.ranks == 1 else KINDS[1:]
    rounds = [{kind: run_ranks(args, kind) for kind in kinds} for _ in range(args.rounds)]
    print(
        f"{args.rows:,} rows, vocabulary {args.vocabulary:,}, hidden {args.hidden}, float32, {args.ranks} CPU rank(s)"
    )
    for kind in kinds:
        mebibytes, seconds, loss = (statistics.median(one[kind][i] for one in rounds) for i in range(3))
        print(f"{kind:8} peak {mebibytes:8,.0f} MiB   {seconds:6.1f} CPU s   loss {loss:.6f}")
    for kind in kinds[1:]:
        memory, seconds = (statistics.median(one[kind][i] / one[kinds[0]][i] for one in rounds) for i in range(2))
        print(f"{kind} / {kinds[0]}: memory {memory:.3f}, CPU time {seconds:.2f}")


def run_ranks(args: argparse.Namespace, kind: str) -> list[float]:
    """Peak MiB and CPU seconds, the most of any rank, and the loss."""
    words = [f"--{name}={getattr(args, name)}" for name in ("rows", "vocabulary", "hidden", "ranks")]
    with tempfile.TemporaryDirectory() as folder:
        words += ["--only", kind, "--store", str(Path(folder) / "store")]
        started = [
            subprocess.Popen([sys.executable, __file__, *words, f"--rank={rank}"], stdout=subprocess.PIPE, text=True)
            for rank in range(args.ranks)
        ]
        found = [[float(word) for word in one.communicate()[0].split()] for one in started]
    assert all(one.returncode == 0 for one in started), f"a rank of {kind} failed"
    return [max(column) for column in zip(*found, strict=True)]


def measure(args: argparse.Namespace) -> None:
    """Print peak MiB, CPU seconds and the loss of one rank of one kind."""
    torch.set_num_threads(1)
    shape = HeadShape(args.rows, args.vocabulary // args.ranks, args.hidden)
    given = draw_head_inputs(shape, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(1))
    given.targets.random_(args.vocabulary, generator=torch.Generator().manual_seed(2))
    shard = VocabularyShard()
    if args.ranks > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{args.store}", rank=args.rank, world_size=args.ranks
        )
        shard = VocabularyShard(args.rank * shape.vocabulary, distributed.group.WORLD)
    # 1. One small product, because the libraries' own buffers are no part of the loss.
    small = torch.ones(8, args.hidden, requires_grad=True)
    cross_entropy(small @ torch.ones(64, args.hidden).T, given.targets[:8] % 64).sum().backward()
    # 2. The peak of inputs and gradients, which were written once; they are freed before the loss makes its own.
    gradients = [torch.ones_like(given.hidden), torch.ones_like(given.weight)]
    before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    gradients.clear()
    # 3. The loss itself.
    total = weighted_sum(args.only, given, shard)
    given.gradients_of_sum(total)
    seconds = time.process_time() - clock
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(growth, seconds, float(total.detach()) / args.rows)


def weighted_sum(kind: str, given: HeadInputs, shard: VocabularyShard) -> Tensor:
    """SUM_r shares_r * nll_r of one kind of loss, []."""
    if kind == "eager":
        return eager_head_loss(given.hidden, given.weight, given.targets, given.shares, shard).total
    if kind == "chunked":
        return (head_nll(given.hidden, given.weight, given.targets, shard) * given.shares).sum()
    return (cross_entropy(given.hidden @ given.weight.T, given.targets) * given.shares).sum()


if __name__ == "__main__":
    main()
