"""Peak memory and time of the LM-head loss, forward and backward: chunked (ours) against plain cross-entropy.

    .venv/bin/python benchmarks/lm_head.py            # 4,096 rows, vocabulary 131,072, hidden 256, float32, on the CPU

Each runs in a process of its own; memory is the growth of its peak over what inputs and their gradients take.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from nld_train.loss.cross_entropy import cross_entropy
from nld_train.loss.lm_head import head_nll

KINDS = ("plain", "chunked")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=131_072)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        measure(args)
        return
    results = {}
    for kind in KINDS:
        words = [f"--{name}={getattr(args, name)}" for name in ("rows", "vocabulary", "hidden")]
        done = subprocess.run([sys.executable, __file__, *words, "--only", kind], capture_output=True, check=True)
        results[kind] = [float(word) for word in done.stdout.split()]
    print(f"{args.rows:,} rows, vocabulary {args.vocabulary:,}, hidden {args.hidden}, float32, CPU")
    for kind, (mebibytes, seconds, loss) in results.items():
        print(f"{kind:8} peak {mebibytes:8,.0f} MiB   {seconds:6.1f} s   loss {loss:.6f}")
    (plain, plain_seconds, _), (chunked, chunked_seconds, _) = results.values()
    print(f"chunked / plain: memory 1/{plain / chunked:.1f}, time {chunked_seconds / plain_seconds:.2f}")


def measure(args: argparse.Namespace) -> None:
    """Print peak MiB, seconds and the loss of one kind."""
    torch.manual_seed(1)
    hidden = torch.randn(args.rows, args.hidden, requires_grad=True)
    weight = torch.randn(args.vocabulary, args.hidden, requires_grad=True)
    targets = torch.randint(args.vocabulary, (args.rows,))
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    hidden.grad[:], weight.grad[:] = 1.0, 1.0  # touched, so that they are resident before the measurement
    # One small product first: the libraries' own buffers are no part of the loss.
    cross_entropy(hidden[:8] @ weight[:1024].T, targets[:8] % 1024).sum().backward()
    gradient_bytes = weight.numel() * 4  # of the weight, which either way exists once before it is added
    before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    nll = cross_entropy(hidden @ weight.T, targets) if args.only == "plain" else head_nll(hidden, weight, targets)
    nll.mean().backward()
    seconds = time.monotonic() - clock
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(growth / 1024 - gradient_bytes / 2**20, seconds, float(nll.detach().mean()))


if __name__ == "__main__":
    main()
