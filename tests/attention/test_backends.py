import importlib.util
import logging
from dataclasses import replace
from typing import get_args

import pytest
import torch

from nld_train import recipe
from nld_train.attention import flex, reference, sdpa
from nld_train.attention.backends import (
    AUTO,
    BACKENDS,
    Backend,
    BackendRequest,
    check_attention_backend,
    choose_backend,
)
from nld_train.attention.fused import te
from nld_train.config import AttentionBackend
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.errors import UserError

RECIPES = ("tiny_stage2_joint", "tiny_sft")


def choose(*settings, **more):
    return choose_backend(BackendRequest(*settings, **more))


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", sdpa.attend_sdpa),
        ("auto", "cuda", flex.attend_flex),
        ("sdpa", "cpu", sdpa.attend_sdpa),
        ("flex", "cuda", flex.attend_flex),
        ("reference", "cpu", reference.attend_reference),
        ("reference", "cuda", reference.attend_reference),
        ("te", "cuda", te.attend_te),
        ("te+near_flex", "cuda", te.attend_te_local_flex),
        ("te+flex", "cuda", te.attend_te_noisy_flex),
        ("te+mod", "cuda", te.attend_te_score_mod),
    ],
)
def test_chosen_backend(name, device, expected):
    assert choose(name, device, torch.bfloat16, 128, True) is expected


def test_flex_on_the_cpu_only_forward():
    assert choose("flex", "cpu", torch.float64, 4, False) is flex.attend_flex
    with pytest.raises(UserError, match="no backward.*sdpa, reference.*auto"):
        choose("flex", "cpu", torch.float32, 64, True)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            ("flash3", "cuda", torch.bfloat16, 128, True),
            r"flash3.*auto, reference, sdpa, flex, flex\+fa4, te, te\+near_flex",
        ),
        (("flex", "cuda", torch.float64, 128, True), r"float64.*torch\.bfloat16"),
        (("auto", "cuda", torch.float64, 128, True), r"float64.*torch\.bfloat16"),
        (("flex", "cuda", torch.bfloat16, 8, True), "head_dim=8.*16 to 256"),
        (("auto", "cuda", torch.bfloat16, 512, True), "head_dim=512.*16 to 256"),
        (("sdpa", "cuda", torch.bfloat16, 128, True), "sdpa.*dense masks.*reference, flex, .*te"),
        (("flex+fa4", "cpu", torch.bfloat16, 128, True), r"flex\+fa4' on the CPU.*sdpa, reference.*auto"),
        (("flex+fa4", "cuda", torch.float32, 128, True), r"float32.*torch\.float16, torch\.bfloat16"),
        (("flex+fa4", "cuda", torch.bfloat16, 192, True), "head_dim=192.*16 to 128, a multiple of 8"),
        (("fa3", "cpu", torch.bfloat16, 128, True), "fa3' on the CPU"),
        (("fa3", "cuda", torch.bfloat16, 100, True), "head_dim=100.*8 to 256, a multiple of 8"),
        (("fa3", "cuda", torch.bfloat16, 128, True), "fa3' without flash_attn_interface.*hopper"),
        (("fa3", "cuda", torch.bfloat16, 128, True, True, 2), "fa3 with packed documents.*parallel.context=2"),
        (("te", "cpu", torch.bfloat16, 128, True), "te' on the CPU.*sdpa, reference.*auto"),
        (("te", "cuda", torch.float32, 128, True), r"float32.*torch\.float16, torch\.bfloat16.*precision"),
        (("te", "cuda", torch.bfloat16, 100, True), "head_dim=100.*16 to 256, a multiple of 8"),
        (
            ("te", "cuda", torch.bfloat16, 128, True, True, 2),
            "te with packed documents.*parallel.context=2.*flex.*auto",
        ),
        (("te+flex", "cuda", torch.bfloat16, 128, True, True, 2), "packed documents"),
        (("te+mod", "cuda", torch.bfloat16, 128, True, True), r"te\+mod with packed documents"),
        (("te+mod", "cpu", torch.bfloat16, 128, True), r"te\+mod' on the CPU"),
        (("te+near_flex", "cpu", torch.float32, 64, False), r"te\+near_flex' on the CPU"),
        (("auto", "mps", torch.float32, 64, True), "mps.*cuda, cpu"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(settings, reason):
    with pytest.raises(UserError, match=reason):
        choose(*settings)


def test_each_choice_is_logged_once(caplog):
    choose_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="nld_train.attention.backends"):
        for _ in range(26):  # layers
            choose("auto", "cpu", torch.float32, 32, True)
    assert [record.getMessage() for record in caplog.records] == [
        "attention: sdpa (auto: flex_attention has no backward there) on cpu, torch.float32, head_dim 32"
    ]


