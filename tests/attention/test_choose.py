import logging

import pytest
import torch

from nld_train.attention import flex, reference, sdpa
from nld_train.attention.choose import BACKENDS, choose
from nld_train.dual_stream.layout import Layout
from nld_train.errors import UserError


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", sdpa.attend),
        ("auto", "cuda", flex.attend),
        ("sdpa", "cpu", sdpa.attend),
        ("flex", "cuda", flex.attend),
        ("reference", "cpu", reference.attend_layout),
        ("reference", "cuda", reference.attend_layout),
    ],
)
def test_chosen_backend(name, device, expected):
    assert choose(name, device, torch.bfloat16, 128, True) is expected


def test_flex_on_the_cpu_only_forward():
    assert choose("flex", "cpu", torch.float64, 4, False) is flex.attend
    with pytest.raises(UserError, match="no backward.*sdpa, reference.*auto"):
        choose("flex", "cpu", torch.float32, 64, True)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("flash3", "cuda", torch.bfloat16, 128, True), "flash3.*auto, reference, sdpa, flex"),
        (("flex", "cuda", torch.float64, 128, True), r"float64.*torch\.bfloat16"),
        (("auto", "cuda", torch.float64, 128, True), r"float64.*torch\.bfloat16"),
        (("flex", "cuda", torch.bfloat16, 8, True), "head_dim=8.*16 to 256"),
        (("auto", "cuda", torch.bfloat16, 512, True), "head_dim=512.*16 to 256"),
        (("sdpa", "cuda", torch.bfloat16, 128, True), "sdpa.*dense masks.*flex, reference"),
        (("auto", "mps", torch.float32, 64, True), "mps.*cuda, cpu"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(settings, reason):
    with pytest.raises(UserError, match=reason):
        choose(*settings)


def test_each_choice_is_logged_once(caplog):
    choose.cache_clear()
    with caplog.at_level(logging.INFO, logger="nld_train.attention.choose"):
        for _ in range(26):  # layers
            choose("auto", "cpu", torch.float32, 32, True)
    assert [record.getMessage() for record in caplog.records] == [
        "attention: sdpa (asked for auto) on cpu, torch.float32, head_dim 32"
    ]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_backends_answer_the_same_call(case):
    c = case(Layout(7, 3, True), packed=True)
    outputs = [attend(c.query, c.key, c.value, c.layout, c.scale, c.documents) for attend in BACKENDS.values()]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])
