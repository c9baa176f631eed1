"""Chat templates made for the tests, each with a rule of its own of what is supervised.

Short names of control tokens, replaced by `spell`: [o] opens a turn, [c] closes it, [h] ends a header, [e] is a second
end, [t] and [/t] stand around reasoning, [k] and [/k] around calls, [a], [u], [y] and [r] are the assistant's, the
user's, the system's and a result's.
"""

from dataclasses import dataclass, field

NAMES = ("[o]", "[c]", "[h]", "[e]", "[t]", "[/t]", "[k]", "[/k]", "[a]", "[u]", "[y]", "[r]")
CONTROLS = {name: f"<SPECIAL_{20 + number}>" for number, name in enumerate(NAMES)}


def spell(text: str) -> str:
    """The text with the control tokens' own names."""
    for name, control in CONTROLS.items():
        text = text.replace(name, control)
    return text


@dataclass(frozen=True)
class Own:
    """A template and what it is meant to supervise.

    `ends` and `mid` follow an answer at the end of a conversation and within one; `thought` and `call` are what an
    answer with reasoning and a call looks like, None where the template loses it. `notes` and `refused` say, by
    conversation, which loss is told or which reason is given.
    """

    text: str
    ends: str = "[c]"
    mid: str | None = None  # None: as `ends`
    thought: str | None = None
    call: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def turns(body: str, prompt: str = "", head: str = "") -> str:
    """A template that writes `body` for every message m, and `prompt` where it is asked for an answer."""
    asked = "{% if add_generation_prompt %}{{ '" + prompt + "' }}{% endif %}" if prompt else ""
    return head + "{% for m in messages %}" + body + "{% endfor %}" + asked


CHATML = "{{ '[o]' + m.role + '\\n' + (m.content or '') + '[c]\\n' }}"
BY_ROLE = "{% if m.role == 'assistant' %}ANSWER{% else %}{{ '[o]' + m.role + '\\n' + m.content + '[c]\\n' }}{% endif %}"
PROMPT = "[o]assistant\\n"
CALLING = "{% for c in m.tool_calls or [] %}ONE{% endfor %}"
TOOLS = "{% if tools %}{{ '[o]tools\\n' + (tools | tojson) + '[c]\\n' }}{% endif %}"
LOST_REASONING, LOST_CALL = "removes the reasoning", "leaves out a call|leaves out an answer"
NO_SYSTEM = "system text not written by this template"


def answering(answer: str, prompt: str = PROMPT, head: str = "") -> str:
    """`turns` with a form of its own for answers."""
    return turns(BY_ROLE.replace("ANSWER", answer), prompt, head)


def calling(call: str, head: str = TOOLS, close: str = "[c]\\n") -> str:
    """Answers that write their calls behind their text, each as `call` of c."""
    body = "{{ '[o]assistant\\n' + (m.content or '') }}" + CALLING.replace("ONE", call) + "{{ '" + close + "' }}"
    return answering(body, head=head)


JSON_CALL = "{{ '[k]' + ({'name': c.function.name, 'arguments': c.function.arguments} | tojson) + '[/k]' }}"
WRITTEN_CALL = '[k]{"name": "add", "arguments": {"so": "hi \\"bye\\"", "four": 4}}[/k]'

