"""The code of the page on serving, run against a server as the page starts it."""

import contextlib
import io
from pathlib import Path

import vivavoce
from shown_commands import PRINTED, ROOT
from vivavoce.serving.app import Server, create_app
from vivavoce.serving.core import Core
from vivavoce.serving.run import running
from vivavoce.serving.settings import ServerSettings


def test_the_clients_code_prints_what_is_shown(tmp_path: Path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "talk.md").read_text()
    blocks = PRINTED.findall(page)
    assert len(blocks) == page.count("```python") == page.count("```text") == 3
    core = Core(vivavoce.load("mini"), "mini", ServerSettings(rows=2))
    names: dict[str, object] = {}
    with running(create_app(Server(core, drain=0.0))) as port:
        for code, shown in blocks:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(code.replace(":8998", f":{port}"), "talk.md", "exec"), names)
            assert said.getvalue() == shown, code
