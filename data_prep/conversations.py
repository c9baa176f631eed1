"""From a line of a chat file to a conversation: which forms are known, and what makes one bad.

Known forms, the first that fits:
  {"messages": [{"role": "user", "content": "..."}, ...]}
  {"conversations": [{"from": "human", "value": "..."}, ...]}
  a pair of PAIRS, such as {"question": "...", "answer": "..."}, with the text of "system" as a system turn where given
A text is a string, or a list of parts {"type": "text", "text": "..."}.
"""

from collections.abc import Mapping

from data_prep.sources import RecordValue, is_unicode
from nld_train.data.chat_template import ChatProblem, Message

LISTS = ("messages", "conversations")
SPELLINGS = (("role", "content"), ("from", "value"))  # of a message
PAIRS = (  # question, more of it where the field is there and not empty, answer
    ("prompt", None, "response"),
    ("prompt", None, "completion"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("question", None, "answer"),
    ("query", None, "response"),
)
SYSTEM = "system"
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
# Read by some templates beside the messages' text: what they write from these could not be told from their own text.
UNREAD = ("tools", "tool_calls", "function_call", "reasoning_content")
PAIR_NAMES = ", ".join(f"{question}{f'[+{more}]' if more else ''}+{answer}" for question, more, answer in PAIRS)
FORMS = f"{', '.join(LISTS)}, {PAIR_NAMES}"


def read_conversation(found: RecordValue) -> list[Message]:
    """The turns of one line or row. Raises ChatProblem where it is not one of the known forms."""
    if found.problem:
        raise ChatProblem(found.problem)
    value = found.value
    if not isinstance(value, dict):
        raise ChatProblem(f"not an object: a JSON {type(value).__name__}")
    refuse_unread(value)
    turns = next((value[name] for name in LISTS if value.get(name) is not None), None)
    if turns is None:
        return read_pair(value)
    if not isinstance(turns, list) or not turns:
        raise ChatProblem("no messages: their list is empty, or is no list")
    return [read_message(turn) for turn in turns]


def refuse_unread(value: Mapping[str, object]) -> None:
    for name in UNREAD:
        if value.get(name):
            raise ChatProblem(f"field {name!r} is not read: write it into the text of a message")


def read_message(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise ChatProblem(f"a message is no object: {type(turn).__name__}")
    refuse_unread(turn)
    role_key, text_key = next((pair for pair in SPELLINGS if pair[0] in turn), (None, None))
    if role_key is None or text_key is None:
        raise ChatProblem("a message without a role")
    role = turn[role_key]
    if not isinstance(role, str) or role not in ROLES:
        raise ChatProblem(f"unknown role: {role!r}, known are {', '.join(ROLES)}")
    return Message(ROLES[role], text_of(turn.get(text_key)))


def text_of(content: object) -> str:
    """The text of a message: a string, or the joined parts of a list. No content is an empty text."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(text_of_part(part) for part in content)
    if not isinstance(content, str):
        raise ChatProblem(f"a message is no text: {type(content).__name__}")
    if not is_unicode(content):
        raise ChatProblem("half a surrogate pair in a message")
    return content


def text_of_part(part: object) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ChatProblem(f"a message is no text: a part of type {kind!r}")
    return text_of(part.get("text"))


def read_pair(value: Mapping[str, object]) -> list[Message]:
    """A question and its answer, behind a system turn where there is one."""
    pair = next((pair for pair in PAIRS if pair[0] in value and pair[2] in value), None)
    if pair is None:
        raise ChatProblem(f"unknown form: fields {', '.join(sorted(value)) or 'none'}, known are {FORMS}")
    question, more, answer = pair
    asked = [text_of(value[question]), text_of(value.get(more)) if more else ""]
    system = text_of(value.get(SYSTEM))
    turns = [Message("system", system)] if system else []
    return [*turns, Message("user", "\n\n".join(filter(None, asked))), Message("assistant", text_of(value[answer]))]