def test_what_is_not_installed_is_refused_by_name() -> None:
    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("FlashAttention is installed here")
    with pytest.raises(UserError, match=r"flex\+fa4' without flash_attn.*flash-attn-4.*install it"):
        choose("flex+fa4", "cuda", torch.bfloat16, 128, True)


def test_auto_passes_over_what_refuses_and_says_so(caplog, monkeypatch) -> None:
    """As it will be once backends are measured: the order is a table, the checks decide."""
    monkeypatch.setitem(AUTO, "cuda", ("te", "flex"))
    choose_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="nld_train.attention.backends"):
        assert choose("auto", "cuda", torch.bfloat16, 128, True) is te.attend_te
        assert choose("auto", "cuda", torch.bfloat16, 128, True, packed=True) is te.attend_te
        assert choose("auto", "cuda", torch.bfloat16, 128, True, packed=True, context_ranks=2) is flex.attend_flex
        with pytest.raises(UserError, match="flex' on a GPU with torch.float64"):
            choose("auto", "cuda", torch.float64, 128, True)
    choose_backend.cache_clear()
    said = [record.getMessage() for record in caplog.records]
    assert all(line.startswith("attention: te (auto: ") for line in said[:2])
    assert "not te" in said[2] and "packed documents" in said[2] and said[3].startswith("attention: flex (auto: ")


def test_a_run_is_refused_at_the_door() -> None:
    plain, chat = (recipe.load_recipe(name, ["train.precision=bf16", "train.attention=te"]) for name in RECIPES)
    check_attention_backend(plain, "cuda")
    check_attention_backend(chat, "cuda")
    with pytest.raises(UserError, match="packed documents"):
        check_attention_backend(replace(chat, parallel=replace(chat.parallel, context=2)), "cuda")
    with pytest.raises(UserError, match="te' on the CPU"):
        check_attention_backend(plain, "cpu")
    check_attention_backend(recipe.load_recipe(RECIPES[1]), "cpu")


def test_every_setting_has_one_record() -> None:
    assert BACKENDS.keys() == set(get_args(AttentionBackend)) - {"auto"}
    assert all(backend.name == name for name, backend in BACKENDS.items())


def test_the_records_say_which_backends_take_packed_documents(monkeypatch) -> None:
    """A backend that is added stands in the sentence without a change of the sentence."""
    monkeypatch.setitem(BACKENDS, "new", Backend("new", reference.attend_reference, (), "always"))
    with pytest.raises(UserError) as refused:
        choose("te+mod", "cuda", torch.bfloat16, 128, True, packed=True)
    allowed = "reference, sdpa (CPU), flex, flex+fa4, new, and without context parallelism te, te+near_flex, te+flex"
    assert allowed in str(refused.value)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_backends_answer_the_same_call(case):
    c = case(RowLayout(7, 3, True), packed=True)
    on_cpu = (BACKENDS[name].attend for name in ("reference", "sdpa", "flex"))
    outputs = [attend(c.query, c.key, c.value, c.spec, c.scale) for attend in on_cpu]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])
