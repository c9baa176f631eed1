"""What a trained sampler costs: arithmetic and bytes at the shape of the 8B, CPU seconds on a small model.

    .venv/bin/python benchmarks/sampler_overhead.py            # needs out/demo/hf, which `make demo` exports

The sampler has the paper's size and random weights: what it says takes no other time. Forward, judgement and the
probability that it stands for take turns within one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nld_train.decode.load import load_model
from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation_mode, extend_cache, noisy_logits
from nld_train.hf.sampler_features_nemotron_labs_diffusion import feature_count
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork
from nld_train.hf.trained_sampler_nemotron_labs_diffusion import TrainedSampler
from nld_train.model_sizes import NLD_8B
from nld_train.objective_sections import COMPONENTS, SamplerConfig
from nld_train.plan.sampler_plan import PAST, denoising_bytes, denoising_flops, described_bytes, judging_flops

SHAPE = NetworkShape(feature_count(COMPONENTS))
BLOCKS = (8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="out/demo/hf", help="exported folder (default: %(default)s)")
    parser.add_argument("--past", type=int, default=128, help="cached tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="default: %(default)s")
    args = parser.parse_args()
    for block in BLOCKS:
        print(counted(block))
    model = load_model(Path(args.model), torch.float32, torch.device("cpu"))
    for block in BLOCKS:
        print(measured(model, block, args.past, args.rounds))


def counted(block: int) -> str:
    """One line of arithmetic at the 8B's shape, with every position of the block but the seed masked."""
    flops, own = denoising_flops(NLD_8B, block, PAST), judging_flops(SamplerConfig(), SHAPE.features, block)
    read, seen = denoising_bytes(NLD_8B, PAST), described_bytes(NLD_8B.vocab_size, block - 1)
    return (
        f"8B, block {block} behind {PAST}: forward {flops / 1e9:.1f} GFLOP, sampler {own / 1e9:.4f} "
        f"({own / flops:.3%}); forward reads {read / 1e9:.2f} GB, statistics move {seen / 1e9:.3f} GB at most "
        f"({seen / read:.2%})"
    )


def measured(model: torch.nn.Module, block: int, past: int, rounds: int) -> str:
    """One line of CPU seconds. Ratios are medians of the rounds' ratios."""
    vocab_size, mask = model.config.vocab_size, model.config.mask_token_id
    torch.manual_seed(0)
    sampler = TrainedSampler(SHAPE, SamplerNetwork(SHAPE), torch.randn(vocab_size, COMPONENTS).half())
    ids = torch.full((1, block), mask)
    ids[0, 0] = 5
    masked, cache = ids == mask, KVCache(1)
    with evaluation_mode(model):
        extend_cache(model, torch.randint(mask + 1, vocab_size, (1, past)), cache, keep=1)
        logits = noisy_logits(model, ids, cache, mask)
        tokens = logits.argmax(-1, keepdim=True)
        parts: dict[str, Callable[[], object]] = {
            "forward": lambda: noisy_logits(model, ids, cache, mask),
            "judgement": lambda: sampler.judge_block(logits, ids, masked),
            "probability": lambda: logits.float().softmax(-1).gather(-1, tokens),
        }
        for run in parts.values():
            run()
        taken = [{name: cpu_seconds(run) for name, run in parts.items()} for _ in range(rounds)]
    seconds = {name: statistics.median(one[name] for one in taken) for name in parts}
    ratio = statistics.median(one["judgement"] / one["forward"] for one in taken)
    times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
    size = sum(weight.numel() for weight in model.parameters())
    return (
        f"{size / 1e6:.1f}M parameters, block {block} behind {past}, {torch.get_num_threads()} threads, "
        f"{rounds} rounds: CPU {times}; judgement / forward {ratio:.2f}"
    )


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call, of all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
