"""The page on layouts: every picture in it is what its code prints."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layouts.md"


def test_pictures_are_what_the_code_prints():
    blocks = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 9
    names: dict[str, object] = {}
    for code, picture in blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, "layouts.md", "exec"), names)
        assert said.getvalue() == picture, code
