"""The atlas: published speech systems as facts, and which of them this code proves.

Three tables of facts (`lm`, `codec`, `eval`) ship as CSV; the proof levels beside them are computed from tests
(`vivavoce.atlas.levels`), never typed in.
"""

from vivavoce.atlas.table import TABLES, System, find, load_systems, select

__all__ = ["TABLES", "System", "find", "load_systems", "select"]
