"""What all commands share: one-line errors, options, settings."""

import os
import sys

import click

from edgellm import config
from edgellm.console import discard_stdout, note, prepare_streams
from edgellm.errors import EdgellmError, UsageError

# Packages that only some commands need, and the extra of pyproject.toml that installs them.
EXTRAS = {
    "torch": "convert", "transformers": "convert", "gguf": "convert", "sentencepiece": "convert", "google": "convert",
    "cryptography": "controller", "paramiko": "controller", "ansible": "controller",
    "ansible_runner": "controller", "starlette": "serving", "uvicorn": "serving", "prometheus_client": "serving",
    "msgspec": "serving",
}  # fmt: skip
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Group(click.Group):
    """A group whose commands turn every error into one line."""

    def main(self, *args, **kwargs):
        """Run a command and exit: 0, or 1 for an error, 2 for a usage error, 130 for Ctrl-C.

        If the reader of stdout has enough, as `head` does, the exit code is 1, without a message.
        """
        prepare_streams()
        kwargs["standalone_mode"] = False
        arguments = (args[0] if args else kwargs.get("args")) or sys.argv[1:]
        verbose = "-v" in arguments or "--verbose" in arguments
        code = 0
        try:
            try:
                code = super().main(*args, **kwargs)
            except SystemExit as e:
                code = e.code
            sys.stdout.flush()
        except EdgellmError as e:
            _fail(str(e), e.exit_code, verbose)
        except ModuleNotFoundError as e:
            package = (e.name or "").split(".")[0]
            if package not in EXTRAS:
                raise
            how = f"Run 'make controller', or pip install 'edgellm[{EXTRAS[package]}]'"
            _fail(f"this needs {package}, which is not installed. {how}.", 1, verbose)
        except (click.exceptions.Abort, KeyboardInterrupt):
            sys.exit(130)
        except click.exceptions.NoArgsIsHelpError as e:
            e.show()
            sys.exit(2)
        except click.ClickException as e:
            hint = f" Try '{e.ctx.command_path} --help'." if getattr(e, "ctx", None) else ""
            _fail(e.format_message() + hint, 2, False)
        except BrokenPipeError:
            discard_stdout()
            sys.exit(1)
        except OSError as e:
            discard_stdout()
            where = f"{e.filename}: " if e.filename else ""
            _fail(f"{where}{e.strerror or e}", 1, verbose)
        except UnicodeError as e:
            _fail(f"a name or text is not UTF-8: {e}", 1, verbose)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int, verbose: bool) -> None:
    if verbose:
        import traceback

        traceback.print_exc()
    note(f"edgellm: {' '.join(text.split())}")
    sys.exit(code)


def utf8_text(text: str, what: str) -> str:
    """Return an argument's text; raises UsageError naming `what` if its bytes aren't UTF-8.

    Python keeps bytes that the locale's encoding lacks as surrogates; in the C locale that includes UTF-8.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError as e:
        raise UsageError(f"{what} is not UTF-8 text (byte {e.start})") from None
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8 text") from None


verbose_option = click.option("-v", "--verbose", is_flag=True, help="Print more on stderr, tracebacks included.")
_PLAN_OPTIONS = [
    click.option("--context", type=click.IntRange(1), metavar="TOKENS",
                 help=f"Tokens of a prompt and its answer.  [default: {config.DEFAULT_CONTEXT}, or the model's]"),
    click.option("--slots", type=click.IntRange(1, 1024), default=config.DEFAULT_SLOTS, show_default=True,
                 help="Number of answers at once."),
    click.option("--chunk", type=click.IntRange(1, 8192), default=config.DEFAULT_CHUNK, show_default=True,
                 metavar="TOKENS", help="Prompt tokens per prefill chunk, at most --context."),
    click.option("--kv-dtype", type=click.Choice(["float16", "float32", "int8"]), default="float16", show_default=True,
                 help="Number format of the KV cache; float32 takes twice the RAM, int8 little more than half."),
    click.option("--swap-experts", is_flag=True,
                 help="If a model with experts fits nowhere, let boards read those from disk that their RAM lacks. "
                      "Much slower; 'plan' tells how slow."),
]  # fmt: skip


def with_plan_options(command):
    """Add the options that `make_settings` takes to a command."""
    for option in reversed(_PLAN_OPTIONS):
        command = option(command)
    return command


def make_settings(manifest, context, slots, chunk, kv_dtype, objective, swap_experts=False):
    """Return plan settings from options. Raise UsageError if the context is longer than the model's; print a note if a
    chunk would be longer than the context."""
    from edgellm.plan import Settings

    most = manifest.max_seq_len
    if context is not None and context > most:
        raise UsageError(f"--context is {context}, but {manifest.model} supports at most {most}")
    context = context or min(config.DEFAULT_CONTEXT, most)
    if chunk > context and chunk != config.DEFAULT_CHUNK:
        note(f"--chunk is {chunk}, but a slot holds {context} tokens: chunks will have {context}.")
    return Settings(context, slots, chunk, kv_dtype, objective, swap_experts)
