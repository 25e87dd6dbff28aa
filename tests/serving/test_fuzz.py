"""Strangers do their worst in every dialect: the server answers with words, or ends it with a code, and goes on.

200 cases of each in `make test`, 10,000 in `make check-long`; what broke once is a case of its own below.
"""

import os

import pytest

from serving.fuzz.runner import DIALECTS, fuzz

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
COUNT = 10_000 if LONG else 200


@pytest.mark.parametrize("dialect", DIALECTS)
def test_strangers_break_nothing(dialect):
    report = fuzz(dialect, seed=0, count=COUNT)
    print(report.told())
    assert not report.faults, "\n\n".join(report.faults[:5])
    assert not report.left, report.left
    assert report.played == COUNT and report.witness[0] > 1.0
    assert report.witness[1] < 10.0, "the conversation beside it was not served for seconds"
