"""The doctor on token stores: each planted fault is found and named, and a healthy one has none."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from doctor.planted import RATE, SPECS, corpus, found, nothing, store, token_rows
from vivavoce.codecs.build import build_codec
from vivavoce.data import tokens
from vivavoce.data.corpora import open_corpus
from vivavoce.data.tokenize import tokenize
from vivavoce.data.tokens import StreamSpec
from vivavoce.doctor.examine import doctor
from vivavoce.doctor.store import look_at_store
from vivavoce.errors import DataError, RequestError


@pytest.fixture
def unchecked(monkeypatch):
    """A writer that takes what it would refuse: what another program may have written."""

    def kept(identity, name, spec, channel):
        if spec.width:
            return np.asarray(channel, np.float16)
        return [np.asarray(level).astype(spec.dtype) for level in channel]

    monkeypatch.setattr(tokens, "_checked", kept)


def test_nothing_is_wrong_with_a_healthy_one(tmp_path):
    report = doctor([str(store(tmp_path / "s", token_rows()))], quiet=True)
    nothing(report)
    assert [name for name, _ in report.unchecked] == ["fingerprints"] and len(report.checked) == 11
    assert "units[0]: 5950 tokens, 8 of 8 codes used" in "\n".join(report.facts)


def test_nothing_is_wrong_with_what_our_own_tokenizer_makes(tmp_path):
    """A corpus through a codec with strides, into a store; compared with the codec itself."""
    codec = build_codec({"sample_rate": RATE, "filters": 2, "dim": 8, "ratios": [4, 8, 10], "codebooks": 2,
                         "codebook_size": 16}).eval()  # fmt: skip
    clips = open_corpus(corpus(tmp_path / "c")).clips
    tokenize(clips, {"voice": codec}, tmp_path / "s", quiet=True)
    report = look_at_store(tmp_path / "s", tokenizers={"voice": codec}, quiet=True)
    findings = [f for f in report.findings if f.check != "dead-codes"]  # a codec with fresh weights may use few
    assert findings == [] and "fingerprints" in report.checked


def changed(rows, number, **fields):
    rows[number] = replace(rows[number], **fields)
    return rows


def with_stream(rows, number, name, channels):
    return changed(rows, number, streams={**rows[number].streams, name: channels})


def empty(rows):
    return with_stream(rows, 3, "units", [np.zeros((1, 0), np.int64)])


def cut(rows):
    return with_stream(rows, 3, "units", [rows[3].streams["units"][0][:, :40]])


def uneven_levels(rows):
    first, second = rows[3].streams["voice"][0]
    return with_stream(rows, 3, "voice", [[first, second[:-7]]])


def uneven_channels(rows):
    units = rows[3].streams["units"][0]
    return with_stream(rows, 3, "units", [units, units[:, :30]])


def beyond(rows):
    units = rows[3].streams["units"][0].copy()
    units[0, 5] = 11
    return with_stream(rows, 3, "units", [units])


def collapsed(rows):
    return [with_stream(rows, n, "units", [row.streams["units"][0] * 0 + 5])[n] for n, row in enumerate(rows)]


def dead(rows):
    """Three of eight codes never occur."""
    return [with_stream(rows, n, "units", [row.streams["units"][0] % 5])[n] for n, row in enumerate(rows)]


def copied(one, other):
    return lambda rows: changed(rows, other, streams=rows[one].streams, duration=rows[one].duration)


def leaking(rows):
    return changed(rows, 3, speaker=("s0",))


# fault -> (how the rows are changed, the check, how bad, what the first place must say)
FAULTS = {
    "no tokens": (empty, "zero-length", "fault", "u3, stream 'units'"),
    "shorter than its audio": (cut, "lengths", "fault", "u3, stream 'units': 0.80 s of tokens, 2.00 s of audio"),
    "levels differ": (uneven_levels, "lengths", "fault", "u3, stream 'voice': levels of [25, 43] codes"),
    "channels differ": (uneven_channels, "lengths", "fault", "u3, stream 'units': [30, 100] frames"),
    "beyond the codebook": (beyond, "code-range", "fault", "u3, stream 'units', level 0"),
    "collapsed": (collapsed, "dead-codes", "fault", "units[0]: perplexity 1.0 of 8"),
    "dead": (dead, "dead-codes", "look", "units[0]: 3 of 8 codes never occur in 5950 tokens"),
    "the same row": (copied(0, 12), "copied-rows", "look", "u12 = u0"),
    "on both sides": (copied(0, 3), "store-splits", "fault", "u3 = u0"),
    "speaker on both sides": (leaking, "store-splits", "look", "s0"),
    "no licence": (lambda rows: changed(rows, 3, license="unknown"), "store-licences", "look", "u3"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found(kind, tmp_path, unchecked):
    plant, check, severity, place = FAULTS[kind]
    rows = token_rows()
    if kind == "speaker on both sides":  # all of the test part's, then: one would be a fault
        rows = [replace(row, speaker=("s0",)) if row.extra["split"] == "test" else row for row in rows]
    report = doctor([str(store(tmp_path / "s", plant(rows)))], quiet=True)
    finding = found(report, check)
    assert finding.severity == severity and finding.where[0].startswith(place), finding
    assert {f.check for f in report.findings} <= {check, "copied-rows"}


def test_one_of_several_speakers_on_both_sides_is_a_fault(tmp_path):
    rows = [replace(row, speaker=(f"t{n % 3}",)) if row.extra["split"] == "test" else row
            for n, row in enumerate(token_rows())]  # fmt: skip
    finding = found(doctor([str(store(tmp_path / "s", changed(rows, 3, speaker=("s0",))))], quiet=True), "store-splits")
    assert finding.severity == "fault" and finding.where == ("s0",)


def test_damaged_shards_and_rows_that_wait(tmp_path):
    folder = store(tmp_path / "s", token_rows())
    shard = folder / "shard-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[1500:2500] = bytes(1000)
    shard.write_bytes(content)
    (folder / "pending-00000.parquet").write_bytes(b"")
    report = doctor([str(folder)], quiet=True)
    finding = found(report, "damaged")
    assert finding.severity == "fault" and "shard-00000.parquet" in finding.where[0] and finding.count == 25
    assert found(report, "unfinished").where == ("pending-00000.parquet",)
    assert "15 read" in report.facts[0]


def test_two_of_one_id(tmp_path):
    folder = store(tmp_path / "s", token_rows(25))
    (folder / "shard-00001.parquet").write_bytes((folder / "shard-00000.parquet").read_bytes())
    finding = found(doctor([str(folder)], quiet=True), "row-ids")
    assert finding.severity == "fault" and finding.count == 25


def test_frames_with_nan(tmp_path, unchecked):
    specs = {"hidden": StreamSpec("made", "x", (50.0,), RATE, width=3)}
    rows = [replace(row, streams={"hidden": [np.ones((row.streams["units"][0].shape[1], 3))]}) for row in token_rows(5)]
    rows[2].streams["hidden"][0][4, 1] = np.nan
    report = doctor([str(store(tmp_path / "s", rows, specs))], quiet=True)
    assert found(report, "finite").where == ("u2, stream 'hidden'",)


def recipe_file(tmp_path, **units) -> str:
    said = {"kind": "integers", "size": 8, "rate": 50, **units}
    data = {
        **{"system": "x", "sample_rate": RATE, "tokenizers": {"u": said}, "streams": {"units": {"tokenizer": "u"}}},
        "stages": [{"name": "lm", "layout": {"kind": "flat"}, "tasks": {"go": {"fills": ["units"]}},
                    "backbone": {"layers": 1, "width": 16, "heads": 2}, "heads": {"units": "linear"}}],
        "interaction": {"kind": "offline"},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(data))
    return str(tmp_path / "r.yaml")


def test_the_recipes_tokenizer_must_have_made_it(tmp_path):
    folder = str(store(tmp_path / "s", token_rows()))
    nothing(doctor([folder], recipe=recipe_file(tmp_path, fingerprint="abc"), quiet=True))
    finding = found(doctor([folder], recipe=recipe_file(tmp_path, fingerprint="xyz"), quiet=True), "fingerprints")
    assert finding.severity == "fault" and "abc" in finding.what and "xyz" in finding.what
    report = doctor([folder], recipe=recipe_file(tmp_path, fingerprint="abc", size=6), quiet=True)
    assert "of 6" in found(report, "code-range").where[0]


def test_a_sample_of_rows(tmp_path, unchecked):
    folder = store(tmp_path / "s", beyond(token_rows()))
    report = look_at_store(folder, sample=4, quiet=True)
    assert "4 read" in report.facts[0] and not report.findings  # row 3 is none of them
    assert look_at_store(folder, tokenizers={"units": SimpleNamespace(fingerprint="abc")}, quiet=True).findings


def test_what_cannot_be_opened_is_refused(tmp_path):
    folder = store(tmp_path / "s", token_rows(5))
    (folder / "store.json").write_text("{")
    with pytest.raises(DataError, match=r"store\.json: damaged"):
        doctor([str(folder)])
    with pytest.raises(RequestError, match="2 places: a store is examined by itself"):
        doctor([str(folder), str(folder)])
    assert SPECS["units"].size == 8
