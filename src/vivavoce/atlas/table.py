"""The rows of the atlas: loading, finding by name, filtering. Standard library only, so that listing is instant."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from vivavoce.atlas.levels import LEVELS
from vivavoce.errors import RequestError

HERE = Path(__file__).parent
TABLES = ("lm", "codec", "eval")


@dataclass(frozen=True)
class System:
    """One published system, codec, encoder, benchmark, metric or data set.

    `facts` are the columns of its table; `needs` the components that express it; `level` what tests prove of it, by the
    tests in `proofs` (level -> test ids).
    """

    table: str
    id: str
    name: str
    family: str
    level: str = "listed"
    needs: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    proofs: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`table/id`: unique, while five ids stand in two tables."""
        return f"{self.table}/{self.id}"

    @property
    def about(self) -> str:
        """One line on what it is."""
        said = self.facts.get("one_line") or self.facts.get("task_types", "-")
        return self.family if said == "-" else said

    def to_json(self) -> dict[str, Any]:
        """The row as plain data: key fields first, then needs, proofs and all facts."""
        plain = {"table": self.table, "id": self.id, "name": self.name, "family": self.family, "level": self.level}
        proofs = {level: list(tests) for level, tests in self.proofs.items()}
        return {**plain, "needs": list(self.needs), "proofs": proofs, "facts": dict(self.facts)}


def _components() -> dict[str, tuple[str, ...]]:
    """Language models' ids -> the components that they need, as `axis:component`."""
    needs: dict[str, list[str]] = {}
    with (HERE / "components.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for system in row["systems"].split(";"):
                needs.setdefault(system, []).append(f"{row['axis']}:{row['component']}")
    return {system: tuple(found) for system, found in needs.items()}


# Where a table has no list of components, these columns say what a row is made of.
_NEED_COLUMNS = {"codec": ("encoder_arch", "quantizer", "decoder_arch"), "eval": ("task_types", "input->output")}


@lru_cache(maxsize=1)
def load_systems() -> tuple[System, ...]:
    """All rows of the three tables, in the tables' order, with their proof levels."""
    levels_file = HERE / "levels.json"
    proved = json.loads(levels_file.read_text()) if levels_file.exists() else {}
    components = _components()
    systems = []
    for table in TABLES:
        with (HERE / f"systems_{table}.csv").open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                key = f"{table}/{row['id']}"
                if table == "lm":
                    needs = components.get(row["id"], ())
                else:
                    needs = tuple(f"{c}:{row[c]}" for c in _NEED_COLUMNS[table] if row[c] not in ("", "-"))
                shown = proved.get(key, {})
                systems.append(
                    System(
                        table=table,
                        id=row["id"],
                        name=row["name"],
                        family=row["family" if table == "lm" else "kind"],
                        level=shown.get("level", "listed"),
                        needs=needs,
                        facts={column: text for column, text in row.items() if column not in ("id", "name")},
                        proofs={level: tuple(tests) for level, tests in shown.get("proofs", {}).items()},
                    )
                )
    return tuple(systems)


def _plain(text: str) -> str:
    """Lower case, letters and digits only: `SpiRit-LM (Base)` and `spirit-lm` meet in `spiritlm`."""
    return re.sub(r"[^a-z0-9]+", "", text.split("(")[0].lower())


def find(name: str) -> System:
    """The one system that `name` means: `table/id`, an id, or its name (case and punctuation do not matter).

    Raises `RequestError` for an unknown name (with what is near) and for an id that stands in two tables.
    """
    systems = load_systems()
    wanted = name.strip().lower()
    for match in (
        [s for s in systems if s.key == wanted],
        [s for s in systems if s.id.lower() == wanted],
        [s for s in systems if _plain(s.name) == _plain(wanted)],
    ):
        if len(match) == 1:
            return match[0]
        if match:
            raise RequestError(f"'{name}' stands in two tables: say {' or '.join(s.key for s in match)}")
    near = get_close_matches(_plain(name), [_plain(text) for s in systems for text in (s.id, s.name)], n=3)
    keys = {_plain(text): s.key for s in systems for text in (s.id, s.name)}
    hint = f"; near: {', '.join(dict.fromkeys(keys[n] for n in near))}" if near else ""
    raise RequestError(f"the atlas has no '{name}'{hint} ('vivavoce systems' lists all)")


def select(
    table: str | None = None, family: str | None = None, needs: Iterable[str] = (), level: str | None = None
) -> list[System]:
    """The systems of a table, of families containing `family`, that need all of `needs`, proved to `level` or beyond.

    `family` and `needs` match any part of the text, case aside. Raises `RequestError` when a filter can match nothing.
    """
    systems: list[System] = list(load_systems())
    if table is not None:
        if table not in TABLES:
            raise RequestError(f"--table {table}: the tables are {', '.join(TABLES)}")
        systems = [s for s in systems if s.table == table]
    if level is not None:
        if level not in LEVELS:
            raise RequestError(f"--level {level}: the levels are {', '.join(LEVELS)}")
        systems = [s for s in systems if LEVELS.index(s.level) >= LEVELS.index(level)]
    if family is not None:
        known = sorted({s.family for s in load_systems()})
        if not any(family.lower() in f for f in known):
            raise RequestError(f"--family {family}: the families are {', '.join(known)}")
        systems = [s for s in systems if family.lower() in s.family]
    for need in needs:
        if not any(need.lower() in text.lower() for s in load_systems() for text in s.needs):
            raise RequestError(f"--needs {need}: no row needs it; one row's components: 'vivavoce systems moshi'")
        systems = [s for s in systems if any(need.lower() in text.lower() for text in s.needs)]
    return systems
