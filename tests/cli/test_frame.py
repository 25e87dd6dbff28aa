"""The frame of the command line: quick help, one-line errors, exit codes."""

import resource
import subprocess
import sys
import types

import pytest

from vivavoce import cli
from vivavoce.errors import AudioError, MissingExtra, RequestError, need


def run(*code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, check=False)


def quickest(*code: str, tries: int = 5) -> float:
    """The least of some computing times: the wall time of a machine that does nothing else."""
    times = []
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(*code).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_import_is_instant_and_pulls_nothing_heavy():
    heavy = "{'torch', 'numpy', 'transformers', 'matplotlib', 'pydantic'}"
    code = f"import vivavoce, sys; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    assert run("-c", code).returncode == 0, run("-c", code).stderr
    assert quickest("-c", "import vivavoce") < 0.5


def test_help_is_instant_and_lists_every_command():
    shown = run("-m", "vivavoce", "--help")
    assert shown.returncode == 0
    for name, (_, line) in cli.COMMANDS.items():
        assert f"  {name} " in shown.stdout and line[:40] in shown.stdout
    assert quickest("-m", "vivavoce", "--help") < 0.5


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself_without_torch(name):
    code = (
        "import sys; from vivavoce.cli import main\n"
        f"try: main(['{name}', '--help'])\n"
        "except SystemExit as left: assert not left.code\n"
        "assert 'torch' not in sys.modules"
    )
    shown = run("-c", code)
    assert shown.returncode == 0, shown.stderr
    assert "Usage: vivavoce " + name in shown.stdout


@pytest.fixture
def broken(monkeypatch):
    """A command `broken` that raises what the test puts into the list."""
    raises: list[BaseException] = []

    def register(app):
        @app.command("broken")
        def command(number: int = 0):
            """Always fails."""
            raise raises[0]

    module = types.ModuleType("vivavoce.cli.broken")
    module.register = register
    monkeypatch.setitem(sys.modules, "vivavoce.cli.broken", module)
    monkeypatch.setitem(cli.COMMANDS, "broken", ("broken", "Always fails."))
    return raises


def leave(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return left.value.code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RequestError("no such\ntask"), 2, "error: no such task\n"),
        (AudioError("q.wav: empty"), 1, "error: q.wav: empty\n"),
        (
            MissingExtra("lhotse", "train", "training"),
            1,
            "error: training needs the package 'lhotse': pip install 'vivavoce[train]'\n",
        ),
        (FileNotFoundError(2, "No such file or directory", "q.wav"), 1, "error: q.wav: No such file or directory\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "error: ZeroDivisionError: division by zero (a fault of vivavoce's: --debug shows where)\n",
        ),
    ],
)
def test_errors_are_one_line_with_an_exit_code(broken, capsys, error, code, line):
    broken.append(error)
    assert leave("broken") == code
    assert capsys.readouterr().err == line
    assert leave("broken", "--debug") == code
    traced = capsys.readouterr().err
    assert "Traceback" in traced and traced.endswith(line)


def test_interrupt_leaves_with_130(broken):
    broken.append(KeyboardInterrupt())
    assert leave("broken") == 130


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["broken", "--number", "many"], ["broken", "--nonsense"], ["broken", "extra"]]
)
def test_wrong_requests_leave_with_2_and_point_at_help(broken, capsys, arguments):
    assert leave(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "--help" in said


def test_debug_behind_a_double_dash_is_an_argument():
    assert cli._take_debug(["a", "--debug", "--", "--debug"]) == (True, ["a", "--", "--debug"])


def test_version():
    from vivavoce import __version__

    assert run("-m", "vivavoce", "--version").stdout == f"vivavoce {__version__}\n"


def test_a_missing_extra_is_named():
    with pytest.raises(MissingExtra, match=r"pip install 'vivavoce\[eval\]'"):
        need("no_such_package_at_all", "eval", "scoring")
