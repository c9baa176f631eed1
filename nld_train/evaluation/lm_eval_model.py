"""lm-eval's model class `nld`: likelihood left to right, and answers in any decoding mode.

lm-eval reads no plugins: a model of another package is there once its file is imported. So its own command line, with
all its options, is started as

    python -m nld_train.evaluation.lm_eval_model --model nld --model_args pretrained=DIR,mode=self-spec --tasks ...

Requests are answered in batches that depend on the requests alone, so that a killed evaluation gives the same answers.
"""

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from nld_train.data.chat_encoder import ChatEncoder, load_chat_encoder
from nld_train.data.chat_template import Message
from nld_train.data.tokenizer import end_of_document_id
from nld_train.decode.load import token_text
from nld_train.decode.modes import MODES
from nld_train.decode.result import Decoded
from nld_train.decode.run import text_ends
from nld_train.decode.settings import DecodeConfig
from nld_train.decode.stop_texts import before_stop, ends_with_stop
from nld_train.errors import UserError, require
from nld_train.evaluation.evaluated_model import EvaluatedModel, ModelChoice, open_evaluated_model
from nld_train.evaluation.progress_bar import evaluation_progress
from nld_train.evaluation.record_file import Record, RecordFile
from nld_train.exit_status import REFUSED
from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation_mode

logger = logging.getLogger(__name__)
ROLLING = 1024  # tokens of a window of running text, or the model's context where that is smaller
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
GIVEN = ("pretrained", "mode", "block_length", "threshold", "batch_size", "chat", "adapter", "dtype", "device")
OF_LM_EVAL = ("max_batch_size",)  # lm-eval adds it to every model's arguments
# What a task may say of its answers; other names are said and not read.
READ = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")
NEW_TOKENS = 256  # where a task does not say


@dataclass(frozen=True)
class TaskDecoding:
    """How requests are answered."""

    mode: str = "ar"
    block_length: int = 32
    threshold: float = 0.9  # of diffusion
    batch: int = 8  # requests at once
    chat: bool = False  # a request is a user's turn in the model's chat template

    def __post_init__(self) -> None:
        require(self.mode in MODES, f"mode {self.mode}", ", ".join(MODES), "choose one of them")
        require(self.batch >= 1, f"batch {self.batch}", "1 or more", "correct it")
        DecodeConfig(block_length=self.block_length, threshold=self.threshold)


