"""The documentation: it builds strictly, names every floor and command, and what it shows works."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from shown_commands import PRINTED, ROOT, Shown, run_shown, shown_commands
from streaming_contract import alone, check_lockstep, check_padded_batch, check_published
from warm_command import warm

PAGES = sorted((ROOT / "docs").rglob("*.md"))
# Whose commands train for a quarter of a minute and more: in `make check-long`.
LONG = ("doctor.md", "gslm.md", "moshi.md", "slam.md", "training.md")
RUN = [page for page in PAGES if page.name not in LONG or os.environ.get("VIVAVOCE_LONG") == "1"]


def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    from vivavoce.cli import COMMANDS

    reference = (tmp_path / "site" / "commands.html").read_text()
    for name in COMMANDS:
        assert f'id="{name}"' in reference and f"vivavoce {name}" in reference
    assert "[[commands]]" not in reference
    python = (tmp_path / "site" / "python.html").read_text()
    assert 'id="vivavoce.systems.SpeechLM.reply"' in python and 'id="vivavoce.audio.read"' in python


def test_architecture_names_every_floor():
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = (ROOT / "docs" / "pictures" / "floors.svg").read_text()
    for folder in (ROOT / "src" / "vivavoce").iterdir():
        if (folder / "__init__.py").exists() and folder.name != "recipes":
            assert f"`{folder.name}`" in text, folder.name
            assert folder.name in picture or folder.name == "atlas", folder.name


@pytest.fixture(scope="module")
def commands():
    """A folder with a `vivavoce` that starts at once."""
    with tempfile.TemporaryDirectory() as folder, warm(Path(folder)):
        yield Path(folder)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_shown_commands_work(page: Path, tmp_path, commands):
    """All commands of a page one after another, as a reader would, in a folder that holds the examples."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for shown in shown_commands(page):
        if shown.skip is None:
            done = run_shown(shown.command, tmp_path, first=commands)
            told = done.stdout[-1500:] + done.stderr[-1500:]
            assert done.returncode == 0, f"{page.name}:{shown.line}: {shown.command}\n{told}"


@torch.no_grad()
def test_the_part_that_is_shown_keeps_the_streaming_contract():
    code = re.search(r"```python\n(import torch\n.*?)```", (ROOT / "docs" / "add-a-part.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code[1], names)
    module = names["RunningMean"](3).double()
    signals = [torch.randn(length, 3, dtype=torch.float64) for length in (9, 0, 4, 13)]
    singles = [alone(module, signal) for signal in signals]
    torch.testing.assert_close(singles[0][4], signals[0][:5].mean(0))
    check_padded_batch(module, signals, singles, 1e-9)
    check_lockstep(module, signals, singles, 1, 1e-9, most=5)
    check_published(module, 3)


@pytest.mark.parametrize("name", ["encoders.md", "first-steps.md", "gslm.md", "layouts.md", "moshi.md", "python.md"])
def test_python_prints_what_is_shown(name, tmp_path, monkeypatch):
    """All code of a page, one block after another, in a folder with the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / name).read_text()
    blocks = PRINTED.findall(page)
    assert len(blocks) == page.count("```python") == page.count("```text") > 0
    names: dict[str, object] = {}
    for code, shown in blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, name, "exec"), names)
        assert said.getvalue() == shown, code


def test_the_readmes_code_answers(tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code) == 1
    exec(code[0], {})
    assert capsys.readouterr().out == "seven\n" and (tmp_path / "answer.wav").stat().st_size > 10_000


def test_shown_commands_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n```console\n$ one --a \\\n    --b\noutput\n$ two\n```\n\n"
        "<!-- not run: slow -->\n```console\n$ three\n```\n"
        "```bash\n$ four\n```\n1. item\n\n    ```console\n    $ five\n    ```\n"
    )
    assert shown_commands(page) == [
        Shown(4, "one --a --b", None),
        Shown(7, "two", None),
        Shown(12, "three", "slow"),
        Shown(20, "five", None),
    ]
    assert run_shown("echo $VIVAVOCE_OFFLINE; exit 3", tmp_path).returncode == 3
