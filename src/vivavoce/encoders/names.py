"""Names of tensors here and in a published format: one table, read both ways."""

import re
from collections.abc import Mapping

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Names:
    """A table of their names of modules or tensors and ours; `*` stands for a number, the same ones in both names.

    What follows a module's name in a tensor's stays as it is.
    """

    def __init__(self, table: Mapping[str, str]):
        self._ours, self._theirs = dict(table), {ours: theirs for theirs, ours in table.items()}

    def ours(self, theirs: str) -> str | None:
        """Our name of their tensor; None for one that the table does not know."""
        return _looked_up(self._ours, theirs)

    def theirs(self, ours: str) -> str | None:
        """Their name of our tensor; None for one that the table does not know."""
        return _looked_up(self._theirs, ours)


def _looked_up(table: Mapping[str, str], name: str) -> str | None:
    numbers, general = _NUMBER.findall(f"{name}."), _NUMBER.sub("*", f"{name}.")[:-1]
    for known in (name, general):
        stem, _, leaf = known.rpartition(".")
        for key, rest in ((known, ""), (stem, f".{leaf}")):
            if key in table:
                found = table[key]
                for number in numbers:
                    found = found.replace("*", number, 1)
                return f"{found}{rest}"
    return None
