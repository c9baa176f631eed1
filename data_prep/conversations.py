"""From a row of a chat file to a conversation: which forms are known, and what makes one bad.

A row's keys are used, refused, or named as not read. docs/data.md has every form as an example.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data_prep.empty_columns import EMPTY_COLUMNS, drop_empty_columns
from data_prep.image_parts import ROW_KEYS, place_images, read_row_images
from data_prep.messages import (
    LABEL_KEYS,
    PICTURE_KEYS,
    ROLE_KEYS,
    TOOL_KEYS,
    WEIGHT_KEYS,
    Reading,
    is_empty,
    parse_tools,
    read_reasoning,
    read_text,
    read_turns,
    read_weight,
    reads_nothing,
    refuse_fields,
)
from data_prep.sources import RecordValue
from nld_train.data.chat_template import REASONING_KEYS, ChatProblem, Message

LISTS = ("messages", "conversations", "conversation", "dialogue")
PAIRS = (  # question, answer
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
MORE = ("input", "context")  # of a question, behind it, where the field is there and not empty
SYSTEMS = ("system", "system_prompt")
HISTORY = "history"
CHOSEN, REJECTED = "chosen", "rejected"
TEXTS = "texts"  # FineVision: a list of {"user": ..., "assistant": ...}
REFUSED = (*(key for key in PICTURE_KEYS if key not in ROW_KEYS), "documents", "chat_template_kwargs", "train_detail")
PAIR_NAMES = ", ".join(f"{question}+{answer}" for question, answer in PAIRS)
FORMS = f"{', '.join((*LISTS, TEXTS))}, {PAIR_NAMES}"
FALSE_ROW = "a row that is marked as bad: label false"


class LeftOut(Exception):
    """Why a row is left out, as the user asked for: it is counted, and is no bad line."""


@dataclass(frozen=True)
class Conversation:
    """One row, read."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    unread: frozenset[str] = frozenset()  # fields of the row that nothing used
    notes: frozenset[str] = frozenset()  # what else there is to say of it


def read_conversation(
    found: RecordValue, chosen: bool = False, template_reads: Callable[[str], bool] = reads_nothing
) -> Conversation:
    """The turns of one line or row.

    chosen: of a preference, the better half. template_reads: whether the chat template looks at a field of a message.
    Raises ChatProblem where it is not one of the known forms, and LeftOut for a row that `chosen` leaves out.
    """
    if found.problem:
        raise ChatProblem(found.problem)
    reading = Reading(template_reads)
    filled = drop_empty_columns(found.value) if found.from_table else found.value
    if filled != found.value:
        reading.notes.add(EMPTY_COLUMNS)
    value = {"messages": filled} if _holds_turns(filled) else filled
    if not isinstance(value, dict):
        raise ChatProblem(f"not an object: a JSON {type(value).__name__}")
    if len(value) == 1 and not value.keys().isdisjoint(LISTS):  # nothing stands beside the turns, as in most files
        messages = place_images(read_turns(next(iter(value.values())), reading), [], in_front=False)
        return Conversation(tuple(messages), tuple(reading.tools), frozenset(reading.unread), frozenset(reading.notes))
    refuse_fields(value, REFUSED)
    row = _take_chosen(value) if _is_preference(value, chosen) else value
    known = _check_label(row, chosen)
    messages, used = _read_row(row, reading)
    messages = _join_system(_read_beside(row, reading), messages)
    messages = place_images(messages, read_row_images(row), in_front=TEXTS in used)
    if not read_weight(row, "assistant", reading):
        raise ChatProblem("weight 0 of a whole row: nothing of it would be supervised")
    tools = [tool for name in TOOL_KEYS if not is_empty(row.get(name)) for tool in parse_tools(row[name])]
    reading.leave_unread("", row, (*used, *known, *ROW_KEYS, *SYSTEMS, HISTORY, *TOOL_KEYS, *WEIGHT_KEYS))
    return Conversation(
        tuple(messages), tuple(tools or reading.tools), frozenset(reading.unread), frozenset(reading.notes)
    )


def _is_preference(value: Mapping[str, object], chosen: bool) -> bool:
    """Whether a row has a better and a worse answer. Raises ChatProblem where that is not asked for."""
    found = [name for name in (CHOSEN, REJECTED) if not is_empty(value.get(name))]
    if found and not (chosen and CHOSEN in found):
        do = "--chosen takes the chosen one" if CHOSEN in found else "it has none that is chosen"
        raise ChatProblem(f"a preference, with the fields {', '.join(found)}: {do}")
    return bool(found)


def _take_chosen(value: Mapping[str, object]) -> dict[str, object]:
    """A preference as a row with its better answer alone: the whole conversation where it is one, else behind the
    prompt, whose own answers are context."""
    rest = {key: found for key, found in value.items() if key not in (CHOSEN, REJECTED)}
    found = value[CHOSEN]
    turns = found if isinstance(found, list) else [found]
    turns = [{"role": "assistant", "content": turn} if isinstance(turn, str) else turn for turn in turns]
    roles = [turn.get("role", turn.get("from")) for turn in turns if isinstance(turn, dict)]
    if any(role in ("user", "human") for role in roles):
        ignored = (*LISTS, "prompt", "question", "instruction", "input")
        return {key: found for key, found in rest.items() if key not in ignored} | {"messages": turns}
    name = next((name for name in (*LISTS, "prompt", "question", "instruction") if not is_empty(rest.get(name))), None)
    if name is None:
        raise ChatProblem("a preference without a prompt")
    return rest | {name: None, "prompt": rest[name], "completion": turns}