OWN: dict[str, Own] = {
    # Headers and ends.
    "chatml": Own(turns(CHATML, PROMPT)),
    "no prompt": Own(turns(CHATML)),
    "always a prompt": Own(turns(CHATML) + "{{ '[o]assistant\\n' }}"),
    "header in tokens": Own(
        turns(
            "{{ '[o]' + m.role + '[h]\\n\\n' + (m.content or '') | trim + '[c]' }}",
            "[o]assistant[h]\\n\\n",
            "{{ bos_token }}",
        )
    ),
    "words around": Own(
        turns(
            "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
            "{% elif m.role == 'assistant' %}"
            "{{ ' ' + m.content + eos_token }}{% else %}{{ m.content + '\\n' }}{% endif %}",
            head="{{ bos_token }}",
        ),
        "</s>",
    ),
    "a token for each role": Own(
        turns(
            "{{ {'user': '[u]', 'assistant': '[a]', 'system': '[y]', 'tool': '[r]'}[m.role] "
            "+ (m.content or '') + '[c]' }}",
            "[a]",
        )
    ),
    "two ends": Own(answering("{{ '[o][a]' + (m.content or '') + '[e]' + eos_token }}", "[o][a]"), "[e]</s>"),
    "two ends apart": Own(answering("{{ '[o]assistant\\n' + (m.content or '') + '[e]\\n[c]\\n' }}"), "[e]\n[c]"),
    "end of all": Own(
        turns("{{ {'user': '[u]', 'assistant': '[a]'}.get(m.role, '[y]') + '\\n' + (m.content or '') + '[c]\\n' }}")
        + "{% if add_generation_prompt %}{{ '[a]\\n' }}{% else %}{{ eos_token }}{% endif %}",
        "[c]\n</s>",
        "[c]",
    ),
    "another end at last": Own(
        answering("{{ '[o]assistant\\n' + (m.content or '') + ('[e]' if loop.last else '[c]') + '\\n' }}"),
        "[e]",
        "[c]",
        notes={"two": "answers that end with [c], not with [e]"},
    ),
    "end at last alone": Own(
        answering("{{ '[o]assistant\\n' + (m.content or '') + ('[c]' if loop.last else '') + '\\n' }}"),
        "[c]",
        "",
        notes={"two": "answers that end with no control token, not with [c]"},
    ),
    "open before a result": Own(
        answering(
            "{{ '[o]assistant\\n' + (m.content or '') }}"
            + CALLING.replace("ONE", JSON_CALL)
            + "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '[c]\\n' }}"
            "{% endif %}",
            head=TOOLS,
        ),
        call=WRITTEN_CALL,
        notes={"called": "answers that end with [/k], not with [c]"},
    ),
    "one token around": Own(
        turns("{{ '[o]' + m.role + ': ' + (m.content or '') }}")
        + "{{ '[o]' if not add_generation_prompt else '[o]assistant: ' }}",
        "[o]",
    ),
    "closed by the next": Own(
        turns("{{ '[o]' + m.role + '\\n' + (m.content or '') }}", PROMPT), refused={"*": "no control token"}
    ),
    "closed by a line": Own(
        turns("{{ m.role + ': ' + (m.content or '') + '\\n' }}", "assistant:"), refused={"*": "no control token"}
    ),
    "lines between": Own(
        turns(
            "{{ '[o]' + m.role + '\\n' + (m.content or '') + '[c]' }}{% if not loop.last %}{{ '\\n' }}{% endif %}",
            "\\n[o]assistant\\n",
        )
    ),
    "the end inside": Own(
        answering(
            "{{ '[o]assistant\\n' + (m.reasoning_content + '[c]' if m.reasoning_content else '') "
            "+ (m.content or '') + '[c]\\n' }}"
        ),
        refused={"thought": "stands inside", "thoughts": "stands inside"},
    ),
    # How templates are written.
    "other names of roles": Own(
        turns(
            "{{ '[o]' + ('model' if m.role == 'assistant' else m.role | upper) + '\\n' "
            "+ (m.content or '') + '[c]\\n' }}",
            "[o]model\\n",
        )
    ),
    "macro": Own(
        "{% macro one(role, text) %}[o]{{ role }}\n{{ text }}[c]\n{% endmacro %}"
        + turns("{{ one(m.role, m.content or '') }}", PROMPT)
    ),
    "namespace": Own(
        "{% set ns = namespace(n=0) %}"
        + turns(
            "{% set ns.n = ns.n + 1 %}{{ '[o]' + m.role + ' ' + ns.n | string + '\\n' + (m.content or '') + '[c]\\n' }}"
        )
        + "{% if add_generation_prompt %}{{ '[o]assistant ' + (ns.n + 1) | string + '\\n' }}"
        "{% endif %}"
    ),
    "continue": Own(
        turns(
            "{% if not m.content %}{% continue %}{% endif %}{{ '[o]' + m.role + '\\n' + m.content + '[c]\\n' }}", PROMPT
        ),
        refused={"called": LOST_CALL},
    ),
    "parts": Own(
        turns(
            "{{ '[o]' + m.role + '\\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for p in m.content or [] %}{{ p.text }}{% endfor %}{% endif %}{{ '[c]\\n' }}",
            PROMPT,
        )
    ),
    "system in the question": Own(
        "{% set first = messages[0].role == 'system' %}{% for m in messages[1"
        " if first else 0:] %}{{ '[o]' + m.role + '\\n' }}"
        "{% if loop.first and first %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
        "{{ (m.content or '') + '[c]\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[o]assistant\\n' }}{% endif %}"
    ),
    "a system text of its own": Own(
        "{% if messages[0].role != 'system' %}{{ '[o]system\\nso so[c]\\n' }}{% endif %}" + turns(CHATML, PROMPT)
    ),
    "clock": Own(turns(CHATML, PROMPT, "{{ '[o]system\\n' + strftime_now('%d %B %Y, %H:%M') + '[c]\\n' }}")),
    "clock where there is one": Own(
        turns(
            CHATML,
            PROMPT,
            "{% if strftime_now is defined %}{% set day = strftime_now('%Y-%m-%d') %}{% else %}"
            "{% set day = 'so' %}{% endif %}{{ '[y]' + day + '[c]' }}",
        )
    ),
    "strict turns": Own(
        turns(
            "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('turns must alternate') }}{% endif %}" + CHATML,
            PROMPT,
        ),
        refused={"system": "must alternate", "called": "must alternate"},
    ),
    # What is lost.
    "no system": Own(
        turns("{% if m.role != 'system' %}" + CHATML + "{% endif %}", PROMPT), notes={"system": NO_SYSTEM}
    ),
    "system at last alone": Own(
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        + turns(
            "{% if m.role != 'system' %}{{ '[o]' + m.role + '\\n' + (s"
            " if loop.last and m.role == 'user' else '') + (m.content or '') + '[c]\\n' }}"
            "{% endif %}",
            PROMPT,
        ),
        notes={"system": NO_SYSTEM},
    ),
    "no results": Own(
        turns("{% if m.role != 'tool' %}" + CHATML + "{% endif %}", PROMPT),
        refused={"called": "tool result|leaves out"},
    ),
    "changed": Own(
        turns("{{ '[o]' + m.role + '\\n' + (m.content or '') | upper + '[c]\\n' }}", PROMPT),
        refused={"*": "changes the text"},
    ),
    "turned round": Own(
        "{% for m in messages | reverse %}{{ '[o]' + m.role + '\\n' + m.content + '[c]\\n' }}{% endfor %}",
        refused={"*": "order of answers"},
    ),
    # Reasoning.
    "reasoning_content": Own(
        answering(
            "{{ '[o]assistant\\n' + ('[t]' + m.reasoning_content + '[/t]'"
            " if m.reasoning_content else '') + (m.content or '') + '[c]\\n' }}"
        ),
        thought="[t]hm so[/t]four",
    ),
    "thinking": Own(
        answering(
            "{{ '[o]assistant\\n' + ('<think>\\n' + m.thinking + '\\n</think>\\n\\n'"
            " if m.thinking else '') + (m.content or '') + '[c]\\n' }}"
        ),
        thought="<think>\nhm so\n</think>\n\nfour",
    ),
    "reasoning": Own(
        answering(
            "{{ '[o]assistant\\n' + ('[t]' + m['reasoning'] + '[/t]'"
            " if m['reasoning'] is defined else '') + (m.content or '') + '[c]\\n' }}"
        ),
        thought="[t]hm so[/t]four",
    ),
    "reasoning without prompt": Own(
        answering(
            "{{ ('[t]' + m.reasoning_content + '[/t]' if m.reasoning_content else '') "
            "+ (m.content or '') + eos_token }}",
            "",
        ),
        "</s>",
        thought="[t]hm so[/t]four",
    ),
    "an empty thought": Own(
        answering(
            "{{ '[o]assistant\\n<think>\\n' + m.get('reasoning_content', '') "
            "+ '\\n</think>\\n\\n' + (m.content or '') + '[c]\\n' }}",
            "[o]assistant\\n<think>\\n\\n</think>\\n\\n",
        ),
        thought="<think>\nhm so\n</think>\n\nfour",
    ),
    "reasoning of the last": Own(
        answering(
            "{{ '[o]assistant\\n' + ('[t]' + m.reasoning_content + '[/t]'"
            " if m.reasoning_content and loop.last else '') + (m.content or '') + '[c]\\n' }}"
        ),
        thought="[t]hm so[/t]four",
        refused={"thoughts": LOST_REASONING},
    ),
    "cut at the tag": Own(
        answering("{{ '[o]assistant\\n' + (m.content or '').split('</think>')[-1] | trim + '[c]\\n' }}"),
        refused={"tagged": LOST_REASONING, "thought": LOST_REASONING, "thoughts": LOST_REASONING},
    ),
    # Generation marks.
    "marked": Own(
        answering(
            "{{ '[o]assistant\\n' }}{% generation %}{{ (m.content or '') + '[c]' }}{% endgeneration %}{{ '\\n' }}"
        )
    ),
    "marked without end": Own(
        answering("{{ '[o]assistant\\n' }}{% generation %}{{ m.content or '' }}{% endgeneration %}{{ '[c]\\n' }}"),
        "",
        notes={"*": "answers with end marks outside of the template's generation marks, not supervised"},
    ),
    "the last one marked": Own(
        answering(
            "{{ '[o]assistant\\n' }}{% if loop.last %}{% generation %}{{ (m.content or '') "
            "+ '[c]' }}{% endgeneration %}{% else %}{{ (m.content or '') + '[c]' }}{% endif %}"
            "{{ '\\n' }}"
        ),
        notes={"two": "answers outside of the template's generation marks, not supervised"},
    ),
    # Calls.
    "calls as JSON": Own(calling(JSON_CALL), call=WRITTEN_CALL + "[c]"),
    "calls in words": Own(
        calling(
            "{{ 'CALL ' + c.function.name }}{% for k, v in c.function.arguments.items() %}{{ ' ' "
            "+ k + '=' + v | string }}{% endfor %}"
        ),
        call='CALL add so=hi "bye" four=4[c]',
    ),
    "calls under functions": Own(
        calling(
            "{% set f = c.function if c.function is defined else c %}{{ '[k]' + f.name + ' ' "
            "+ (f.arguments if f.arguments is string else f.arguments | tojson) + '[/k]' }}"
        ),
        call='[k]add {"so": "hi \\"bye\\"", "four": 4}[/k][c]',
    ),
    "calls and another end": Own(calling(JSON_CALL, close="[e][c]\\n"), "[e][c]", call=WRITTEN_CALL + "[e][c]"),
    "results as JSON": Own(
        turns(
            "{% if m.role == 'tool' %}{{ '[r]' "
            "+ ({'name': m.name, 'content': m.content} | tojson) + '[c]' }}{% else %}{{ '[o]' "
            "+ m.role + '\\n' + (m.content or '') }}" + CALLING.replace("ONE", JSON_CALL) + "{{ '[c]\\n' }}{% endif %}",
            PROMPT,
            TOOLS,
        ),
        call=WRITTEN_CALL + "[c]",
    ),
    "calls with numbers": Own(
        calling("{{ '[k]' + c.id + ' ' + c.function.name + (c.function.arguments | tojson) + '[/k]' }}"),
        call='[k]c1 add{"so": "hi \\"bye\\"", "four": 4}[/k][c]',
    ),
    "no calls": Own(
        answering("{{ '[o]assistant\\n' + (m.content or '') + '[c]\\n' }}", head=TOOLS), refused={"called": LOST_CALL}
    ),
    "no tools": Own(
        calling(JSON_CALL, head=""), call=WRITTEN_CALL + "[c]", notes={"called": "tools not written by this template"}
    ),
}
