"""`vivavoce train --show-batch`: what is printed is what is learned."""

import json
import re

import numpy as np
import pytest
import torch

import vivavoce
from made_conversations import maker
from vivavoce.errors import RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.assembly import task_for
from vivavoce.training.next_token import ConversationTask
from vivavoce.training.recipes import show_batches

WORDS = {
    "system": "reader",
    "sample_rate": 16000,
    "tokenizers": {
        "words": {"kind": "words", "words": ["one", "two", "three"]},
        "units": {"kind": "integers", "size": 9, "rate": 25, "end": True},
    },
    "streams": {"text": {"tokenizer": "words", "clock": "order"}, "units": {"tokenizer": "units"}},
    "stages": [
        {
            "name": "lm",
            "layout": {"kind": "flat", "literals": {"say": 0}},
            "tasks": {
                "speak": {"given": ["text"], "fills": ["units"], "template": ["say", "text", "units"]},
                "listen": {"given": ["units"], "fills": ["text"], "template": ["units", "text"]},
            },
            "backbone": {"layers": 1, "width": 16, "heads": 2},
            "heads": {"text": "linear", "units": "linear"},
        }
    ],
    "interaction": {"kind": "offline"},
    "training": [
        {
            "name": "learn",
            "trains": "lm",
            "objective": {"kind": "next_token", "mix": "rows"},
            "data": {"kind": "token_patterns", "words": [2, 4], "kinds": 3},
            "loss_weights": {"units": 2.5},
            "steps": 1,
            "batch": 6,
        }
    ],
}


def shown(recipe, **options) -> str:
    return "\n".join(show_batches(recipe, **options))


def test_every_cell_stands_where_the_network_reads_it_with_its_weight():
    recipe = read_recipe(WORDS)
    text = shown(recipe)
    assert text.splitlines()[0] == "phase learn, step 0: next_token on token_patterns"
    assert "t = text (given)  u = units (learned, weight 2.5)" in text
    assert "t = text (learned, weight 1)  u = units (given)" in text
    task = task_for(recipe, recipe.training[0], assemble(recipe))
    batch = task.batch(0, 0, 1)
    assert set(batch.tasks) == {"speak", "listen"}
    compared = 0
    for row, name in enumerate(batch.tasks):
        head = rf"^row {row}: (\d+) columns, (\d+) of (\d+) cells scored\n"
        block = re.search(head + r"(.*?)\n(?=row|task|…|$)", text + "\n", re.S | re.M)
        if block is None:  # a batch's further rows
            continue
        words, units = (batch.cells.values[s][row, 0] for s in ("text", "units"))
        n, m = (int(batch.cells.lengths[s][row].max()) for s in ("text", "units"))
        said = [["one", "two", "three"][int(w) - 1] if w else "_" for w in words[:n]]
        cells = [f"t.{i}=" + (f"'{w}'" if w != "_" else w) for i, w in enumerate(said)]
        spoken = [f"u.{i}=" + ("end" if int(u) == 9 else str(int(u))) for i, u in enumerate(units[:m])]
        expected = ["<say>", *cells, *[cell + "*2.5" for cell in spoken]]
        if name == "listen":
            expected = [*spoken, *[cell + "*" for cell in cells]]
        lanes = [line.split("  ", 2)[2] for line in block[4].splitlines() if line.startswith("  lane")]
        assert " ".join(lanes).split() == expected
        assert (int(block[1]), int(block[2])) == (len(expected), m if name == "speak" else n)
        assert f'  text: "{" ".join(word for word in said if word != "_")}"' in block[4]
        compared += 1
    assert compared >= 3
    totals = re.findall(r"(\d+) rows of up to \d+ columns in 1 lane, (\d+)% padding", text)
    assert sum(int(rows) for rows, _ in totals) == 6 and any(int(padding) > 0 for _, padding in totals)


def test_nothing_is_trained_written_or_drawn(tmp_path, capsys):
    from vivavoce.cli import main

    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({**WORDS, "training": [{**WORDS["training"][0], "batch": 2}]}))
    for arguments, count in ((["--show-batch"], 1), (["--show-batch", "3"], 3)):
        with pytest.raises(SystemExit) as done:
            main(["train", str(path), *arguments, "--run", str(tmp_path / "run")])
        assert done.value.code == 0
        out = capsys.readouterr().out
        assert len(re.findall(r"^phase learn, step \d", out, re.M)) == count
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.yaml"]
    for arguments, expected in (
        (["--phase", "sing"], "no phase 'sing' in 'reader'; there are learn"),
        (["--set", "training.learn.data.words=[0]"], "data.words"),
    ):
        with pytest.raises(SystemExit) as done:
            main(["train", str(path), "--show-batch", *arguments])
        assert done.value.code == 2 and expected in capsys.readouterr().err


def test_packed_rows_say_which_of_them_are_cut():
    data = {"training.patterns.data.pack": True, "training.patterns.data.context": 80}
    recipe = read_recipe("layout-flat", "smoke", {**data, "training.patterns.tasks": {"joint": 1}})
    text = shown(recipe)
    task = task_for(recipe, recipe.training[0], assemble(recipe))
    columns = task.system.placed(task.batch(0, 0, 1).cells, "joint")[1].columns.tolist()
    assert f"packed: {sum(columns)} columns one behind another, none empty; rows see at most 80" in text
    told = re.findall(r"^  row (\d+) is cut: (\d+) columns in pieces of ([\d, ]+)$", text, re.M)
    long = {row: length for row, length in enumerate(columns) if length > 80}
    assert 0 < len(long) < len(columns) and {int(row): int(length) for row, length, _ in told} == long
    for _, length, parts in told:
        sizes = [int(part) for part in parts.split(", ")]
        assert sum(sizes) == int(length) and set(sizes[:-1]) == {80} and 0 < sizes[-1] <= 80


