"""How families of models write calls of tools and reasoning, recognized by the text of their chat templates."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgellm.errors import UsageError
from edgellm.structure import Constraint
from edgellm.text.tool_formats.base import Context, Format, Parser, Tool
from edgellm.text.tool_formats.gemma import Gemma
from edgellm.text.tool_formats.generic import Generic
from edgellm.text.tool_formats.granite import Granite
from edgellm.text.tool_formats.harmony import Harmony
from edgellm.text.tool_formats.hermes import Hermes
from edgellm.text.tool_formats.lfm2 import Lfm2
from edgellm.text.tool_formats.llama3 import Llama3
from edgellm.text.tool_formats.mistral import Mistral
from edgellm.text.tool_formats.phi4 import Phi4
from edgellm.text.tool_formats.pieces import Piece, Reasoning, Said, ToolArguments, ToolBegin, ToolEnd
from edgellm.text.tool_formats.qwen_xml import QwenXml
from edgellm.text.tool_formats.rules import ANY, Rules, either

__all__ = [
    "FORMATS", "Context", "Format", "Parser", "Piece", "Reasoning", "Said", "ToolArguments", "ToolBegin", "ToolEnd",
    "find", "make_constraint", "thinking_variables",
]  # fmt: skip
FORMATS: tuple[type[Format], ...] = (
    Harmony, Gemma, QwenXml, Mistral, Lfm2, Granite, Phi4, Hermes, Llama3, Generic,
)  # fmt: skip
_THINK = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷"))
_SWITCHES = ("enable_thinking", "thinking")
_ANY_OBJECT = '{"type": "object"}'
_EFFORTS = ("low", "medium", "high")


def find(template: str) -> Format:
    """Return the format of a model with this chat template."""
    think = next((pair for pair in _THINK if pair[1] in template or pair[0] in template), None)
    return next(kind for kind in FORMATS if kind.recognizes(template))(template, think)


def make_constraint(
    format: Format, token_id: Callable[[str], int | None], *, thinking: bool | None,
    wanted: Constraint | None = None, tools: Sequence[Tool] = (), parallel: bool = True, free: bool = False,
) -> Constraint:  # fmt: skip
    """Return what an answer must match whose text matches `wanted`, or that calls one of `tools`, or several of them if
    `parallel`; whichever is given, and after any reasoning. With `free`, any text may stand before calls, and there
    need be none; see Format.can_begin_anywhere.

    `token_id(marker)` is a control token's id, and `thinking` is as Format.is_thinking tells. Raises UsageError if the
    grammar is too long, or if `wanted` is one, which can't stand beside anything else.
    """
    rules = Rules(token_id)
    reasoning = format.reasoning_grammar(rules, thinking)
    if wanted is not None and not reasoning and not tools:
        return wanted
    if free:
        calls = format.grammar(rules, list(tools), parallel)
        return Constraint("lark", rules.text(f"{reasoning} {rules.add(ANY)} ({calls})?"))
    parts = [format.grammar(rules, list(tools), parallel)] if tools else []
    if wanted is not None:
        if wanted.kind == "lark":
            raise UsageError("a grammar holds for a whole answer. Ask without tools, and with thinking turned off.")
        regex = wanted.kind == "regex"
        body = rules.regex(wanted.source) if regex else rules.add(f"%json {wanted.source or _ANY_OBJECT}")
        parts.append(format.text_grammar(rules, body))
    return Constraint("lark", rules.text(f"{reasoning} {either(parts)}"))


def thinking_variables(template: str, think: bool | str | None) -> Mapping[str, Any]:
    """Return the template's variables for whether to reason first, or how much, as far as the template knows any."""
    if think is None:
        return {}
    wanted = think not in (False, "none")
    found: dict[str, Any] = {name: wanted for name in _SWITCHES if _reads(template, name)}
    if _reads(template, "reasoning_effort"):
        effort = think if isinstance(think, str) else "medium" if wanted else "low"
        effort = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}.get(effort, effort)
        found["reasoning_effort"] = effort if effort in _EFFORTS else "medium"
    return found


def _reads(template: str, name: str) -> bool:
    """Return True if a template reads this variable, and not only a message's field of that name."""
    return re.search(rf"(?:\b(?:if|elif|not|and|or|is|in|set \w+ =)\s+|[({{]\s*|\+\s*){name}\b", template) is not None
