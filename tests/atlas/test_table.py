"""The catalogue: every row is there, names are found, filters select."""

import json

import pytest

from vivavoce.atlas import find, load_systems, select
from vivavoce.cli import main
from vivavoce.errors import RequestError


def test_all_rows_are_there_under_unique_keys():
    systems = load_systems()
    assert [sum(s.table == table for s in systems) for table in ("lm", "codec", "eval")] == [215, 148, 86]
    assert len({s.key for s in systems}) == 449
    assert all(s.name and s.family and s.about and s.facts["year"] for s in systems)


def test_every_language_model_names_its_components():
    assert all(s.needs for s in select(table="lm"))
    assert "layout:multi-stream-duplex" in find("moshi").needs
    assert sum("layout:delay" in s.needs for s in select(table="lm")) == 11


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("moshi", "lm/moshi"),
        ("codec/whisper", "codec/whisper"),
        ("lm/whisper", "lm/whisper"),
        ("SpiRit LM", "lm/spirit-lm"),
        ("sWUGGY", "eval/2"),
        ("eval/2", "eval/2"),
        ("EnCodec", "codec/encodec"),
        ("MIMI", "codec/mimi"),
    ],
)
def test_names_are_found(name, key):
    assert find(name).key == key


@pytest.mark.parametrize("id", ["taste", "whisper", "speechflow", "wav2seq", "uniwav"])
def test_ids_in_two_tables_must_say_which(id):
    with pytest.raises(RequestError, match=f"lm/{id} or codec/{id}"):
        find(id)


def test_an_unknown_name_says_what_is_near():
    with pytest.raises(RequestError, match="near: lm/moshi"):
        find("moshy")


def test_filters():
    assert {s.table for s in select(table="codec")} == {"codec"}
    assert {s.family for s in select(family="full-duplex")} == {"full-duplex"}
    assert {s.id for s in select(family="duplex", needs=["temporal+depth"])} == {"moshi", "voila"}
    assert len(select(level="listed")) == 449
    for wrong in ({"table": "x"}, {"level": "x"}, {"family": "no such"}, {"needs": ["no such part"]}):
        with pytest.raises(RequestError):
            select(**wrong)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code, *capsys.readouterr()


def test_command_lists_explains_and_prints_json(capsys):
    code, out, _ = run(capsys, "systems")
    assert code == 0 and out.count("\n") == 450 and "449 rows" in out
    code, out, _ = run(capsys, "systems", "moshi")
    assert code == 0 and "Moshi  (lm/moshi)" in out and "level" in out
    code, out, _ = run(capsys, "systems", "--table", "codec", "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 148 and {"table", "id", "name", "level"} <= rows[0].keys()


@pytest.mark.parametrize(
    "arguments",
    [["nonsense-system"], ["--table", "music"], ["--level", "great"], ["moshi", "--table", "lm"], ["whisper"]],
)
def test_command_refuses_what_makes_no_sense(capsys, arguments):
    code, _, err = run(capsys, "systems", *arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_check_without_a_checkout_says_what_to_do(capsys, monkeypatch, tmp_path):
    import vivavoce

    monkeypatch.setattr(vivavoce, "__file__", str(tmp_path / "site" / "vivavoce" / "__init__.py"))
    code, _, err = run(capsys, "systems", "--check", "moshi")
    assert code == 2 and "source checkout" in err and "make test" in err
