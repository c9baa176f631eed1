"""Where the images of a row are found, in every form that is read."""

import pytest

from data_prep.conversations import read_conversation
from data_prep.image_parts import image_sources
from data_prep.sources import RecordValue
from nld_train.data.chat_template import ChatProblem, Message, content_parts


def read(value: object) -> tuple[Message, ...]:
    return read_conversation(RecordValue(1, value)).messages


def shown(message: Message) -> list[str]:
    """A content as its texts, with IMAGE for images."""
    return [part.get("text", "IMAGE") for part in content_parts(message)]


USER, TOLD = {"role": "user", "content": "what"}, {"role": "assistant", "content": "a thing"}


def turns(*parts: object, **beside: object) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}, TOLD], **beside}


def text(said: str) -> dict:
    return {"type": "text", "text": said}


FORMS = {
    "OpenAI": (turns(text("see "), {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}), ["a.png"]),
    "OpenAI, short": (turns(text("see "), {"type": "image_url", "image_url": "a.png"}), ["a.png"]),
    "OpenAI responses": (turns(text("see "), {"type": "input_image", "image_url": "a.png"}), ["a.png"]),
    "a path": (turns(text("see "), {"type": "image", "image": "a.png"}), ["a.png"]),
    "bytes": (turns(text("see "), {"type": "image", "image": b"123"}), [b"123"]),
    "datasets": (turns(text("see "), {"type": "image", "image": {"bytes": b"123", "path": "a.png"}}), [b"123"]),
    "datasets, a path": (turns(text("see "), {"type": "image", "image": {"bytes": None, "path": "a.png"}}), ["a.png"]),
    "the row's": (turns(text("see "), {"type": "image"}, images=["a.png"]), ["a.png"]),
    "LLaVA": (
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "see <image>"}, {"from": "gpt", "value": "a thing"}],
        },
        ["a.png"],
    ),
    "a pair": ({"image": b"123", "question": "see <image>", "answer": "a thing"}, [b"123"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_image_in_its_place(form: str) -> None:
    row, sources = FORMS[form]
    messages = read(row)
    assert image_sources(messages) == sources
    assert shown(messages[0]) == ["see ", "IMAGE"] and messages[1].images == ()


def test_finevision_puts_its_images_in_front_of_the_first_question() -> None:
    texts = [{"user": "what is it", "assistant": "a cat"}, {"user": "and now", "assistant": "a dog"}]
    conversation = read_conversation(
        RecordValue(
            1, {"images": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": "b"}], "texts": texts, "source": "x"}
        )
    )
    assert [message.role for message in conversation.messages] == ["user", "assistant"] * 2
    assert shown(conversation.messages[0]) == ["IMAGE", "IMAGE", "what is it"]
    assert image_sources(conversation.messages) == [b"1", b"2"] and conversation.unread == {"source"}


def test_marks_of_finevision_are_places_where_there_are_some() -> None:
    row = {"images": ["a", "b"], "texts": [{"user": "<image>what<image>", "assistant": "a cat"}]}
    assert shown(read(row)[0]) == ["IMAGE", "what", "IMAGE"]


def test_several_marks_in_several_turns_take_the_images_in_order() -> None:
    said = ["<image>one<image>", "yes", "two <image> three", "no"]
    row = {
        "image": ["a", "b", "c"],
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(said)],
    }
    messages = read(row)
    assert shown(messages[0]) == ["IMAGE", "one", "IMAGE"] and shown(messages[2]) == ["two ", "IMAGE", " three"]
    assert image_sources(messages) == ["a", "b", "c"]


def test_images_in_history_and_in_turns_keep_the_order_of_the_conversation() -> None:
    row = {
        **turns({"type": "image", "image": "late"}),
        "history": turns({"type": "image", "image": "early"})["messages"],
    }
    assert image_sources(read(row)) == ["early", "late"]


def test_a_mark_is_text_without_images_beside_the_turns_and_with_parts_that_take_them() -> None:
    assert read({"messages": [{**USER, "content": "an <image> tag"}, TOLD]})[0].content == "an <image> tag"
    row = turns(text("an <image> tag"), {"type": "image"}, images=["a"])
    assert shown(read(row)[0]) == ["an <image> tag", "IMAGE"]


def test_texts_are_turns_where_nothing_else_is() -> None:
    texts = [{"user": "what", "assistant": "a cat"}]
    for row in ({"messages": [USER, TOLD], "texts": texts}, {"question": "what", "answer": "a thing", "texts": texts}):
        conversation = read_conversation(RecordValue(1, row))
        assert conversation.messages[1].content == "a thing" and conversation.unread == {"texts"}


BAD = {
    "more places for images than images: 2 places, 1 images": turns({"type": "image"}, {"type": "image"}, images=["a"]),
    "more places for images than images: 1 places, 0 images": turns({"type": "image"}),
    "fewer places for images than images: 0 places, 1 images": {"messages": [USER, TOLD], "images": ["a"]},
    "an image part without an image: type 'image_url'": turns({"type": "image_url"}),
    "an image part without an image: NoneType": turns({"type": "image_url", "image_url": {"detail": "low"}}),
    "an image part without an image: int": turns({"type": "image", "image": 7}),
    "a part with two images": turns({"type": "image", "image": "a", "path": "b"}),
    "images under two names": {"messages": [USER, TOLD], "images": ["a"], "image": "b"},
    "field 'images' of a message is not read": {"messages": [{**USER, "images": ["a"]}, TOLD]},
    "an answer that holds an image": {"messages": [USER, {**TOLD, "content": [{"type": "image", "image": "a"}]}]},
    "an image where a text is read": {"question": [{"type": "image", "image": "a"}], "answer": "yes"},
    "texts that are no list": {"images": ["a"], "texts": [{"user": "only"}]},
}


@pytest.mark.parametrize("said", BAD)
def test_what_is_amiss_is_said(said: str) -> None:
    with pytest.raises(ChatProblem, match=said):
        read(BAD[said])


def test_a_mark_in_an_answer_is_an_image_in_an_answer() -> None:
    row = {
        "image": "a",
        "conversations": [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "here <image>"}],
    }
    with pytest.raises(ChatProblem, match="an answer that holds an image"):
        read(row)
