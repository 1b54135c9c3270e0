"""`edgellm chat`: a conversation in the terminal."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from edgellm.cli.group import utf8_text, verbose_option
from edgellm.console import Progress, for_terminal, note
from edgellm.errors import ConversationError, EdgellmError, UsageError

HELP = """/system TEXT   answer by this system prompt from now on; without a text, show it; /system - removes it
/retry         answer the last question again
/new           begin a new conversation
/save FILE     write the conversation to a file: Markdown, or JSON if its name ends in .json
/help          this
/exit          end, as Ctrl-D does
Ctrl-C ends an answer. A text of several lines stands between lines of three quotes (\"\"\"), or each line but the last
ends in a backslash. Begin with // for a text that begins with a slash."""
_QUOTES = '"""'
_LINES_KEPT = 1000
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_AUTHORS = "[default: the model authors']"


@click.command()
@click.option("-c", "--continue", "go_on", is_flag=True, help="Go on with the last conversation.")
@click.option("--system", metavar="TEXT", help="A system prompt.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="TOKENS",
              help="Maximum number of tokens of an answer.  [default: as many as fit]")  # fmt: skip
@click.option("--temperature", type=float, help=f"0 is greedy: always the likeliest token.  {_AUTHORS}")
@click.option("--seed", type=int, help="The same seed gives the same answers.  [default: random]")
@click.option("--think/--no-think", default=None,
              help="Have the model reason first, if it can.  [default: the model's]")  # fmt: skip
@click.option("--no-history", is_flag=True, help="Don't keep the conversation.")
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: $EDGELLM_CLUSTER, ./cluster.json, the user's config folder]")  # fmt: skip
@verbose_option
def chat(go_on, system, max_tokens, temperature, seed, think, no_history, cluster, verbose):
    """Talk to the cluster, question by question.

    Conversations are kept in the user's state folder, where the page of 'edgellm serve' shows them too. Without a
    cluster file, two agents on this machine answer with the built-in model. /help lists what can be typed.

    \b
    Examples:
      edgellm chat
      edgellm chat -c
      edgellm chat --system "Answer in one sentence."
    """
    from edgellm.blocking import Client
    from edgellm.cli.ask import tell_loading
    from edgellm.cli.embedded import embedded
    from edgellm.cli.talk import last_conversation
    from edgellm.manager.cluster_file import find

    conversation = last_conversation() if go_on else None
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    path = find(str(cluster) if cluster else None)
    with contextlib.nullcontext(path) if path is not None else embedded("chat", slots=1) as path:
        with (
            Progress() as loading, Client(path, tell=note, on_loading=tell_loading(loading)) as client,
            _typed_lines() as read,
        ):  # fmt: skip
            talk = Chat(client, options, conversation, kept=not no_history, think=think, verbose=verbose)
            talk.loading = loading
            if system is not None:
                talk.system = utf8_text(system, "--system")
            talk.run(read)


class Chat:
    """A conversation with whoever types. `messages` have OpenAI's shape, without a system prompt."""

    def __init__(self, client, options: dict[str, Any], conversation=None, *, kept=True, think=None, verbose=False):
        from edgellm.cli.talk import as_chat

        self._client, self._options, self._think, self._verbose = client, options, think, verbose
        self._kept, self._conversation = kept, conversation
        self.loading = Progress()
        self.system = ""
        self.messages: list[dict[str, Any]] = as_chat(conversation) if conversation is not None else []
        if self.messages and self.messages[0]["role"] == "system":
            self.system = self.messages.pop(0)["content"]
        self._question = next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    def run(self, read: Callable[[str], str]) -> None:
        """Read and answer until there is nothing more to read."""
        note(f"{self._client.asker.manifest.model} answers; /help tells what can be typed, Ctrl-D ends")
        while True:
            try:
                text = read_text(read)
            except EOFError:
                return
            except KeyboardInterrupt:
                note("Ctrl-D or /exit ends the chat")
                continue
            if text.startswith("/") and not text.startswith("//"):
                if not self._obey(*text[1:].partition(" ")[::2]):
                    return
            elif text.strip():
                self._ask(text[1:] if text.startswith("//") else text, self._options)

    def _obey(self, command: str, argument: str) -> bool:
        """Do what a command says; return False if it ends the chat."""
        argument = argument.strip()
        if command in ("exit", "quit", "bye"):
            return False
        if command == "help":
            note_lines(HELP)
        elif command == "system":
            self._set_system(argument)
        elif command == "retry":
            self._retry()
        elif command == "new":
            self.messages, self._conversation, self._question = [], None, ""
            note("a new conversation")
        elif command == "save":
            self._save(argument)
        else:
            note(f"there is no /{command[:40]}; /help lists what there is")
        return True

    def _set_system(self, text: str) -> None:
        if text:
            self.system = "" if text == "-" else text
            self._configure()
        note(f"system prompt: {self.system or 'none'}")

    def _configure(self) -> None:
        from edgellm.cli.talk import OWNER
        from edgellm.conversations import Conversations

        if self._conversation is None:
            return
        try:
            with contextlib.closing(Conversations()) as store:
                settings = {**self._conversation.settings, "system": self.system}
                self._conversation = store.configure(OWNER, self._conversation.id, settings)
        except ConversationError as e:
            note(str(e))

    def _retry(self) -> None:
        if not self._question:
            note("there is nothing to answer again")
            return
        before = self.messages
        answered = bool(before) and before[-1]["role"] == "assistant" and before[-2]["content"] == self._question
        self.messages = before[:-2] if answered else before[:]
        options = {name: value for name, value in self._options.items() if name != "seed"}
        if not self._ask(self._question, options, instead=2 if answered else 0):
            self.messages = before

    def _save(self, name: str) -> None:
        if not name:
            note("/save needs the name of a file")
            return
        path = Path(name).expanduser()
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.messages]
        if path.suffix == ".json":
            text = json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"
        else:
            text = "".join(f"**{m['role']}**\n\n{m['content']}\n\n" for m in messages)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            note(f"{path} is there already; give another name")
        except OSError as e:
            note(f"{path}: {e.strerror or e}")
        else:
            note(f"saved in {path}")

    def _ask(self, question: str, options: dict[str, Any], *, instead: int = 0) -> bool:
        """Answer a question, and keep both in place of the last `instead` messages; return whether there is an answer.
        After Ctrl-C that is what has come so far."""
        from edgellm.cli.ask import place_in_line, summary

        self._question = question
        system = [{"role": "system", "content": self.system}] if self.system else []
        shown = Shown()
        try:
            stream, parser = self._stream([*system, *self.messages, {"role": "user", "content": question}],
                                          options, lambda position: note(place_in_line(position)))  # fmt: skip
        except EdgellmError as e:
            note(str(e))
            return False
        finish = "cancelled"
        try:
            for delta in stream:
                self.loading.end()
                shown.show(delta.text, parser, ended=delta.finish_reason is not None)
            finish = stream.answer.finish
        except KeyboardInterrupt:
            with contextlib.suppress(RuntimeError):  # its end is under way already
                stream.close()
        except EdgellmError as e:
            shown.end()
            note(str(e))
            return False
        shown.end()
        if self._verbose:
            note(summary(stream.answer))
        if not shown.text.strip():
            return False
        self._take(question, shown, finish, instead)
        return True

    def _stream(self, messages: list[dict[str, Any]], options: dict[str, Any], queued: Callable[[int], None]):
        from edgellm.text.prepared import prepare

        ready = prepare(self._client.asker.tokenizer, messages, think=self._think)
        options = {"max_tokens": self._client.plan.context, **options}
        return self._client.chat(
            ready.messages, template=ready.template, controls=ready.controls, on_queue=queued, **options
        ), ready.parser  # fmt: skip

    def _take(self, question: str, shown: "Shown", finish: str, instead: int) -> None:
        from edgellm.cli.talk import keep
        from edgellm.conversations import Message

        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": shown.text}]
        if self._kept:
            model = self._client.asker.manifest.model
            answer = Message("assistant", shown.text, shown.reasoning, model, finish)
            self._conversation = keep(
                self._conversation, [Message("user", question), answer], model=model, system=self.system,
                instead=instead, aloud=True,
            )  # fmt: skip


