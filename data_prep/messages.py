"""From the turns of a chat file to messages: roles, texts, reasoning, calls, weights, and what is named as not read."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from data_prep.image_parts import PARTS as IMAGE_PARTS
from data_prep.image_parts import read_image_part
from data_prep.sources import is_unicode
from nld_train.data.chat_template import REASONING_KEYS, ChatProblem, ImagePlace, Message

ROLE_KEYS = ("role", "from")
TEXT_KEYS = ("content", "value", "text")
WEIGHT_KEYS = ("weight", "train", "loss_weight", "loss")
CALL_KEYS = ("tool_calls", "function_call")
TOOL_KEYS = ("tools", "functions")
PICTURE_KEYS = ("image", "images", "video", "videos", "audio", "audios")
LABEL_KEYS = ("label", "kto_tag")  # whether an answer is a good one
REFUSED_KEYS = ("train_detail", "chosen", "rejected", *LABEL_KEYS)
TEXT_PARTS, REASONING_PARTS = ("text", "input_text", "output_text"), ("reasoning", "thinking")  # types of parts
CALL_PARTS = ("tool_call", "tool_calls")
CALLS = "a call"  # the role of a turn that is nothing but a call
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), CALLS),
}
MODES = ("on", "off", True, False)  # of reasoning: a word about the row, no text


def reads_nothing(name: str) -> bool:
    """A template that looks at no further field."""
    return False


@dataclass
class Reading:
    """What is found while one row is read."""

    template_reads: Callable[[str], bool] = reads_nothing  # whether the chat template looks at a field of a message
    unread: set[str] = field(default_factory=set)  # fields that nothing used
    notes: set[str] = field(default_factory=set)
    tools: list[Any] = field(default_factory=list)  # that a message brings along

    def leave_unread(self, where: str, value: Mapping[str, object], known: Sequence[str]) -> None:
        """Remember the fields that are filled and not known."""
        self.unread.update(f"{where}{key}" for key, found in value.items() if key not in known and not is_empty(found))


def is_empty(value: object) -> bool:
    """Whether a field says nothing, as columns of tables do in most rows."""
    return value is None or value in ("", [], {}) and not isinstance(value, bool)


def read_turns(turns: object, reading: Reading, context: bool = False) -> list[Message]:
    """The messages of a list of turns, or of its JSON text. context: its answers are not supervised. Raises
    ChatProblem."""
    turns = parse_json(turns, "turns") if isinstance(turns, str) and turns.lstrip().startswith("[") else turns
    if not isinstance(turns, list) or not turns:
        raise ChatProblem("no messages: their list is empty, or is no list")
    messages = [read_message(turn, reading) for turn in turns]
    if not context:
        return messages
    return [replace(message, counts=message.role != "assistant") for message in messages]


def read_message(turn: object, reading: Reading) -> Message:
    """One turn. Raises ChatProblem where it has no role, no text, or asks for what is not offered."""
    plain = read_plain(turn)
    if plain is not None:
        return plain
    if not isinstance(turn, dict):
        raise ChatProblem(f"a message is no object: {type(turn).__name__}")
    role = read_role(turn)
    refuse_fields(turn, (*PICTURE_KEYS, *REFUSED_KEYS), "of a message ")
    parts = read_parts(text_field(turn), role)
    reasoning, key = read_reasoning(turn)
    calls = [*parts.calls, *read_calls(turn)]
    if role == CALLS:
        calls, parts, role = parse_calls(parts.text), replace(parts, text=""), "assistant"
    empty = calls and not parts.text and not parts.images and not isinstance(turn.get("content"), str)
    content = None if empty else parts.text
    tools = next((turn[name] for name in TOOL_KEYS if not is_empty(turn.get(name))), None)
    if tools is not None and role == "system":
        reading.tools += parse_tools(tools)
    known: tuple[str, ...] = (*ROLE_KEYS, *TEXT_KEYS, *REASONING_KEYS, *WEIGHT_KEYS, *CALL_KEYS)
    known += TOOL_KEYS if role == "system" else ()
    fields = {
        name: value
        for name, value in turn.items()
        if name not in known and not is_empty(value) and reading.template_reads(name)
    }
    reading.unread.update(f"message {name}" for name in parts.unread)
    reading.leave_unread("message ", turn, (*known, *fields))
    if role != "assistant" and (calls or reasoning or parts.reasoning):
        raise ChatProblem(f"{'a call' if calls else 'reasoning'} in a turn of {role}: only answers have some")
    weighed = read_weight(turn, role, reading)
    return Message(role, content, reasoning or parts.reasoning, key, tuple(calls), fields, weighed, parts.images)


def read_plain(turn: object) -> Message | None:
    """A turn of nothing but a role and a text, as nearly all are; None for any other."""
    if not isinstance(turn, dict) or len(turn) != 2:
        return None
    role, text = (turn.get(key) for key in (("role", "content") if "role" in turn else ("from", "value")))
    known = ROLES.get(role) if isinstance(role, str) else None
    return None if known is None or known == CALLS or not isinstance(text, str) else Message(known, checked_text(text))


def read_role(turn: Mapping[str, object]) -> str:
    """The role of a turn, in our words. Raises ChatProblem."""
    key = next((key for key in ROLE_KEYS if turn.get(key) is not None), None)
    if key is None:
        raise ChatProblem("a message without a role")
    role = turn[key]
    if not isinstance(role, str) or role not in ROLES:
        raise ChatProblem(f"unknown role: {role!r}, known are {', '.join(ROLES)}")
    return ROLES[role]


def text_field(turn: Mapping[str, object]) -> object:
    """What stands under the key of a message's text. Raises ChatProblem where there is none, or two that differ."""
    filled = {key: turn[key] for key in TEXT_KEYS if not is_empty(turn.get(key))}
    if len({repr(value) for value in filled.values()}) > 1:
        raise ChatProblem(f"two texts in a message: under {' and '.join(filled)}")
    if filled:
        return next(iter(filled.values()))
    if any(key in turn for key in TEXT_KEYS) or any(not is_empty(turn.get(key)) for key in CALL_KEYS):
        return None
    others = ", ".join(key for key in turn if key not in ROLE_KEYS) or "none"
    raise ChatProblem(f"a message without a text: fields {others}, a text stands under {', '.join(TEXT_KEYS)}")


