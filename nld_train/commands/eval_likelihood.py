"""`nld eval likelihood`: how likely a checkpoint finds text, left to right and by denoising."""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.commands.eval import add_model_options, finish_evaluation, model_choice, output_folder
from nld_train.errors import require

if TYPE_CHECKING:  # they import torch
    from nld_train.data.tokenizer import TextTokenizer
    from nld_train.evaluation.evaluated_model import EvaluatedModel
    from nld_train.evaluation.likelihood_estimate import NoiseSettings
    from nld_train.evaluation.likelihood_windows import TokenDocuments, WindowPlace
    from nld_train.evaluation.record_file import RecordFile

KIND = "likelihood"
LONGEST_DEFAULT = 1024  # tokens
LAWS = ("uniform", "stratified", "complementary")
HELP = """\
How likely a model finds text: left to right, and by denoising, of which the ELBO is a bound.

  nld eval likelihood out/demo/hf --data out/demo/data/almanac --held-out 95,5,0
  nld eval likelihood out/demo/sft --data notes.txt articles.jsonl --rows 256 --draws 16 --noise complementary

Documents are cut into windows of --length + 1 tokens, whose first is context, as in training: a window's AR figure
and its bound are of the same tokens. Of chat files the answers count. Control tokens, such as the end of a document,
are predicted like any token, but have no bytes. The bound is estimated from --draws of (t, mask) a window; blocks are
those of the model's block_size. Nothing is known of what the model was trained on: name text that is new to it, or the
documents that its run held out.
"""


