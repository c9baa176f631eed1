"""Whole conversations with images against transformers' own processor, and images in the default template."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nld_train.data.chat_encoder import ChatEncoder, load_chat_encoder
from nld_train.data.chat_template import (
    DEFAULT_SHA256,
    DEFAULT_TEMPLATE,
    ChatProblem,
    ImagePlace,
    Message,
    load_chat_template,
)
from nld_train.data.image_pixels import cell_grid
from nld_train.data.image_tokens import find_image_tokens
from nld_train.data.tokenizer import load_tokenizer
from nld_train.vision_config import IMAGE_NAMES
from tests.data.conftest import write_byte_tokenizer

CONTROLS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *IMAGE_NAMES]
# As the templates of vision models of this family: of two parts, the one that sorts first comes first.
MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST]' -}}
        {%- if message['content'] is string -%}
            {{- message['content'] -}}
        {%- else -%}
            {%- set parts = message['content'] -%}
            {%- if parts | length == 2 -%}{%- set parts = parts | sort(attribute='type') -%}{%- endif -%}
            {%- for part in parts -%}
                {%- if part['type'] == 'text' -%}{{- part['text'] -}}
                {%- elif part['type'] in ['image', 'image_url'] -%}{{- '[IMG]' -}}{%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- '[/INST]' -}}
    {%- else -%}
        {{- message['content'] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
SIZES = [(100, 60), (28, 300), (400, 57)]  # width and height
QUESTIONS = [["see ", 0, " and ", 1, "?"], ["[IMG] is a word", 2]]
ANSWERS = ["two things", "so it is"]
EDGE, CELL = 280, 28


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [*CONTROLS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    library = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    (tmp_path / "chat_template.jinja").write_text(MISTRAL)
    return tmp_path


def message(parts: list[Any]) -> Message:
    content, images = "", []
    for part in parts:
        if isinstance(part, str):
            content += part
        else:
            images.append(ImagePlace(len(content)))
    return Message("user", content, images=tuple(images))


def test_tokens_are_those_of_the_processor(folder: Path) -> None:
    from transformers import PixtralImageProcessor, PixtralProcessor, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    processor = PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": EDGE}), tokenizer, 14, 2, chat_template=MISTRAL
    )
    asked = [
        [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in question]
        for question in QUESTIONS
    ]
    # The processor takes a spelled [IMG] for an image, so here the word is another one.
    asked[1][0]["text"] = "that is a word"
    said = [
        {"role": role, "content": content}
        for question, answer in zip(asked, ANSWERS, strict=True)
        for role, content in (("user", question), ("assistant", answer))
    ]
    text = processor.apply_chat_template(said, tokenize=False)
    pictures = [Image.fromarray(np.zeros((height, width, 3), np.uint8)) for width, height in SIZES]
    theirs = processor(images=pictures, text=text, add_special_tokens=False)["input_ids"][0].tolist()
    questions = [QUESTIONS[0], ["that is a word", 2]]
    messages = [
        part
        for question, answer in zip(questions, ANSWERS, strict=True)
        for part in (message(question), Message("assistant", answer))
    ]
    encoder = load_chat_encoder(load_tokenizer(folder), thinking=False)
    grids = [cell_grid(height, width, CELL, EDGE) for width, height in SIZES]
    encoded = encoder.conversation(messages, grids=grids)
    assert encoded.tokens.tolist() == theirs
    assert [encoded.tokens[start] for start in encoded.image_starts] == [CONTROLS.index("[IMG]")] * 3
    assert not np.isin(encoded.tokens[encoded.supervised], [CONTROLS.index(name) for name in IMAGE_NAMES]).any()
    assert (
        encoder.prompt(messages[:1], grids=grids[:2]).tolist() == theirs[: theirs.index(CONTROLS.index("[/INST]")) + 1]
    )


def test_a_spelled_token_stays_text_beside_an_image(folder: Path) -> None:
    encoder = load_chat_encoder(load_tokenizer(folder), thinking=False)
    encoded = encoder.conversation([message(QUESTIONS[1]), Message("assistant", "yes")], grids=[(1, 2)])
    image, row_end, end = (CONTROLS.index(name) for name in IMAGE_NAMES)
    assert [token for token in encoded.tokens if token in (image, row_end, end)] == [image, image, end]
    assert "[IMG] is a word" in encoder.tokenizer.decode(encoded.tokens)


@pytest.fixture
def encoder(tmp_path: Path) -> ChatEncoder:
    """The default template, with images as <SPECIAL_12>."""
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path / "tokenizer"))
    return load_chat_encoder(tokenizer, False, image_names=("<SPECIAL_12>", "<SPECIAL_13>", "<SPECIAL_14>"))


def test_the_default_template_writes_images_in_every_role_but_the_assistant_s(encoder: ChatEncoder) -> None:
    said = [
        Message("system", "be short", images=(ImagePlace(8),)),
        Message("user", "what is it", images=(ImagePlace(0), ImagePlace(4))),
        Message("assistant", "a cat"),
        Message("tool", "found", images=(ImagePlace(5),)),
        Message("assistant", "a dog"),
    ]
    encoded = encoder.conversation(said, grids=[(1, 1)] * 4)
    assert encoder.tokenizer.decode(encoded.tokens) == (
        "<|im_start|>system\nbe short<SPECIAL_12><SPECIAL_14><|im_end|>\n"
        "<|im_start|>user\n<SPECIAL_12><SPECIAL_14>what<SPECIAL_12><SPECIAL_14> is it<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>a cat<|im_end|>\n"
        "<|im_start|>tool\nfound<SPECIAL_12><SPECIAL_14><|im_end|>\n"
        "<|im_start|>assistant\n<think></think>a dog<|im_end|>\n"
    )


def test_conversations_that_differ_in_the_place_of_an_image_have_plans_of_their_own(encoder: ChatEncoder) -> None:
    told = Message("assistant", "a cat")
    for place in (0, 4, 10):
        asked = Message("user", "what is it", images=(ImagePlace(place),))
        text = encoder.tokenizer.decode(encoder.conversation([asked, told], grids=[(1, 1)]).tokens)
        assert "what is it"[:place] + "<SPECIAL_12><SPECIAL_14>" + "what is it"[place:] in text


def test_an_image_without_tokens_for_it_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path / "tokenizer"))
    assert find_image_tokens(tokenizer, None) is None
    asked = [Message("user", "what", images=(ImagePlace(0),)), Message("assistant", "a cat")]
    with pytest.raises(ChatProblem, match="the tokenizer has no tokens for it"):
        load_chat_encoder(tokenizer, False).conversation(asked, grids=[(1, 1)])


def test_a_template_that_shows_parts_as_they_are_is_refused(folder: Path) -> None:
    plain = "{% for m in messages %}{{ '[INST]' ~ m.role ~ ' ' ~ m.content ~ '</s>' }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(plain)
    encoder = load_chat_encoder(load_tokenizer(folder), False)
    with pytest.raises(ChatProblem, match="the chat template changes the text of a message"):
        encoder.conversation([message(["what", 0]), Message("assistant", "a cat")], grids=[(1, 1)])


def test_the_default_template_has_the_digest_that_files_of_text_know(tmp_path: Path) -> None:
    folder = write_byte_tokenizer(tmp_path / "tokenizer")
    assert load_chat_template(load_tokenizer(folder), False).sha256 == DEFAULT_SHA256
    (folder / "chat_template.jinja").write_text(DEFAULT_TEMPLATE)
    assert load_chat_template(load_tokenizer(folder), False).sha256 == DEFAULT_SHA256
    (folder / "chat_template.jinja").write_text(DEFAULT_TEMPLATE + " ")
    assert load_chat_template(load_tokenizer(folder), False).sha256 != DEFAULT_SHA256
