"""Our model class for lm-eval: its likelihoods by hand, its answers, and lm-eval's own command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from nld_train.decode.ar import generate_ar
from nld_train.decode.modes import MODES
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from nld_train.evaluation import lm_eval_model
from nld_train.evaluation.evaluated_model import EvaluatedModel, ModelChoice, open_evaluated_model
from nld_train.evaluation.lm_eval_model import NldLM, TaskDecoding
from nld_train.evaluation.record_file import RecordFile
from nld_train.evaluation.task_run import OWN_TASKS

CODE = "def f(größe):\n    return größe\n"


@pytest.fixture
def evaluated(folder) -> EvaluatedModel:
    return open_evaluated_model(ModelChoice(folder))


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, 0, ("task", number, 1)) for number, given in enumerate(arguments)]


def by_hand(evaluated: EvaluatedModel, ids: list[int], first: int) -> tuple[float, bool]:
    """Log-probability of ids[first:], and whether each of them is the argmax."""
    with torch.no_grad():
        logprobs = evaluated.model(torch.tensor([ids]), use_causal_mask=True).logits[0, first - 1 : -1].log_softmax(-1)
    targets = torch.tensor(ids[first:])
    return logprobs.gather(-1, targets[:, None]).sum().item(), bool((logprobs.argmax(-1) == targets).all())


def test_likelihoods_are_those_of_the_causal_model(evaluated) -> None:
    """A batch of texts of different lengths, the blank between context and continuation moved to the latter."""
    encode = evaluated.tokenizer.encode
    pairs = [("def f(", "x):"), ("import ", "os"), (CODE, "    pass"), ("", "import os")]
    model = NldLM(evaluated, TaskDecoding(batch=4))
    found = model.loglikelihood(asked("loglikelihood", *pairs))
    for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
        before = encode(context.rstrip()).tolist() if context else [2]
        whole = encode(context + continuation).tolist() if context else [2, *encode(continuation).tolist()]
        expected, is_greedy = by_hand(evaluated, whole, len(before))
        assert logprob == pytest.approx(expected, abs=1e-4) and greedy == is_greedy


def test_what_greedy_decoding_gives_is_said_to_be_greedy(evaluated) -> None:
    prompt = evaluated.tokenizer.encode("def f(").tolist()
    (decoded,) = generate_ar(evaluated.model, [prompt], DecodeConfig(max_new_tokens=5, eos_token_id=(399,)))
    changed = [*decoded.ids[:4], (decoded.ids[4] + 1) % 400]
    model = NldLM(evaluated, TaskDecoding())
    found = model._loglikelihood_tokens([(None, prompt, decoded.ids), (None, prompt, changed)])
    assert [greedy for _, greedy in found] == [True, False] and found[0][0] > found[1][0]


def test_running_text_is_scored_once_in_windows(evaluated, monkeypatch) -> None:
    ids = evaluated.tokenizer.encode(CODE).tolist()
    (whole,) = NldLM(evaluated, TaskDecoding()).loglikelihood_rolling(asked("loglikelihood_rolling", (CODE,)))
    assert whole == pytest.approx(by_hand(evaluated, [2, *ids], 1)[0], abs=1e-3)
    monkeypatch.setattr(lm_eval_model, "ROLLING", 8)
    (cut,) = NldLM(evaluated, TaskDecoding(batch=2)).loglikelihood_rolling(asked("loglikelihood_rolling", (CODE,)))
    text = [2, *ids]
    expected = by_hand(evaluated, text[:9], 1)[0]  # eight tokens behind the end of a document, then eight by eight
    for end in range(9, len(text), 8):
        first, last = max(min(end + 8, len(text)) - 9, 0), min(end + 8, len(text))
        expected += by_hand(evaluated, text[first:last], end - first)[0]
    assert cut == pytest.approx(expected, abs=1e-3) and cut != pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_answers_end_at_stop_texts_and_at_the_tasks_length(evaluated, mode: str) -> None:
    model = NldLM(evaluated, TaskDecoding(mode, block_length=8))

    def answer(**settings) -> str:
        (text,) = model.generate_until(asked("generate_until", ("def f(", {"max_gen_toks": 21} | settings)))
        return text

    whole = answer()
    stop = whole[len(whole) // 2 :][:2]
    assert stop and answer(until=stop) == answer(until=["", stop]) == whole[: whole.index(stop)]
    assert whole.startswith(answer(max_gen_toks=5).rstrip("\ufffd")) and len(answer(max_gen_toks=5)) < len(whole)
    used = model.used[0]
    assert used["text"] == whole and used["tokens"] >= 21 and used["forwards"] >= 1


def test_a_chat_request_is_a_users_turn(evaluated) -> None:
    model = NldLM(evaluated, TaskDecoding(chat=True))
    prompt = evaluated.tokenizer.decode(torch.tensor(model._prompt("import os")).numpy())
    assert prompt.endswith("user\nimport os<|im_end|>\n<|im_start|>assistant\n<think></think>")
    with pytest.raises(UserError, match="--apply_chat_template"):
        model.apply_chat_template([])


def test_settings_that_are_not_read_are_said(evaluated, caplog) -> None:
    NldLM(evaluated, TaskDecoding()).generate_until(
        asked("generate_until", ("def f(", {"max_gen_toks": 1, "num_beams": 4}))
    )
    assert "settings of answers that are not read: num_beams" in caplog.text


def test_recorded_answers_are_not_asked_again(evaluated, tmp_path) -> None:
    requests = asked("generate_until", *((text, {"max_gen_toks": 4}) for text in ("def ", "import ", "class ")))
    first = NldLM(evaluated, TaskDecoding(batch=2), RecordFile(tmp_path / "a.jsonl", {})).generate_until(requests)
    records = RecordFile(tmp_path / "a.jsonl", {})
    assert list(records.records) == [f"generate ar task {number} 0" for number in range(3)]
    evaluated.model.diffusion_head.weight.data.zero_()
    assert NldLM(evaluated, TaskDecoding(batch=2), records).generate_until(requests) == first
    changed = asked("generate_until", *((text, {"max_gen_toks": 4}) for text in ("def ", "from ", "class ")))
    with pytest.raises(UserError, match="generate ar task 1 0 is the answer to another request"):
        NldLM(evaluated, TaskDecoding(batch=2), records).generate_until(changed)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("pretrained=nowhere", "no folder nowhere"),
        ("mode=ar", "without pretrained"),
        ("pretrained=x,modus=ar", "--model_args .'modus'."),
        ("pretrained=x,dtype=int8", "dtype=int8"),
    ],
)
def test_bad_arguments_are_one_line(given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        NldLM.create_from_arg_string(given, {"batch_size": 1, "max_batch_size": None, "device": None})


@pytest.mark.slow
def test_lm_evals_own_command_line_knows_the_model(folder, tmp_path) -> None:
    words = ["-m", "nld_train.evaluation.lm_eval_model", "--model", "nld", "--tasks", "nld_arithmetic"]
    given = f"pretrained={folder},mode=self-spec,block_length=8"
    words += ["--model_args", given, "--include_path", str(OWN_TASKS), "--limit", "3"]
    words += ["--output_path", str(tmp_path / "results"), "--log_samples"]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "results").rglob("samples_nld_arithmetic*.jsonl")
    found = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    requests = [json.loads(line)["arguments"]["gen_args_0"] for line in samples.read_text().splitlines()]
    evaluated = open_evaluated_model(ModelChoice(folder))
    ours = NldLM(evaluated, TaskDecoding("ar")).generate_until(
        asked("generate_until", *((request["arg_0"], request["arg_1"]) for request in requests))
    )
    assert len(found) == 3 and found == ours
