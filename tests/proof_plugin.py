"""Collects what `@proves` tests show and keeps `src/vivavoce/atlas/levels.json` equal to it.

After a full run of the suite that passed, the table is written; with CI=true it is compared, and a stale one fails the
run. A row whose tests were skipped here (no recorded speech, say) keeps what the shipped table says. `--proves NAME`
runs only the tests that prove something about NAME; `--proves all` runs every such test and writes the table too.
"""

import json
import os
import re
from pathlib import Path

import pytest

TABLE = Path(__file__).resolve().parent.parent / "src" / "vivavoce" / "atlas" / "levels.json"
CLAIM = "proves"  # the name under which a report carries its claims from a worker to the controller


def pytest_addoption(parser):
    parser.addoption(
        "--proves", metavar="NAME", help="only tests that prove something about this system of the atlas; all: of any"
    )


def pytest_configure(config):
    config.stash[_RUN] = Run()


def pytest_collection_modifyitems(config, items):
    from vivavoce.atlas import find
    from vivavoce.atlas.levels import check_claim

    kinds = kinds_by_key()
    name = config.getoption("--proves")
    wanted = find(name).key if name and name != "all" else None
    kept, dropped = [], []
    for item in items:
        claims = []
        for mark in item.iter_markers("proves"):
            key = find(mark.kwargs["system"]).key
            try:
                check_claim(key, mark.kwargs["level"], mark.kwargs["check"], kinds)
            except ValueError as error:
                raise pytest.UsageError(f"{item.nodeid}: {error}") from error
            claims.append([key, mark.kwargs["level"], mark.kwargs["check"]])
        if claims:
            item.user_properties.append((CLAIM, claims))
        chosen = not name or (claims if wanted is None else any(key == wanted for key, _, _ in claims))
        (kept if chosen else dropped).append(item)
    if dropped:
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)


def kinds_by_key() -> dict[str, str]:
    """Every row's key -> which checks count for it."""
    from vivavoce.atlas import load_systems
    from vivavoce.atlas.levels import kind_of

    return {system.key: kind_of(system.table, system.family) for system in load_systems()}


class Run:
    """What one run has shown: every claim with its outcome."""

    def __init__(self):
        self.proofs: dict[tuple, str] = {}
        self.message = ""

    def add(self, report) -> None:
        """Note the claims of one report; a test's worst phase counts, skipped lies between failed and passed."""
        rank = {"passed": 0, "skipped": 1, "failed": 2}
        for name, claims in report.user_properties:
            if name == CLAIM:
                for key, level, check in claims:
                    claim = (key, level, check, report.nodeid)
                    if rank[report.outcome] >= rank[self.proofs.get(claim, "passed")]:
                        self.proofs[claim] = report.outcome

    def table(self, shipped: dict) -> dict:
        """The levels that this run shows; rows of which a test was skipped keep their shipped entry."""
        from vivavoce.atlas.levels import Proof, compute

        base = [Proof(k, lv, c, re.sub(r"\[.*", "", node), o) for (k, lv, c, node), o in self.proofs.items()]
        new = compute(base, kinds_by_key())
        for key in {proof.key for proof in base if proof.outcome == "skipped"} & shipped.keys():
            if not any(proof.key == key and proof.outcome == "failed" for proof in base):
                new[key] = shipped[key]
        return dict(sorted(new.items()))


_RUN = pytest.StashKey[Run]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    config = session.config
    if hasattr(config, "workerinput") or exitstatus != 0 or not is_full(config):
        return
    run = config.stash[_RUN]
    shipped = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    new = run.table(shipped)
    if new == shipped:
        return
    changed = sorted(key for key in new.keys() | shipped.keys() if new.get(key) != shipped.get(key))
    if os.environ.get("CI") == "true":
        session.exitstatus = 1
        run.message = f"atlas/levels.json is stale ({', '.join(changed)}): run 'make test' and commit it"
    else:
        TABLE.write_text(json.dumps(new, indent=1) + "\n")
        run.message = f"atlas/levels.json written anew ({', '.join(changed)}): commit it"


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_RUN].message:
        terminalreporter.write_line(config.stash[_RUN].message)


def is_full(config) -> bool:
    """Whether the whole suite was asked for: no paths, no selection by name, mark or last failure."""
    options = config.option
    paths = [Path(str(argument).split("::")[0]).resolve() for argument in config.args]
    everything = paths == [Path(__file__).resolve().parent]
    narrowed = options.keyword or options.markexpr or getattr(options, "lf", False) or options.deselect
    narrowed = narrowed or options.collectonly  # nothing is run
    return everything and not narrowed and options.proves in (None, "all")


class _Recorder:
    """Adds each report to the run (an object of its own, since the hook gets no config)."""

    def __init__(self, run: Run):
        self.run = run

    def pytest_runtest_logreport(self, report):
        self.run.add(report)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Recorder(session.config.stash[_RUN]), "proof-recorder")
