"""The command line, thin: a table of commands, each in its own file that is imported only when it is invoked.

`vivavoce --help` reads the table below and imports no command, so it answers at once. A command's file exposes
`register(app)`, which adds the command (or a group of commands) of its name to a typer application.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer
from typer.core import TyperCommand, TyperGroup

# name -> (module that registers it, one line for `--help`)
COMMANDS = {
    "ask": ("ask", "Ask a spoken question and get a spoken answer."),
    "talk": ("talk", "Serve a model: the page, and the clients that you have."),
    "conformance": ("conformance", "Check any server against the protocols, event by event."),
    "replay": ("replay", "Have a model hear recorded conversations again; compare."),
    "data": ("data", "Make, import and inspect corpora."),
    "tokenize": ("tokenize", "Turn a corpus into a store of tokens."),
    "doctor": ("doctor", "Say what is wrong with a corpus, store, recipe or run."),
    "resynth": ("resynth", "Send audio through a tokenizer and back."),
    "encode": ("encode", "Write the tokens of audio to a compact file."),
    "decode": ("encode", "Turn a compact file of tokens back into audio."),
    "train": ("train", "Train what a recipe describes; go on with a run."),
    "convert": ("convert", "Write a model in another format."),
    "eval": ("eval", "Measure a model on its tasks."),
    "systems": ("systems", "List, filter and explain published systems, and check them."),
    "bench": ("bench", "Measure speed: a model's step by stage, real-time factor."),
}


def load_command(name: str) -> TyperCommand | TyperGroup:
    """The command called `name`, made by the `register(app)` of the module that `COMMANDS` gives for it."""
    module, _ = COMMANDS[name]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.callback()(lambda: None)  # a callback keeps typer from folding an app of one command into that command
    import_module(f"{__name__}.{module}").register(app)
    return typer.main.get_group(app).commands[name]  # type: ignore[return-value]


class LazyCommand(TyperCommand):
    """Stands for a command in the list; the real one takes over as soon as arguments are to be parsed."""

    def make_context(self, info_name, args, parent=None, **extra):
        """The real command's context: from here on nothing of the stand-in is left."""
        return load_command(self.name or "").make_context(info_name, args, parent=parent, **extra)


class LazyGroup(TyperGroup):
    """All of `COMMANDS`, in their order, none imported."""

    def list_commands(self, ctx):
        """The commands' names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx, cmd_name):
        """A stand-in with the help line of the table, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        line = COMMANDS[cmd_name][1]
        return LazyCommand(cmd_name, help=line, short_help=line, rich_markup_mode=None)


app = typer.Typer(
    cls=LazyGroup,
    name="vivavoce",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from vivavoce import __version__

        typer.echo(f"vivavoce {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="On an error, show the stack trace too."),
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_print_version, is_eager=True),
) -> None:
    """Speech language models from shared parts: ask, train, measure, look up."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments` (default: the process's own) and leave with the exit code.

    A `VivavoceError` becomes one line on stderr and its own exit code (1 or 2). So does an error of the file system.
    Anything else is a fault of ours: one line as well, exit code 1. `--debug`, anywhere before `--`, adds the trace.
    """
    debug, given = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    try:
        code = app(args=given or ["--help"], prog_name="vivavoce", standalone_mode=False)
    except BaseException as error:
        if debug:
            import traceback

            traceback.print_exc()
        code = _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _take_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Take `--debug` out of the arguments wherever it stands, so that it works behind the command's name as well."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = [argument for argument in arguments[:end] if argument != "--debug"]
    return len(head) < end, head + arguments[end:]


def _report(error: BaseException) -> int:
    """Say `error` in one line on stderr; the exit code that it stands for."""
    from vivavoce.errors import VivavoceError

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        _say("interrupted")
        return 130
    if isinstance(error, BrokenPipeError):  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if type(error).__name__ == "NoArgsIsHelpError":  # a group such as `data` without its command
        print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
        return 2
    if hasattr(error, "format_message"):  # the parser's own errors: unknown option, missing argument, wrong type
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        _say(error.format_message() + hint)
        return getattr(error, "exit_code", 2)
    if isinstance(error, VivavoceError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, OSError):
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    _say(f"{type(error).__name__}: {error} (a fault of vivavoce's: --debug shows where)")
    return 1


def _say(message: str) -> None:
    """One line on stderr: line breaks inside the message become spaces."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
