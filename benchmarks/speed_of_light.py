"""Seconds and figures of `nld eval sol` on one model, with and without compaction.

    .venv/bin/python benchmarks/speed_of_light.py            # needs out/demo/hf, which `make demo` exports

Prompts are the first tokens of documents of the demo's own text. Nothing ends a text, so every context has all blocks.
CPU seconds say more than wall time where other work runs on the machine.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from nld_train.data.token_file import TokenFile
from nld_train.decode.load import load_model
from nld_train.evaluation.contexts import EvalContext
from nld_train.evaluation.oracle_blocks import OracleSettings, measure_contexts
from nld_train.evaluation.oracle_figures import oracle_table
from nld_train.evaluation.record_file import RecordFile
from nld_train.evaluation.results import records_path, write_figures

BLOCKS, THRESHOLDS, BUDGET = (4, 8, 16, 32), (0.5, 0.7, 0.9), 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="out/demo/hf", help="exported folder (default: %(default)s)")
    parser.add_argument("--data", default="out/demo/data/almanac", help="prompts come from here (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--depths", type=int, nargs="*", default=[0, 1], help="of compaction (default: 0 1)")
    args = parser.parse_args()
    model = load_model(Path(args.model), torch.float32, torch.device("cpu"))
    contexts = contexts_from(args.data, args.prompts, args.prompt_tokens)
    print(f"{len(contexts)} prompts of {args.prompt_tokens} tokens, {args.new_tokens} new ones, blocks {BLOCKS}")
    for depth in args.depths:
        settings = OracleSettings(BLOCKS, THRESHOLDS, depth, BUDGET, args.new_tokens, ())
        with tempfile.TemporaryDirectory() as folder:
            print(f"\ndepth {depth}: {measured_run(model, contexts, settings, Path(folder))}")


def contexts_from(prefix: str, count: int, length: int) -> list[EvalContext]:
    """The beginnings of the last documents: the demo's validation documents are among them."""
    documents = TokenFile(prefix)
    long_enough = (document for document in reversed(range(len(documents))) if len(documents[document]) > length)
    chosen = [document for document, _ in zip(long_enough, range(count), strict=False)]
    return [
        EvalContext(f"{document}/1", "all", tuple(documents[document][:length].tolist()), None) for document in chosen
    ]


def measured_run(model: torch.nn.Module, contexts: list[EvalContext], settings: OracleSettings, folder: Path) -> str:
    """The time of one evaluation, and its table."""
    identity = {"blocks": list(BLOCKS), "thresholds": list(THRESHOLDS), "depth": settings.depth}
    wall, cpu = time.perf_counter(), time.process_time()
    measure_contexts(model, contexts, settings, RecordFile(records_path(folder, "sol"), identity), lambda units: None)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    table = oracle_table(write_figures(folder, "sol"))
    return f"{wall:.0f} s, {cpu:.0f} CPU seconds, {torch.get_num_threads()} threads\n{table}"


if __name__ == "__main__":
    main()