class Shown:
    """An answer on stdout as it comes: its text, and on a terminal its reasoning, which is dim."""

    def __init__(self):
        self.text = self.reasoning = ""
        self._dim = False

    def show(self, text: str, parser, *, ended: bool) -> None:
        """Show what a piece of the answer adds."""
        from edgellm.text.tool_formats import Reasoning, Said

        if parser is None:
            pieces = [Said(text)]
        else:
            pieces = parser.feed(text) + (parser.end() if ended else [])
        for piece in pieces:
            if isinstance(piece, Reasoning):
                self.reasoning += piece.text
                if sys.stdout.isatty():
                    self._write(piece.text, dim=True)
            elif isinstance(piece, Said) and piece.text:
                self.text += piece.text
                self._write(piece.text, dim=False)

    def end(self) -> None:
        """End the line."""
        if self.text or self._dim:
            self._write("\n", dim=False)

    def _write(self, text: str, *, dim: bool) -> None:
        if dim != self._dim:
            sys.stdout.write(_DIM if dim else f"{_PLAIN}\n\n" if text != "\n" else _PLAIN)
            self._dim = dim
        sys.stdout.write(for_terminal(text))
        sys.stdout.flush()


def read_text(read: Callable[[str], str]) -> str:
    """Return a question of one or more lines. Raises EOFError at the end of all lines."""
    line = read("> ")
    if line.startswith(_QUOTES):
        lines = [line[len(_QUOTES) :]]
        while not lines[-1].endswith(_QUOTES) or (len(lines) == 1 and line == _QUOTES):
            try:
                lines.append(read(". "))
            except EOFError:
                return "\n".join(lines).strip("\n")
        lines[-1] = lines[-1].removesuffix(_QUOTES)
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(read(". "))
        except EOFError:
            break
    return "\n".join(lines)


@contextlib.contextmanager
def _typed_lines() -> Iterator[Callable[[str], str]]:
    """Yield what reads a line: on a terminal with a prompt, and with those of earlier chats at the arrow keys."""
    if sys.stdin is None:
        raise UsageError("chat reads questions from stdin, which is closed")
    if not sys.stdin.isatty():
        yield _read_piped
        return
    from edgellm.conversations import state_folder

    path = state_folder() / "chat-lines"
    try:
        import readline
    except ImportError:  # Windows, or a Python without it
        yield input
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_LINES_KEPT)
    try:
        yield input
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            readline.write_history_file(path)


def _read_piped(_prompt: str) -> str:
    raw = sys.stdin.buffer.readline()
    if not raw:
        raise EOFError
    try:
        return raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as e:
        raise UsageError(f"stdin is not UTF-8 text (byte {e.start} of a line)") from None


def note_lines(text: str) -> None:
    """Print several lines on stderr."""
    for line in text.split("\n"):
        note(line)
