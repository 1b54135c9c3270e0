"""A chat with tools and reasoning, made ready for a model: what its template is given, and how its answer is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgellm.errors import UsageError
from edgellm.structure import Constraint
from edgellm.text import tool_formats
from edgellm.text.grammars import check
from edgellm.text.tokenizer import Tokenizer
from edgellm.text.tool_formats import Context, Parser, Piece, Said
from edgellm.text.tool_formats.rules import parameters_of, spaced


@dataclass(frozen=True)
class Prepared:
    """What a question needs besides its sampling. `parser` reads the answer's text; None if all of it is for the
    reader. `controls` are the control tokens that have to be in that text."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    constraint: Constraint | None = None
    controls: frozenset[str] = frozenset()
    parser: Parser | None = None


def parse(tokenizer: Tokenizer, answer: str) -> list[Piece]:
    """Return the text and the reasoning of a whole answer to a chat without tools."""
    parser = prepare(tokenizer, ()).parser
    return [Said(answer)] if parser is None else parser.feed(answer) + parser.end()


def prepare(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str = "auto", parallel: bool = True, wanted: Constraint | None = None,
    think: bool | str | None = None, template: Mapping[str, Any] | None = None,
) -> Prepared:  # fmt: skip
    """Return a chat as this model's template takes it.

    `tool_choice` is auto, none, required or the name of a tool, and `wanted` what the answer's text must match. Calls
    of strict tools match their parameters even if none is demanded, where a control token announces a call. May
    take seconds: the template is rendered. Raises UsageError for what this model can't do, ManifestError if the
    template fails.
    """
    variables = dict(template or {})
    if not tokenizer.has_template:
        if tools and tool_choice != "none":
            raise UsageError("tools: this model has no chat template, so it can't be told of tools")
        return Prepared(tuple(messages), (), variables, wanted)
    format = tool_formats.find(tokenizer.template)
    offered = [] if tool_choice == "none" else list(tools)
    if wanted is not None and think is None and tool_choice in ("auto", "none"):
        think = False  # text that must match something is what was asked for
    variables = {**tool_formats.thinking_variables(tokenizer.template, think), **variables}
    thinking = format.is_thinking(tokenizer.prompt_end(variables)) if format.think else None
    if think is False and thinking is None:
        thinking = False
    constraint = wanted
    if offered and tool_choice != "auto":
        chosen = [t for t in offered if tool_choice in ("required", t["function"]["name"])]
        if not chosen:
            raise UsageError(f"tool_choice names {tool_choice[:60]!r}, which is none of the tools")
        _check_tools(offered, chosen)
        constraint = tool_formats.make_constraint(
            format, tokenizer.control_id, thinking=thinking, tools=chosen,
            parallel=parallel and tool_choice == "required",
        )  # fmt: skip
    elif wanted is None and any(t["function"].get("strict") for t in offered):
        if format.can_begin_anywhere(tokenizer.control_id):
            _check_tools(offered, offered)
            constraint = tool_formats.make_constraint(
                format, tokenizer.control_id, thinking=thinking, tools=offered, parallel=parallel, free=True
            )  # fmt: skip
    elif wanted is not None:
        check(wanted)
        constraint = tool_formats.make_constraint(
            format, tokenizer.control_id, thinking=thinking, wanted=wanted, tools=offered, parallel=parallel
        )  # fmt: skip
    ready, native = format.prepare(messages, offered)
    parser = None
    if offered or format.think or format.always:
        parser = Parser(format, Context(thinking is True, tuple(offered), parallel))
    controls = frozenset(m for m in format.markers if tokenizer.control_id(m) is not None) if parser else frozenset()
    return Prepared(tuple(ready), tuple(native), variables, constraint, controls, parser)


def _check_tools(offered: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, Any]]) -> None:
    """Raise UsageError naming the tool whose parameters are no schema that an answer can be held to."""
    for i, tool in enumerate(offered):
        if tool in chosen:
            try:
                check(Constraint("json_schema", spaced(parameters_of(tool))))
            except UsageError as e:
                raise UsageError(f"tools[{i}].function.parameters: {e}") from None
