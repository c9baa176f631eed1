"""Tokens per forward and tokens/s of every decoding mode on one model, in one run.

    .venv/bin/python benchmarks/decode.py            # needs out/demo/hf, which `make demo` exports

Prompts are the first tokens of documents of the demo's own text. Modes take turns prompt by prompt, so that a busy
machine slows them alike. Every forward is counted, the prefill included, so AR has exactly 1 token per forward.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nld_train.data.token_file import TokenFile
from nld_train.decode import ar, diffusion, quadratic, self_speculation
from nld_train.decode.load import load_drafter_adapter, load_model
from nld_train.decode.result import Decoded
from nld_train.decode.settings import DecodeConfig

Decode = Callable[[list[list[int]]], list[Decoded]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="out/demo/hf", help="exported folder (default: %(default)s)")
    parser.add_argument("--data", default="out/demo/data/almanac", help="prompts come from here (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--adapter", help="a drafter's adapter: its drafts are added to the table")
    args = parser.parse_args()
    model = load_model(Path(args.model), torch.float32, torch.device("cpu"))
    prompts = prompts_from(args.data, args.prompts, args.prompt_tokens)
    decoders = modes(model, args.new_tokens)
    if args.adapter is not None:
        drafting = load_model(Path(args.model), torch.float32, torch.device("cpu"))
        load_drafter_adapter(drafting, Path(args.model), Path(args.adapter))
        decoders["self-speculation, adapter"] = modes(drafting, args.new_tokens)["self-speculation, linear"]
    results: dict[str, list[Decoded]] = {name: [] for name in decoders}
    for prompt in prompts:
        for name, decode in decoders.items():
            results[name] += decode([prompt])
    print_table(results, args)


def prompts_from(prefix: str, count: int, length: int) -> list[list[int]]:
    """The beginnings of the last documents: the demo's validation documents are among them."""
    documents = TokenFile(prefix)
    long_enough = (document for document in reversed(range(len(documents))) if len(documents[document]) > length)
    return [documents[document][:length].tolist() for document, _ in zip(long_enough, range(count), strict=False)]


def modes(model: torch.nn.Module, new_tokens: int) -> dict[str, Decode]:
    block = model.config.block_size
    # No end of text, so that every mode makes the same number of tokens.
    base = DecodeConfig(max_new_tokens=new_tokens // block * block, block_length=block, eos_token_id=())

    def at(decode: Callable, **changes: object) -> Decode:
        settings = replace(base, **changes)
        return lambda prompts: decode(model, prompts, settings)

    return {
        "AR": at(ar.generate_ar),
        "diffusion, threshold 0.9": at(diffusion.generate_diffusion, threshold=0.9),
        "diffusion, threshold 0.5": at(diffusion.generate_diffusion, threshold=0.5),
        f"diffusion, {block // 4} steps a block": at(
            diffusion.generate_diffusion, threshold=None, forwards_per_block=block // 4
        ),
        "self-speculation, linear": at(self_speculation.generate_self_speculation),
        "self-speculation, quadratic": at(quadratic.generate_quadratic, block_length=4),
    }


def print_table(results: dict[str, list[Decoded]], args: argparse.Namespace) -> None:
    count = len(next(iter(results.values())))
    print(f"{count} prompts of {args.prompt_tokens} tokens, one at a time, float32, {torch.get_num_threads()} threads")
    print(f"{'mode':<30}{'tokens/forward':>15}{'tokens/s':>10}{'tokens/verification':>21}{'same as AR':>12}")
    greedy = [answer.ids for answer in results["AR"]]
    for name, answers in results.items():
        forwards = sum(answer.nfe.total for answer in answers)
        tokens = sum(len(answer.ids) for answer in answers)
        seconds = sum(answer.seconds for answer in answers)
        lengths = [length for answer in answers for length in answer.accepted_lengths]
        accepted = f"{statistics.mean(lengths):.2f}" if lengths else "-"
        same = sum(answer.ids == ids for answer, ids in zip(answers, greedy, strict=True))
        print(f"{name:<30}{tokens / forwards:>15.2f}{tokens / seconds:>10.1f}{accepted:>21}{f'{same}/{count}':>12}")


if __name__ == "__main__":
    main()