def test_pairs_stand_side_by_side(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": [5, 6], "chosen": [7, 8], "rejected": [4]}) + "\n")
    text = shown(read_recipe("layout-dedup", "smoke", {
        "training.patterns.objective": {"kind": "preference", "loss": "ipo", "beta": 0.2},
        "training.patterns.data": {"kind": "preferences", "path": str(path)}, "training.patterns.batch": 1,
    }))  # fmt: skip
    assert "1 pairs: ipo of sums of log-probabilities, beta 0.2; reference: frozen" in text
    lanes = [line.split("  ", 2)[2].split() for line in text.splitlines() if line.startswith("  lane")]
    assert lanes == [["u.0=5", "u.1=6", "u.2=7*", "u.3=8*", "u.4=end*"], ["u.0=5", "u.1=6", "u.2=4*", "u.3=end*"]]
    assert "pair 0, chosen: 5 columns, 3 of 5 cells scored" in text and "pair 0, rejected: 4 columns" in text


def test_conversations_show_what_was_told_and_what_pads_weigh():
    model = vivavoce.build("mini", "smoke")
    made = maker(model.system.encoder.front, 129, codebooks=3, size=16)(frames=48, told=1.0)
    task = ConversationTask("t", model.system.encoder, model.system.stage, made, ("heard", "text"), 2,
                            texts=model.system.vocabularies)  # fmt: skip
    batch = task.batch(0, 0, 1)
    lines = task.show(batch)
    text = "\n".join(lines)
    heard, said = (model.system.vocabularies[s].text(batch[s][0, 0].tolist()) for s in ("heard", "text"))
    assert f'heard: "{heard}"' in text and f'text: "{said}"' in text and heard
    assert "h = heard (learned, weight 0.5 1)" in text
    cells = dict(re.findall(r"([ht]\.\d+)=(\S+)", text.split("row 1")[0]))
    for frame in range(40):
        word = int(batch["heard"][0, 0, frame])
        cell = cells[f"h.{frame}"]
        assert cell.endswith("*" if word else "*0.5") and cell.startswith("'" if word else "_")
        if not bool(batch["decided"][0, frame]):
            assert "*" not in cells[f"t.{frame}"], "what was told is not learned"
    assert not bool(batch["decided"][0].all())
    task.stage.eval(), task.encoder.eval()
    assert torch.isfinite(task.loss(batch, 0)["loss"])


def test_codec_and_word_tasks_say_what_their_rows_hold():
    from vivavoce.training.codec_task import CodecTask
    from vivavoce.training.word_task import WordTask

    model = vivavoce.build("mini", "smoke")
    clip = torch.zeros(1, 16000)
    clip[0, :8000] = 0.5
    task = CodecTask(model.system.codec, [clip], seconds=1.28, batch=2, level=(0.0, 0.0))
    lines = task.show(task.batch(0, 0, 1))
    assert lines[0] == "1 clips of 1.00 to 1.00 s, 1.0 s in all; 2 crops of 1.28 s (20480 samples), all learned"
    assert re.match(r"row 0: 0\.\d\d s of sound, [01]\.\d\d s of silence behind it; -\d+\.\d dB, peak 0\.50", lines[1])
    made = maker(model.system.encoder.front, 129, codebooks=3, size=16)(frames=48)
    words = WordTask("t", model.system.encoder, made, ["zero", "one", "two", "three"], ["zero"], 3, 0.2)
    batch = words.batch(0, 0, 1)
    lines = words.show(batch)
    for row in range(3):
        due = [f"{f}:'{list(words.classes)[int(c) - 1]}'" for f, c in enumerate(batch["words"][row]) if c]
        assert lines[1 + row] == f"row {row}: " + (" ".join(due) or "no word")


def test_an_unknown_batch_is_shown_by_its_tensors():
    from vivavoce.training.task import Task

    lines = Task().show({"a": torch.tensor([[1.0, 3.0]]), "b": [torch.zeros(2, dtype=torch.bool)]})
    assert lines == ["batch.a: float32 [1, 2], 1 to 3", "batch.b[0]: bool [2]"]


def test_a_recipe_without_training_has_nothing_to_show():
    with pytest.raises(RequestError, match="no training phases"):
        shown(read_recipe({**WORDS, "training": []}))


def test_vectors_are_shown_by_their_width():
    from vivavoce.layouts import StreamSpec, build_layout
    from vivavoce.training.show_batch import Grid, cell_weights, grid_lines

    streams = [StreamSpec("ear", rate=25, given=True), StreamSpec("pitch", rate=25)]
    places = build_layout({"kind": "parallel"}, streams).place({name: torch.tensor([2]) for name in ("ear", "pitch")})
    values = {"ear": torch.zeros(1, 2, 8), "pitch": torch.tensor([[[0.25], [-1.5]]])}
    lines = grid_lines(Grid(places, values, cell_weights(places, {"pitch": 0.5})))
    assert lines[-2:] == ["  lane 0   e.0=[8]      e.1=[8]", "  lane 1   p.0=0.25*0.5 p.1=-1.5*0.5"]
    assert np.isclose(cell_weights(places, {}).sum(), 2)
