"""Put what `vivavoce conformance` finds of our own server into docs/protocols.md: run it when a dialect has changed.

    .venv/bin/python docs/show_protocols.py
"""

import asyncio
import re
from pathlib import Path

PAGE = Path(__file__).resolve().with_name("protocols.md")
BLOCK = re.compile(r"(<!-- table of (\w+) -->\n).*?(<!-- end of the table -->)", re.DOTALL)
SPEED = 3.0  # times faster than real time


def look(model: str = "tone"):
    """The report of a server of `model` on this machine."""
    import vivavoce
    from vivavoce.serving.app import Server, create_app
    from vivavoce.serving.clock import Clock
    from vivavoce.serving.conformance.runner import conform
    from vivavoce.serving.conformance.target import target_of
    from vivavoce.serving.core import Core
    from vivavoce.serving.run import running
    from vivavoce.serving.settings import ServerSettings

    core = Core(vivavoce.load(model), model, ServerSettings(rows=4), Clock(SPEED))
    with running(create_app(Server(core, drain=0.0))) as port:
        return asyncio.run(conform(target_of(f"http://127.0.0.1:{port}", timeout=30.0, pace=SPEED)))


def written(page: str, report) -> str:
    """The page with its tables as the report has them."""
    from vivavoce.serving.conformance.table import markdown

    def table(match: re.Match) -> str:
        rows = [row for row in report.rows if row.dialect == match[2]]
        return f"{match[1]}{markdown(rows)}\n{match[3]}"

    return BLOCK.sub(table, page)


def main() -> None:
    """Look, and rewrite the page."""
    report = look()
    for row in report.wrong:
        print(f"wrong: {row.id}: {row.detail}")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")


if __name__ == "__main__":
    main()