@register_model("nld")
class NldLM(TemplateLM):
    """A tri-mode model as lm-eval sees it. records: answers that are known already, and where new ones go."""

    def __init__(self, evaluated: EvaluatedModel, decoding: TaskDecoding, records: RecordFile | None = None) -> None:
        super().__init__()
        self.evaluated, self.decoding, self.records = evaluated, decoding, records
        self.used: list[Record] = []  # the answers of all requests so far

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "NldLM":
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> "NldLM":
        """The model that lm-eval's --model_args name: GIVEN. Raises: UserError."""
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        given = {name: value for name, value in (more | arg_dict).items() if name not in OF_LM_EVAL}
        unknown = sorted(given.keys() - set(GIVEN))
        require(not unknown, f"--model_args {unknown[:1]}", ", ".join(GIVEN), "correct the name")
        require("pretrained" in given, "--model_args without pretrained", "pretrained=DIR", "name the folder")
        dtype, device = given.get("dtype", "auto"), str(given.get("device", "cuda"))  # lm-eval's default is cuda too
        if device.startswith("cuda") and not torch.cuda.is_available():
            logger.warning("no GPU here: the model runs on the CPU")
            device = "cpu"
        require(dtype in DTYPES, f"dtype={dtype}", ", ".join(DTYPES), "correct it")
        adapter = Path(given["adapter"]) if "adapter" in given else None
        choice = ModelChoice(Path(given["pretrained"]), None, adapter, DTYPES[dtype], torch.device(device))
        renamed = {"batch_size": "batch", "mode": "mode", "block_length": "block_length", "threshold": "threshold"}
        asked = {renamed[name]: given[name] for name in renamed if name in given}
        return cls(open_evaluated_model(choice), TaskDecoding(**asked, chat=bool(given.get("chat", False))))

    @property
    def tokenizer_name(self) -> str:
        return self.evaluated.tokenizer.fingerprint

    @property
    def eot_token_id(self) -> int:
        """What stands before a text without context: the end of the document before."""
        return end_of_document_id(self.evaluated.tokenizer)

    @cached_property
    def encoder(self) -> ChatEncoder:
        return load_chat_encoder(self.evaluated.tokenizer, thinking=False)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Raises: UserError: as text, the marks of a template would be plain text to our tokenizer."""
        raise UserError("--apply_chat_template", "--model_args chat=true: a request is a user's turn", "use it")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; no control token is ever added."""
        ids: list[int] = self.evaluated.tokenizer.encode(string).tolist()
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self.decoding.chat:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        return self._prompt(context), self.tok_encode(continuation)

    def _prompt(self, context: str) -> list[int]:
        if self.decoding.chat:
            return [int(token) for token in self.encoder.prompt([Message("user", context)])]
        return self.tok_encode(context) if context else [self.eot_token_id]

    # Requests of the three kinds.

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding would give it) of each continuation."""

        def answer(batch: Sequence[Any]) -> list[dict[str, Any]]:
            found = super(NldLM, self).loglikelihood(batch, disable_tqdm=True)
            return [{"logprob": logprob, "greedy": greedy} for logprob, greedy in found]

        return [(record["logprob"], record["greedy"]) for record in self._answered("likelihood", requests, answer)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows of ROLLING tokens, every token once."""
        length = min(ROLLING, self.evaluated.model.config.max_position_embeddings)

        def answer(batch: Sequence[Any]) -> list[dict[str, Any]]:
            sums = []
            for request in batch:
                windows = get_rolling_token_windows(self.tok_encode(request.args[0]), self.eot_token_id, length, 1)
                pairs = [(None, *make_disjoint_window(window)) for window in windows]
                parts = [pairs[n : n + self.decoding.batch] for n in range(0, len(pairs), self.decoding.batch)]
                sums.append({"logprob": sum(found[0] for part in parts for found in self._loglikelihood_tokens(part))})
            return sums

        return [record["logprob"] for record in self._answered("rolling", requests, answer)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request in the mode of decoding."""
        answers: list[str] = []
        for _, group in groupby(requests, key=lambda request: json.dumps(request.args[1], sort_keys=True)):
            same = list(group)
            kind = f"generate {self.decoding.mode}"
            found = self._answered(kind, same, lambda batch: self._generate(batch))
            answers += [record["text"] for record in found]
        return answers

    def _answered(
        self, kind: str, requests: Sequence[Any], answer: Callable[[Sequence[Any]], list[dict[str, Any]]]
    ) -> list[Record]:
        """The records of all requests, in their order; a batch whose answers are all known is not asked again."""
        found: list[Record] = []
        keys = list(request_keys(kind, requests))
        size = self.decoding.batch
        with evaluation_progress(kind, len(requests)) as progress, evaluation_mode(self.evaluated.model):
            for first in range(0, len(requests), size):
                batch, named = requests[first : first + size], keys[first : first + size]
                if self.records is not None and not self.records.missing(named):
                    records = [self.records.records[key] for key in named]
                    self._check_asked(batch, records)
                else:
                    given = zip(named, batch, answer(batch), strict=True)
                    records = [{"key": key, "asked": request_digest(one), **said} for key, one, said in given]
                    for record in records:
                        if self.records is not None and record["key"] not in self.records.records:
                            self.records.append(record)
                found += records
                progress.advance(len(batch))
        self.used += found
        return found

    def _check_asked(self, requests: Sequence[Any], records: Sequence[Record]) -> None:
        """Raises: UserError where a task asks something else than when its answer was recorded."""
        for request, record in zip(requests, records, strict=True):
            same = record["asked"] == request_digest(request)
            got = f"{record['key']} is the answer to another request"
            require(same, got, "the documents it was begun with", "give another --output, or --overwrite")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """One causal forward. What pads a row stands behind it, where nothing of the row sees it."""
        model = self.evaluated.model
        rows = [(context + continuation)[:-1] for _, context, continuation in requests]
        longest, positions = max(map(len, rows)), model.config.max_position_embeddings
        require(longest <= positions, f"a request of {longest} tokens", f"{positions} positions", "take another task")
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        with evaluation_mode(model):
            hidden = model.encoder(ids.to(model.device), causal=True).last_hidden_state
            found = []
            for row, (_, _, continuation), states in zip(rows, requests, hidden, strict=True):
                logits = model.diffusion_head(states[len(row) - len(continuation) : len(row)])
                logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).cpu()
                targets = torch.tensor(continuation)
                total = float(logprobs.gather(-1, targets[:, None]).double().sum())
                found.append((total, bool((logprobs.argmax(-1) == targets).all())))
        return found

    def _generate(self, batch: Sequence[Any]) -> list[dict[str, Any]]:
        """Answers to requests of the same settings."""
        asked = batch[0].args[1]
        settings, stops = self._settings(asked)
        to_text = token_text(self.evaluated.tokenizer)
        complete = ends_with_stop(to_text, stops) if stops else None
        prompts = [self._prompt(request.args[0]) for request in batch]
        function = MODES[self.decoding.mode].load_function()
        decoded = function(self.evaluated.model, prompts, settings, None, complete)
        hidden = text_ends(self.evaluated.model.config, settings)
        longest = int(asked.get("max_gen_toks", NEW_TOKENS))
        return [answer_record(one, before_stop(_text(one, hidden, longest, to_text), stops)) for one in decoded]

    def _settings(self, asked: Mapping[str, Any]) -> tuple[DecodeConfig, list[str]]:
        """The decoding settings and stop texts that a task asks for. Names that are not read are said."""
        unread = sorted(asked.keys() - set(READ))
        if unread:
            logger.warning("settings of answers that are not read: %s", ", ".join(unread))
        until = asked.get("until", [])
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        new, block = int(asked.get("max_gen_toks", NEW_TOKENS)), self.decoding.block_length
        settings = DecodeConfig(
            max_new_tokens=-(-new // block) * block if self.decoding.mode == "diffusion" else new,
            block_length=block,
            threshold=self.decoding.threshold,
            temperature=float(asked.get("temperature", 1.0)) if asked.get("do_sample", False) else 0.0,
            top_p=float(asked.get("top_p", 1.0)),
        )
        return replace(settings, eos_token_id=(self.encoder.end_mark(),)) if self.decoding.chat else settings, stops


def _text(decoded: Decoded, hidden: Sequence[int], longest: int, to_text: Callable[[Sequence[int]], str]) -> str:
    """The text of an answer's first `longest` tokens, without those that end it."""
    return to_text([token for token in decoded.ids[:longest] if token not in hidden])


def answer_record(decoded: Decoded, text: str) -> dict[str, Any]:
    """An answer, and what it took; JSON values."""
    return {"text": text, "tokens": len(decoded.ids), "forwards": decoded.nfe.total}


def request_keys(kind: str, requests: Sequence[Any]) -> Iterator[str]:
    """The name of each request: task, document, number in the document; and which time it is asked, where repeated."""
    asked: Counter[str] = Counter()
    for request in requests:
        key = f"{kind} {request.task_name} {request.doc_id} {request.idx}"
        asked[key] += 1
        yield key if asked[key] == 1 else f"{key} again {asked[key]}"


def request_digest(request: Any) -> str:
    """What a request asks, as a digest."""
    return hashlib.sha256(json.dumps(request.args, sort_keys=True, default=str).encode()).hexdigest()[:16]


def lm_eval_main() -> None:
    """lm-eval's own command line, to which the model `nld` is known."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        logger.error("nld: %s", error)
        sys.exit(REFUSED)


if __name__ == "__main__":
    lm_eval_main()
