"""What a check is, and what it can find."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

VERDICTS = ("ok", "wrong", "not supported", "not there", "skipped")
# what a check is of: something that clients send, something that servers send, a connection, a route of HTTP
TO, FROM, LINK, ROUTE = "client", "server", "connection", "http"


class Finding(Exception):
    """Ends a check with a verdict that is not "ok"; the message says why."""

    verdict = "skipped"


class Wrong(Finding):
    """The server departs from the protocol: what came, and what was expected."""

    verdict = "wrong"


class NotSupported(Finding):
    """The server refuses with a clear error."""

    verdict = "not supported"


class NotThere(Finding):
    """There is nothing at that address (404)."""

    verdict = "not there"


class Skipped(Finding):
    """It cannot be known here, and why."""


class Full(Finding):
    """The server has no room at the moment: ask again when nobody else is there. `then`: what it is if it has none then
    either."""

    def __init__(self, message: str, then: type[Finding] = Skipped):
        super().__init__(message)
        self.then = then


Run = Callable[[Any], Awaitable[str | None]]


@dataclass(frozen=True)
class Check:
    """One thing that is tried. `event`: what it is about; `way`: `TO`, `LINK` or `ROUTE`; `sends` and `expects` in
    words. `run(dialect)` returns a note or nothing where all is well, and raises a `Finding` otherwise. `alone`: nobody
    else may be talking meanwhile."""

    id: str
    event: str
    way: str
    sends: str
    expects: str
    run: Run
    alone: bool = False


@dataclass(frozen=True)
class Row:
    """What was found of one check, or of one event that servers send."""

    dialect: str
    id: str
    event: str
    way: str
    verdict: str
    detail: str = ""
    sends: str = ""
    expects: str = ""
    seconds: float = 0.0


class Checks(list[Check]):
    """The checks of one dialect, each added by the decorator `@checks.of(…)`."""

    def __init__(self, dialect: str):
        super().__init__()
        self.dialect = dialect

    def of(
        self, event: str, name: str, sends: str, expects: str, way: str = TO, alone: bool = False
    ) -> Callable[[Run], Run]:
        """The check "DIALECT/event/name", done by the function below."""

        def add(run: Run) -> Run:
            place = event.split(" ")[-1].strip("/")
            made = Check(f"{self.dialect}/{place}/{name.replace(' ', '-')}", event, way, sends, expects, run, alone)
            if any(each.id == made.id for each in self):
                raise ValueError(f"two checks are called {made.id}")
            self.append(made)
            return run

        return add


def listed(things: Sequence[str], most: int = 8) -> str:
    """Names in a row, the first of many."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more if things else "nothing"


def shown(value: Any, most: int = 80) -> str:
    """A value as a detail quotes it."""
    text = repr(value) if not isinstance(value, str) else f"'{value}'"
    return text if len(text) <= most else text[: most - 1] + "…"
