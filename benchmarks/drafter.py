"""What a drafter gains on the demo's model: trained from several seeds, decoded with and without.

    .venv/bin/python benchmarks/drafter.py --seeds 3            # needs out/demo/stage2_joint, which `make demo` trains
    .venv/bin/python benchmarks/drafter.py --seeds 1 optimizer.lr=1e-3 train.iterations=100

Each seed gives the adapter another start, and its blocks other draws. Printed for each: the accepted length on the
validation rows before and after, in the training's own evaluations; the same in real decoding of held-out prompts, with
the text compared with that of greedy AR; and the seconds of training.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.convert.actions import ExportRequest, export_checkpoint
from nld_train.data.token_file import TokenFile
from nld_train.decode import ar, self_speculation
from nld_train.decode.load import load_drafter_adapter, load_model
from nld_train.decode.result import Decoded
from nld_train.decode.settings import DecodeConfig
from nld_train.report.drafter_figures import first_and_last_drafts
from nld_train.report.history import read_stage

RECIPE = "tiny_drafter"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("override", nargs="*", help="key=value, as of `nld train`")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--output", default="out/benchmarks/drafter", help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=48, help="default: %(default)s")
    args = parser.parse_args()
    print(f"{'seed':>4}{'evaluated':>24}{'gain':>8}{'decoded':>22}{'gain':>8}{'same as AR':>12}{'s':>6}")
    for seed in range(1, args.seeds + 1):
        overrides = seeded(args.override, seed, f"{args.output}/{seed}")
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "nld_train.cli", "train", RECIPE, *overrides], check=True)
        seconds = time.monotonic() - began
        run = recipe.load_recipe(RECIPE, overrides)
        before, after = first_and_last_drafts(read_stage(Path(run.output))) or (None, None)
        assert before is not None and after is not None, f"seed {seed}: no evaluation"
        decoded = decode_both(run, args.prompts, args.new_tokens)
        print(
            f"{seed:>4}{gain(before.accepted, after.accepted)}{gain(decoded[0], decoded[1], 22)}"
            f"{decoded[2]:>9}/{args.prompts}{seconds:>6.0f}",
            flush=True,
        )


def gain(before: float, after: float, width: int = 24) -> str:
    return f"{before:.3f} -> {after:.3f}".rjust(width) + f"{100 * (after / before - 1):+.1f} %".rjust(8)


def seeded(overrides: Sequence[str], seed: int, output: str) -> list[str]:
    """The overrides with another start of the adapter, other draws, and other rows first."""
    names = ("train.seed", "diffusion.noise_seed", "data.shuffle_seed")
    return [*overrides, *(f"{name}={seed}" for name in names), f"output={output}"]


def decode_both(run: RunConfig, count: int, new_tokens: int) -> tuple[float, float, int]:
    """Mean accepted length without and with the adapter over held-out prompts, and how many texts are greedy AR's."""
    folder = Path(run.output) / "hf"
    export_checkpoint(
        ExportRequest(
            output=Path(run.output),
            target=folder,
            step=None,
            dtype="fp32",
            tokenizer=None,
            chat=False,
            shard_gb=None,
            verified=True,
            overwrite=True,
        )
    )
    base, drafting = (load_model(folder, torch.float32, torch.device("cpu")) for _ in range(2))
    load_drafter_adapter(drafting, folder, folder)
    prompts = held_out(run, count)
    # No end of text, so that every prompt counts alike.
    settings = DecodeConfig(max_new_tokens=new_tokens, block_length=run.diffusion.block_size, eos_token_id=())
    greedy = ar.generate_ar(base, prompts, settings)
    plain, drafted = (
        self_speculation.generate_self_speculation(model, prompts, settings) for model in (base, drafting)
    )
    same = sum(one.ids == two.ids == three.ids for one, two, three in zip(greedy, plain, drafted, strict=True))
    return accepted(plain), accepted(drafted), same


def held_out(run: RunConfig, count: int) -> list[list[int]]:
    """Prompts of 32 tokens, spread over the last hundredth of the documents: the validation split of the recipe."""
    assert run.data.split == "99,1,0", f"data.split={run.data.split}: the prompts are taken from the last hundredth"
    documents = TokenFile(run.data.blend[0])
    last = (documents[number] for number in range(len(documents) - len(documents) // 100, len(documents)))
    places = [text[first : first + 32].tolist() for text in last for first in range(0, len(text) - 32, 64)]
    assert len(places) >= count, f"{len(places)} prompts in the validation documents, {count} asked for"
    return places[:: len(places) // count][:count]


def accepted(answers: Sequence[Decoded]) -> float:
    return statistics.mean(length for answer in answers for length in answer.accepted_lengths)


if __name__ == "__main__":
    main()