@dataclass(frozen=True)
class Parts:
    """What the parts of a message hold."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    unread: tuple[str, ...] = ()
    images: tuple[ImagePlace, ...] = ()


def read_parts(content: object, role: str) -> Parts:
    """The parts of a message: one text, or a list of typed parts. A tool's result may be any JSON."""
    if isinstance(content, list) and not (role == "tool" and not all(is_part(part) for part in content)):
        found = [read_part(part) for part in content]
        starts = accumulate((len(part.text) for part in found), initial=0)
        return Parts(
            "".join(part.text for part in found),
            "\n".join(part.reasoning for part in found if part.reasoning),
            tuple(call for part in found for call in part.calls),
            tuple(name for part in found for name in part.unread),
            tuple(
                replace(image, place=start) for part, start in zip(found, starts, strict=False) for image in part.images
            ),
        )
    if role == "tool" and content is not None and not isinstance(content, str):
        return Parts(checked_text(json.dumps(content, ensure_ascii=False, default=str)))
    return Parts(read_text(content))


def is_part(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def read_part(part: object) -> Parts:
    """One typed part of a message."""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or kind not in (*TEXT_PARTS, *REASONING_PARTS, *CALL_PARTS, *IMAGE_PARTS):
        raise ChatProblem(f"a message is no text: a part of type {kind!r}")
    if kind in IMAGE_PARTS:
        image, used = read_image_part(part)
        ignored = ("type", "detail", *used)  # how closely a served model looks says nothing of the image
        others = tuple(f"part {key}" for key in part if key not in ignored and not is_empty(part[key]))
        return Parts(unread=others, images=(image,))
    keys = (*TEXT_KEYS, kind)
    filled = {key: part[key] for key in keys if not is_empty(part.get(key))}
    unread = tuple(f"part {key}" for key in part if key not in (*keys, "type") and not is_empty(part[key]))
    if len(filled) > 1 or (not filled and not any(key in part for key in keys)):
        got = f"fields {', '.join(key for key in part if key != 'type') or 'none'}"
        raise ChatProblem(f"a part without one text: {got}, a text stands under {', '.join(TEXT_KEYS)}")
    value = next(iter(filled.values()), "")
    if kind in CALL_PARTS:
        return Parts(calls=tuple(parse_calls(value)), unread=unread)
    text = read_text(value)
    return Parts(text, unread=unread) if kind in TEXT_PARTS else Parts(reasoning=text, unread=unread)


def read_text(content: object) -> str:
    """The text of a message: a string, or the joined parts of a list. No content is an empty text."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = read_parts(content, "user")
        if parts.images:
            raise ChatProblem("an image where a text is read: write the turns under messages")
        return parts.text
    if not isinstance(content, str):
        raise ChatProblem(f"a message is no text: {type(content).__name__}")
    return checked_text(content)


def checked_text(text: str) -> str:
    if not is_unicode(text):
        raise ChatProblem("half a surrogate pair in a message")
    return text


def read_reasoning(value: Mapping[str, object]) -> tuple[str, str]:
    """The reasoning beside an answer and its key; empty where there is none. Raises ChatProblem where two differ."""
    filled = {key: value[key] for key in REASONING_KEYS if not is_empty(value.get(key)) and value[key] not in MODES}
    texts = {read_text(found) for found in filled.values()}
    if len(texts) > 1:
        raise ChatProblem(f"two kinds of reasoning that differ: {' and '.join(filled)}")
    return next(iter(texts), ""), next(iter(filled), REASONING_KEYS[0])


def read_weight(value: Mapping[str, object], role: str, reading: Reading) -> bool:
    """Whether a message counts: a weight of 0 makes an answer context. Raises ChatProblem for weights other than 0 and
    1, and for two that disagree."""
    found = {key: value[key] for key in WEIGHT_KEYS if value.get(key) is not None}
    for key, weight in found.items():
        if not isinstance(weight, bool | int | float) or weight not in (0, 1):
            raise ChatProblem(f"a weight that is neither 0 nor 1: {key} {weight!r}")
    if len({bool(weight) for weight in found.values()}) > 1:
        raise ChatProblem(f"weights that disagree: {', '.join(f'{key} {weight}' for key, weight in found.items())}")
    if role != "assistant" and any(found.values()):
        reading.notes.add("weight 1 of turns that are no answers, not supervised")
    return role == "assistant" and all(found.values()) or role != "assistant"


def read_calls(turn: Mapping[str, object]) -> list[Mapping[str, Any]]:
    """The calls beside the text of an answer."""
    return [call for key in CALL_KEYS if not is_empty(turn.get(key)) for call in parse_calls(turn[key])]


def parse_calls(value: object) -> list[Mapping[str, Any]]:
    """Calls as templates are given them, from a list, an object or their JSON text. Raises ChatProblem."""
    found = parse_json(value, "calls")
    calls = found if isinstance(found, list) else [found]
    return [parse_call(call) for call in calls]


def parse_call(call: object) -> Mapping[str, Any]:
    """{"type": "function", "function": {"name": ..., "arguments": ...}}, with the arguments as an object where they are
    the JSON text of one: that is how servers hand them to templates."""
    call = parse_json(call, "calls") if isinstance(call, str) else call
    inner = call.get("function", call) if isinstance(call, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(call, dict) or not isinstance(inner, dict) or not isinstance(name, str) or not name:
        raise ChatProblem("a call without the name of a function")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = arguments  # a template writes such arguments as they are
        arguments = parsed if isinstance(parsed, dict) else arguments
    outer = {key: value for key, value in call.items() if key in ("id", "type", "index") and value is not None}
    return {
        "type": "function",
        **outer,
        "function": {"name": name, "arguments": {} if arguments is None else arguments},
    }


def parse_tools(value: object) -> list[Any]:
    """Descriptions of functions as templates are given them, from a list or its JSON text. Raises ChatProblem."""
    found = parse_json(value, "tools")
    tools = found if isinstance(found, list) else [found]
    tools = [parse_json(tool, "tools") if isinstance(tool, str) else tool for tool in tools]
    for tool in tools:
        if not isinstance(tool, dict) or not isinstance(tool.get("name", tool.get("function")), str | dict):
            raise ChatProblem("a tool without the name of a function")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def parse_json(value: object, what: str) -> Any:
    """The value, or what its JSON text says. No text is an empty list."""
    if not isinstance(value, str):
        return [] if value is None else value
    if not value.strip():
        return []
    try:
        return json.loads(value) or []
    except ValueError as error:
        raise ChatProblem(f"{what} that are no JSON: {error}") from error


def refuse_fields(value: Mapping[str, object], names: Sequence[str], where: str = "") -> None:
    """Raise ChatProblem for a field that changes what a row means and is not offered."""
    for name in names:
        if not is_empty(value.get(name)):
            raise ChatProblem(f"field {name!r} {where}is not read")
