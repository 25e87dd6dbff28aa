"""All checks of a server: each dialect's first connection alone, then its checks, some at a time, then its events."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

from vivavoce.errors import MissingExtra, RequestError
from vivavoce.serving.conformance.link import Notes
from vivavoce.serving.conformance.rules import FROM, VERDICTS, Check, Finding, Full, Row, Skipped, Wrong, listed
from vivavoce.serving.conformance.target import Target

# dialect -> the modules that have its checks, the class that speaks it
DIALECTS = {
    "moshi": (("moshi",), "moshi_chat:MoshiDialect"),
    "realtime": (("realtime", "realtime_items", "realtime_responses"), "realtime_session:RealtimeDialect"),
    "beta": (("beta",), "realtime_session:BetaDialect"),
    "live": (("live", "live_routes"), "live_session:LiveDialect"),
    "rest": (("rest", "rest_chat"), "rest:RestDialect"),
}
AT_ONCE = 3  # connections


@dataclass
class Report:
    """What was found. `asked`: the dialects that were looked for."""

    url: str
    asked: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def summary(self) -> dict[str, dict[str, int]]:
        """Dialect -> verdict -> how many rows."""
        counts = {name: Counter(row.verdict for row in self.rows if row.dialect == name) for name in self.asked}
        return {name: {verdict: count[verdict] for verdict in VERDICTS if count[verdict]}
                for name, count in counts.items() if count}  # fmt: skip

    @property
    def wrong(self) -> list[Row]:
        """The rows that depart from the protocol."""
        return [row for row in self.rows if row.verdict == "wrong"]

    @property
    def there(self) -> list[str]:
        """The dialects that the server speaks at all."""
        return [name for name, counts in self.summary.items() if set(counts) - {"not there", "skipped"}]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        rows = [asdict(row) for row in self.rows]
        return {"url": self.url, "seconds": round(self.seconds, 1), "summary": self.summary, "rows": rows}


def checks_of(dialect: str) -> list[Check]:
    """The checks of a dialect."""
    modules = [import_module(f"{__package__}.{name}") for name in DIALECTS[dialect][0]]
    found: list[Check] = modules[0].CHECKS
    return found


def chosen(dialects: Sequence[str], ids: Sequence[str]) -> dict[str, list[Check]]:
    """Dialect -> its checks, those whose id is, or begins with, or matches one of `ids`; all without any. Raises
    `RequestError` for a dialect or an id that there is not."""
    if strange := [name for name in dialects if name not in DIALECTS]:
        raise RequestError(f"dialect '{strange[0]}': there are {', '.join(DIALECTS)}")
    checks = {name: checks_of(name) for name in dialects or DIALECTS}
    for wanted in ids:
        if not any(_is(each.id, wanted) for all_ in checks.values() for each in all_):
            ids_of = listed([each.id for all_ in checks.values() for each in all_], 4)
            raise RequestError(f"--check {wanted}: there is no such check; there are {ids_of} (--list shows all)")
    if ids:
        checks = {name: [each for each in all_ if any(_is(each.id, one) for one in ids)]
                  for name, all_ in checks.items()}  # fmt: skip
    return {name: all_ for name, all_ in checks.items() if all_}


def _is(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(wanted.rstrip("/") + "/") or fnmatchcase(name, wanted)


async def conform(
    target: Target, dialects: Sequence[str] = (), ids: Sequence[str] = (),
    told: Callable[[Row], None] = lambda row: None, at_once: int = AT_ONCE,
) -> Report:
    """Check a server; `told` is called with each row as it is known. Raises `RequestError` where nobody answers, or
    where nothing is there of what was asked for."""
    checks = chosen(dialects, ids)
    report = Report(target.base, tuple(checks))
    begun = time.monotonic()
    await target.reach()
    await target.learn()
    for name, all_ in checks.items():
        for row in await Dialect(name, target, all_, told, at_once).run(whole=not ids):
            report.rows.append(row)
    report.seconds = time.monotonic() - begun
    return report


class Dialect:
    """The checks of one dialect on their way."""

    def __init__(
        self, name: str, target: Target, checks: Sequence[Check], told: Callable[[Row], None], at_once: int
    ):
        module, _, kind = DIALECTS[name][1].partition(":")
        self.name, self.checks, self.told = name, list(checks), told
        self.notes = Notes()
        self.speaker = getattr(import_module(f"{__package__}.{module}"), kind)(target, self.notes)
        self.at_once = asyncio.Semaphore(at_once)

    async def run(self, whole: bool) -> list[Row]:
        """A row for each check, in their order, and one for each event of servers. `whole`: all checks are run."""
        first, *rest = self.checks
        row = await self.one(first)
        if whole and row.verdict == "not there" and self.name != "rest":  # whose routes stand each for itself
            others = [self._row(each, row.verdict, row.detail) for each in rest]
            return [row, *others]
        if whole and row.verdict in ("wrong", "skipped") and self.name != "rest":
            words = "no conversation can be begun: see the first check"
            return [row, *(self._row(each, "skipped", words) for each in rest), *self.events(True)]
        together = [each for each in rest if not each.alone]
        found = dict(zip([each.id for each in together], await asyncio.gather(*map(self._beside, together))))
        rows = [row]
        for each in rest:
            done = found.get(each.id)
            rows.append(done or await self.one(each))  # alone, or there was no room for it
        return [*rows, *self.events(whole)]

    async def _beside(self, check: Check) -> Row | None:
        """A row, or None where the server has no room for it beside others."""
        async with self.at_once:
            try:
                return await self.one(check, fails=(Full,))
            except Full:
                return None

    async def one(self, check: Check, fails: tuple[type[Exception], ...] = ()) -> Row:
        """Run a check; findings of the kinds `fails` are raised."""
        begun = time.monotonic()
        verdict, detail = "ok", ""
        try:
            detail = await check.run(self.speaker) or ""
        except fails:
            raise
        except Full as full:
            verdict, detail = full.then.verdict, str(full)
        except Finding as finding:
            verdict, detail = finding.verdict, str(finding)
        except MissingExtra:
            raise
        except Exception as error:  # what the server sent has a shape that nobody thought of
            verdict, detail = Wrong.verdict, f"what came cannot be read: {type(error).__name__}: {error}"
        return self._row(check, verdict, detail, time.monotonic() - begun)

    def _row(self, check: Check, verdict: str, detail: str, seconds: float = 0.0) -> Row:
        row = Row(self.name, check.id, check.event, check.way, verdict, " ".join(detail.split()), check.sends,
                  check.expects, round(seconds, 2))  # fmt: skip
        self.told(row)
        return row

    def events(self, whole: bool) -> list[Row]:
        """A row for each event that servers send: whether all of them were as they must be."""
        known: Mapping[str, Any] = self.speaker.events
        elsewhere: Mapping[str, str] = self.speaker.elsewhere
        names = [*known, *(name for name in self.notes.faults if name not in known)]
        rows = []
        for name in names:
            count, faults = self.notes.counts[name], self.notes.faults[name]
            if not (whole or count or faults):
                continue
            verdict, detail = "ok", f"{count} came"
            if faults:
                words = [f"{fault} ({times} times)" if times > 1 else fault for fault, times in faults.most_common(3)]
                verdict, detail = "wrong", "; ".join(words)
            elif not count:
                verdict, detail = Skipped.verdict, elsewhere.get(name, "none came: no check here has called it up")
            where = f"{self.name}/from-server/{name}"
            row = Row(self.name, where, name, FROM, verdict, detail, expects="the fields of its type, in their order")
            self.told(row)
            rows.append(row)
        return rows