def add_likelihood_parser(evaluations: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = evaluations.add_parser(
        KIND, help="AR bits per byte, diffusion ELBO", description=HELP, formatter_class=raw
    )
    add_model_options(parser)
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="PREFIX|FILE", help="token files of `nld data`, or text files"
    )
    parser.add_argument("--text-key", default="text", metavar="KEY", help="of .jsonl and the like (default: text)")
    parser.add_argument(
        "--held-out", metavar="SPLIT", help="of token files the documents that a run with this data.split validates on"
    )
    parser.add_argument(
        "--length", type=int, metavar="L", help="tokens (default: the model's original context, at most 1024)"
    )
    parser.add_argument(
        "--rows", type=int, default=128, metavar="N", help="windows at most, spread evenly (default: %(default)s)"
    )
    parser.add_argument(
        "--noise", choices=LAWS, default="stratified", help="complementary: antithetic pairs (default: %(default)s)"
    )
    parser.add_argument("--draws", type=int, default=8, metavar="K", help="of noise, a window (default: %(default)s)")
    parser.add_argument("--eps", type=float, default=1e-3, metavar="X", help="the least p (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of the noise (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="draws a forward (default: %(default)s)")
    parser.add_argument("--shard", metavar="I/N", help="every Nth window, from the Ith on; `nld eval merge` joins them")
    parser.set_defaults(run=run_likelihood)


def run_likelihood(args: argparse.Namespace) -> int:
    """Measure window after window, and print the figures."""
    # 1. The command line is checked before the model is loaded.
    from transformers.utils.logging import disable_progress_bar

    from nld_train.evaluation.evaluated_model import model_identity, open_evaluated_model
    from nld_train.evaluation.likelihood_figures import likelihood_table
    from nld_train.evaluation.likelihood_windows import choose_windows
    from nld_train.evaluation.record_file import COUNT, RecordFile
    from nld_train.evaluation.results import parse_shard, records_path

    require(args.adapter is None, "--adapter for a likelihood", "drafts alone are made with it", "leave it out")
    for name in ("rows", "batch"):
        require(vars(args)[name] >= 1, f"--{name} {vars(args)[name]}", "1 or more", "correct it")
    noise, choice, shard = noise_settings(args), model_choice(args), parse_shard(args.shard)
    # 2. The windows.
    disable_progress_bar()
    evaluated = open_evaluated_model(choice)
    length = window_length(args.length, evaluated)
    sources = [open_documents(name, args, evaluated.tokenizer) for name in args.data]
    places, total = choose_windows(sources, length, args.rows)
    require(total > 0, f"no token to predict in {', '.join(args.data)}", "documents of 2 or more tokens", "give more")
    left = total - len(places)
    said = f"; {left:,} between them are left out (--rows {args.rows})" if left else ""
    print(f"{len(places):,} of {total:,} windows of up to {length:,} tokens{said}")
    # 3. A record for each.
    chosen = places if shard is None else places[shard[0] - 1 :: shard[1]]
    identity = {
        "kind": KIND,
        **model_identity(choice),
        "data": [[Path(source.name).name, source.sha256] for source in sources],
        "held_out": args.held_out,
        "length": length,
        "rows": args.rows,
        "block_size": evaluated.model.config.block_size,
        **vars(noise),
        COUNT: len(chosen),
    }
    folder = output_folder(args)
    records = RecordFile(records_path(folder, KIND, shard), identity, args.overwrite)
    measure_windows(evaluated, sources, chosen, noise, records)
    # 4. The figures, of all windows.
    return finish_evaluation(folder, KIND, shard, likelihood_table)


def noise_settings(args: argparse.Namespace) -> "NoiseSettings":
    """The noise of a command line. Raises: UserError."""
    from nld_train.evaluation.likelihood_estimate import NoiseSettings, check_noise_settings

    noise = NoiseSettings(args.noise, args.draws, args.eps, args.seed, args.batch)
    check_noise_settings(noise)
    return noise


def window_length(asked: int | None, evaluated: "EvaluatedModel") -> int:
    """L. Raises: UserError for one that does not fit into the model's context."""
    config = evaluated.model.config
    longest = config.max_position_embeddings - 1  # the last of L + 1 tokens stands at place L
    if asked is None:
        return min(config.rope_parameters["original_max_position_embeddings"], LONGEST_DEFAULT, longest)
    require(1 <= asked <= longest, f"--length {asked}", f"1 to {longest:,}", "lower it")
    return asked


def open_documents(name: str, args: argparse.Namespace, tokenizer: "TextTokenizer") -> "TokenDocuments":
    """The documents of a prefix or a text file. Raises: UserError."""
    from nld_train.data.token_file import file_sha256, idx_path
    from nld_train.evaluation.likelihood_windows import encoded_documents, open_token_file

    path = Path(name)
    if idx_path(name).is_file() or not path.is_file():
        found = idx_path(name).is_file()
        require(found, f"no {name}.idx and no file {name}", "a token file's prefix, or a text file", "check --data")
        return open_token_file(name, tokenizer, args.held_out)
    require(args.held_out is None, f"--held-out with the text {name}", "token files", "leave it out")
    digest = hashlib.sha256(f"{file_sha256(path)} {args.text_key} {tokenizer.fingerprint}".encode()).hexdigest()
    return encoded_documents(name, digest, list(encode_text_file(path, args.text_key, tokenizer)))


def encode_text_file(path: Path, text_key: str, tokenizer: "TextTokenizer") -> Iterator[Any]:
    """The tokens of every document of a text file, as `nld data prepare` makes them. Raises: UserError."""
    import numpy as np

    from data_prep.sources import DOCUMENT_BYTES, file_pieces, read_piece
    from nld_train.data.tokenizer import end_of_document_id

    ending = end_of_document_id(tokenizer)
    for piece in file_pieces([path], DOCUMENT_BYTES):
        for record in read_piece(piece, text_key):
            require(
                not record.problem, f"{path}:{record.line}: {record.problem}", "text, or records of it", "repair it"
            )
            if record.text.strip():  # a blank file is no document
                ids = tokenizer.encode(record.text)
                yield np.append(ids, np.array(ending, dtype=ids.dtype))


def measure_windows(
    evaluated: "EvaluatedModel",
    sources: "Sequence[TokenDocuments]",
    places: "Sequence[WindowPlace]",
    noise: "NoiseSettings",
    records: "RecordFile",
) -> None:
    """A record for every window that has none yet. Windows in which no token counts are said. Raises: UserError."""
    from nld_train.evaluation.likelihood_estimate import window_record
    from nld_train.evaluation.likelihood_windows import read_window
    from nld_train.evaluation.progress_bar import evaluation_progress
    from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation_mode

    missing = set(records.missing([place.key for place in places]))
    empty = 0
    with evaluation_mode(evaluated.model), evaluation_progress("windows", len(places)) as progress:
        progress.advance(len(places) - len(missing))
        for place in (place for place in places if place.key in missing):
            source = sources[place.source]
            window = read_window(source, place, records.identity["length"], evaluated.tokenizer)
            if window.counted.any():
                where = f"document {place.document} of {source.name}"
                records.append({"key": place.key, **window_record(evaluated.model, window, place.number, noise, where)})
            else:
                empty += 1
            progress.advance(1)
    if empty:
        print(f"in {empty:,} windows no token counts: they have no part in the figures")