def _check_label(row: Mapping[str, object], chosen: bool) -> tuple[str, ...]:
    """The key of a label that says whether an answer is good, as it is used. Raises ChatProblem for a bad one."""
    found = {name: row[name] for name in LABEL_KEYS if row.get(name) in (0, 1)}  # True and False among them
    if not all(found.values()):
        raise LeftOut(FALSE_ROW) if chosen else ChatProblem(f"{FALSE_ROW}; --chosen leaves such rows out")
    return tuple(found)


def _read_row(row: Mapping[str, object], reading: Reading) -> tuple[list[Message], tuple[str, ...]]:
    """The turns of a row but for what stands beside them, and the keys that were used."""
    there = [name for name in LISTS if row.get(name) is not None]
    lists = [name for name in there if not is_empty(row[name])] or there[:1]
    if len(lists) > 1:
        raise ChatProblem(f"two lists of turns: {' and '.join(lists)}")
    if not lists and not is_empty(row.get(TEXTS)) and not any(_has_pair(row, pair) for pair in PAIRS):
        return _read_texts(row[TEXTS], reading), (TEXTS,)
    if not lists:
        return _read_pair(row, reading)
    refuse_fields(row, ("context",), "beside a list of turns ")
    if read_reasoning(row)[0]:
        raise ChatProblem("reasoning beside a list of turns: which answer does it belong to")
    return read_turns(row[lists[0]], reading), (lists[0],)


def _has_pair(row: Mapping[str, object], pair: tuple[str, str]) -> bool:
    return pair[0] in row and pair[1] in row


def _read_texts(texts: object, reading: Reading) -> list[Message]:
    """The turns of a list of questions and answers, as FineVision has them."""
    messages = []
    for pair in texts if isinstance(texts, list) else [texts]:
        if not isinstance(pair, dict) or not {"user", "assistant"} <= pair.keys():
            raise ChatProblem(f"{TEXTS} that are no list of user and assistant")
        reading.leave_unread("texts ", pair, ("user", "assistant"))
        messages += [Message(role, read_text(pair[role])) for role in ("user", "assistant")]
    return messages


def _read_pair(row: Mapping[str, object], reading: Reading) -> tuple[list[Message], tuple[str, ...]]:
    """A question and its answer. Lists of turns may stand in their place; then the answer's turns alone count."""
    pairs = [pair for pair in PAIRS if _has_pair(row, pair)]
    pair = next((pair for pair in pairs if not is_empty(row[pair[1]])), pairs[0] if pairs else None)
    if pair is None:
        raise ChatProblem(f"unknown form: fields {', '.join(sorted(row)) or 'none'}, known are {FORMS}")
    question, answer = pair
    reasoning, key = read_reasoning(row)
    used = (question, answer, *MORE, *(name for name in REASONING_KEYS if reasoning and not is_empty(row.get(name))))
    more = [read_text(row[name]) for name in MORE if name != question and not is_empty(row.get(name))]
    if _holds_turns(row[question]):
        if more:
            raise ChatProblem(f"more of a question beside a list of turns: {' and '.join(MORE)}")
        asked = read_turns(row[question], reading, context=True)
    else:
        asked = [Message("user", "\n\n".join(filter(None, [read_text(row[question]), *more])))]
    if _holds_turns(row[answer]):
        told = read_turns(row[answer], reading)
    else:
        told = [Message("assistant", read_text(row[answer]))]
    if reasoning:
        told = [replace(told[0], reasoning=reasoning, reasoning_key=key), *told[1:]]
    return [*asked, *told], used


def _holds_turns(value: object) -> bool:
    turns = value if isinstance(value, list) and value else [None]
    return all(isinstance(turn, dict) and not turn.keys().isdisjoint(ROLE_KEYS) for turn in turns)


def _read_beside(row: Mapping[str, object], reading: Reading) -> list[Message]:
    """What stands beside the turns of a row and before them: a system text and earlier turns."""
    texts = {read_text(row[name]) for name in SYSTEMS if not is_empty(row.get(name))}
    if len(texts) > 1:
        raise ChatProblem(f"two system texts that differ: {' and '.join(SYSTEMS)}")
    before = [Message("system", text) for text in texts]
    history = row.get(HISTORY)
    if is_empty(history):
        return before
    if not isinstance(history, list):
        raise ChatProblem(f"history is no list: {type(history).__name__}")
    if _holds_turns(history):
        return [*before, *read_turns(history, reading)]
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise ChatProblem("history that is neither turns nor pairs of question and answer")
        before += [Message("user", read_text(turn[0])), Message("assistant", read_text(turn[1]))]
    return before


def _join_system(before: list[Message], messages: list[Message]) -> list[Message]:
    """What stands before the turns, and the turns; a system text that both begin with stands once. Raises ChatProblem
    where the two differ."""
    systems = [turns[0].content for turns in (before, messages) if turns and turns[0].role == "system"]
    if len(systems) < 2:
        return [*before, *messages]
    if systems[0] != systems[1]:
        raise ChatProblem("two system texts that differ: beside the turns and as the first one")
    return [*before, *messages[1:]]
