"""Tasks with layouts and templates of their own over one network: shared weights, equal readings, clear refusals."""

import math

import numpy as np
import pytest
import torch

import vivavoce
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.layouts import show
from vivavoce.lm.sampling import Sampling
from vivavoce.lm.slots import NOWHERE
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble, load
from vivavoce.training.assembly import task_for

RECIPE = {
    "system": "speaker",
    "sample_rate": 16000,
    "tokenizers": {
        "words": {"kind": "integers", "size": 9, "end": True},
        "codes": {"kind": "integers", "size": 11, "codebooks": 3, "rate": 25, "end": True},
    },
    "streams": {"text": {"tokenizer": "words", "clock": "order"}, "voice": {"tokenizer": "codes"}},
    "stages": [
        {
            "name": "lm",
            "layout": {"kind": "delay", "streams": ["voice"], "literals": {"speak": 0, "listen": 1}},
            "tasks": {
                "continue": {"given": ["voice[:prompt]"], "fills": ["voice"]},
                "speak": {"given": ["text"], "fills": ["voice"], "template": ["speak", "text", "layout"], "weight": 2},
                "listen": {"given": ["voice"], "fills": ["text"], "template": ["listen", "voice", "text"]},
                "mix": {"fills": ["text", "voice"], "layout": {"kind": "interleaved", "text": 1, "voice": 2}},
            },
            "backbone": {"layers": 1, "width": 32, "heads": 2, "feedforward": 64},
            "heads": {"text": "linear", "voice": "linear"},
            "decode": {"length": "end"},
        }
    ],
    "interaction": {"kind": "offline"},
    "training": [
        {
            "name": "patterns",
            "trains": "lm",
            "objective": {"kind": "next_token"},
            "data": {"kind": "token_patterns", "words": [2, 4]},
            "steps": 60,
            "batch": 12,
            "optimizer": {"learning_rate": 1e-2},
        }
    ],
}
TASKS = ("continue", "speak", "listen", "mix")


def build(seed: int = 0, **overrides):
    return assemble(read_recipe(RECIPE, "full", overrides), seed)


def some(model, rows: int = 3):
    """Cells of the made-up process."""
    return task_for(model.recipe, model.recipe.training[0], model).held_out(0), rows


@pytest.fixture(scope="module")
def model():
    return build()


def test_each_task_has_its_own_places(model):
    cells, _ = some(model)
    lines = {}
    for name in TASKS:
        used, places = model.system.placed(cells, name)
        lines[name] = show(places, 0).splitlines()
        texts, frames = (int(used.lengths[s][0].max()) for s in ("text", "voice"))
        cells_there = {"continue": 3 * frames, "speak": 1 + texts + 3 * frames, "listen": 1 + texts + 3 * frames,
                       "mix": texts + 3 * frames}  # fmt: skip
        assert int(places.valid[0].sum()) == cells_there[name]
        learned = {"continue": 3 * frames, "speak": 3 * frames, "listen": texts, "mix": texts + 3 * frames}[name]
        assert int(places.loss[0].sum()) == learned, "what a task gives is not learned"
    assert len(lines["continue"]) == len(lines["speak"]) == 3 and len(lines["listen"]) == len(lines["mix"]) == 1
    assert lines["speak"][0].split()[:2] == ["<0>", "t.0"] and lines["listen"][0].split()[:3] == ["<1>", "v0.0", "v1.0"]
    assert lines["mix"][0].split()[:4] == ["t.0*", "v0.0*", "v1.0*", "v2.0*"]


def test_all_tasks_share_every_weight(model):
    alone = build(**{"stages.lm.tasks": {}})
    one = read_recipe(RECIPE).model_dump(mode="json", exclude_defaults=True)
    one["stages"][0]["tasks"] = {"continue": one["stages"][0]["tasks"]["continue"]}
    one["stages"][0]["layout"]["streams"] = ["voice", "text"]
    single = assemble(read_recipe(one))
    literals = 2 * 32  # their table
    assert model.parameters == single.parameters + literals == alone.parameters
    lm = model.system.stage
    for name in TASKS:
        view = lm.on(model.system.layout_of(name))
        assert view.tables is lm.tables and view.head("voice") is lm.head("voice") and view.begin is lm.begin
        assert [slot.level for slot in view.slots["voice"]] == [0, 1, 2]
    assert [slot.lane for slot in lm.on(model.system.layout_of("listen")).slots["voice"]] == [0, 0, 0]
    assert [slot.lane for slot in lm.slots["text"]] == [NOWHERE], "the stage's own layout leaves text out"


def test_a_slot_has_the_same_table_and_head_in_every_layout(model):
    """The first voice token after the same begin vector: the same logits, whichever lane it stands in."""
    cells, _ = some(model)
    with torch.no_grad():
        tasks = {name: model.system(cells, name) for name in ("continue", "mix")}
    first = {name: [logits[:, 0] for logits in tasks[name]["voice"].logits] for name in tasks}
    torch.testing.assert_close(first["continue"][0], first["mix"][0])
    torch.testing.assert_close(tasks["mix"]["text"].logits[0][:, 0], tasks["mix"]["text"].logits[0][:, 0])
    lm = model.system.stage
    codes = cells.values["voice"]
    with torch.no_grad():
        begin = lm.begin[None].expand(len(codes), -1)
        text = lm.tables["text"][0].weight[cells.values["text"][:, 0, 0]]
        coarse = lm.tables["voice"][0].weight[codes[:, 0, 0]]
        mix = lm.backbone(torch.stack([begin, text, coarse], dim=1))
        delay = lm.backbone(torch.stack([begin, coarse], dim=1))
        by_hand = lm.head("voice")[1](mix[:, 2]), lm.head("voice")[1](delay[:, 1])
    torch.testing.assert_close(tasks["mix"]["voice"].logits[1][:, 2], by_hand[0])
    torch.testing.assert_close(tasks["continue"]["voice"].logits[1][:, 1], by_hand[1])


@pytest.mark.parametrize("name", TASKS)
def test_generation_through_next_is_the_argmax_of_the_whole(name):
    model = build(seed=3)
    system = model.system
    for parameter in system.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2)  # so that tokens differ
    given = {"speak": {"text": [1, 2, 3]}, "listen": {"voice": [[1, 2], [3, 4], [5, 6]]}}.get(name, {})
    items = [given, {key: np.asarray(value)[..., :1] for key, value in given.items()}]
    cells = model._cells(items, "fill")
    lengths = {stream: torch.tensor([5, 3]) for stream in system.task(name).fills}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "sampling", dict.fromkeys(system.filled, Sampling(temperature=0)))
        filled, walked = system.generate(name, cells, lengths, torch.arange(2))
    values = {**{key: value for key, value in cells.values.items()}, **{key: filled[key] for key in lengths}}
    values = {key: values.get(key, torch.full((2, levels, 0), -1)) for key, levels in (("text", 1), ("voice", 3))}
    with torch.no_grad():
        view = system.stage.on(system.layout_of(name))
        predictions = {n: view.predict(n, view.read(walked, values)) for n in view.order}
    compared, different = 0, set()
    for stream, prediction in predictions.items():
        end = system.streams[stream].spec.end
        for k, slot in enumerate(view.slots[stream]):
            logits = prediction.logits[k] if slot.level == 0 else prediction.logits[k][..., :end]
            here = prediction.loss[..., k] & (prediction.targets[..., k] >= 0)
            chosen = logits.gather(-1, prediction.targets[..., k : k + 1].clamp(min=0))[..., 0]
            assert float((logits.amax(-1) - chosen)[here].amax() if here.any() else 0) < 1e-4
            compared += int(here.sum())
            different |= set(prediction.targets[..., k][here].tolist())
    assert compared == int(walked.loss.sum()) > 2 and len(different) > 2


@pytest.mark.parametrize("mix", ["batches", "rows"])
def test_mixed_tasks_all_learn_from_one_training(mix):
    model = build(**{"training.patterns.objective": {"kind": "next_token", "mix": mix}})
    phase = model.recipe.training[0]
    task = task_for(model.recipe, phase, model)
    before = task.evaluate(0)
    optimizer = torch.optim.AdamW(model.system.stage.parameters(), lr=1e-2)
    drawn: dict[str, int] = {}
    for step in range(phase.steps):
        batch = task.batch(step, 0, 1)
        for name in batch.tasks:
            drawn[name] = drawn.get(name, 0) + 1
        optimizer.zero_grad()
        task.loss(batch, step)["loss"].backward()
        optimizer.step()
    after = task.evaluate(0)
    for name in TASKS:
        assert after[f"{name}_nats"] < 0.85 * before[f"{name}_nats"], name
    total = 60 * 12
    assert sum(drawn.values()) == total and set(drawn) == set(TASKS)
    share = drawn["speak"] / total
    assert abs(share - 0.4) < (0.08 if mix == "rows" else 0.25), "weight 2 of 5"
    assert (len({len(set(task.batch(step, 0, 1).tasks)) for step in range(9)} - {1}) > 0) == (mix == "rows")


def test_a_mixed_batch_has_the_loss_of_its_parts():
    model = build(**{"training.patterns.objective": {"kind": "next_token", "mix": "rows"}})
    task = task_for(model.recipe, model.recipe.training[0], model)
    batch = task.batch(5, 0, 1)
    assert len(set(batch.tasks)) > 2
    with torch.no_grad():
        whole = task.loss(batch, 5)
        total = count = 0.0
        for row, name in enumerate(batch.tasks):
            one = task.loss(type(batch)(*_one(batch, row, name)), 5)
            total, count = total + float(one["loss"] * one["weight"]), count + float(one["weight"])
    assert count == float(whole["weight"]) and total / count == pytest.approx(float(whole["loss"]), rel=1e-5)


def _one(batch, row, name):
    from vivavoce.training.token_task import taken

    return taken(batch.cells, [row]), (name,)


def test_log_probabilities_are_those_of_the_task_asked_for(model):
    text, voice = [1, 2, 9], [[1, 2, 11], [3, 4, 11], [5, 6, 11]]
    row = [("text", text, False), ("voice", voice, True)]
    scores = {name: model.loglik(row, task=name) for name in ("speak", "mix")}
    with torch.no_grad():
        cells = model._cells([{"text": text, "voice": voice}], "t")
        for name, found in scores.items():
            known = {"text": torch.ones(1, 3, dtype=torch.bool)}
            prediction = model.system(cells, name, known)["voice"]
            for k in range(3):
                here = prediction.loss[0, :, k]
                nats = prediction.logits[k][0, here].log_softmax(-1)
                total = float(nats.gather(1, prediction.targets[0, here, k][:, None]).sum())
                assert math.isclose(found[f"voice[{k}]"][0], total, abs_tol=1e-4) and found[f"voice[{k}]"][1] == 3
    assert abs(scores["speak"]["voice[0]"][0] - scores["mix"]["voice[0]"][0]) > 1e-3
    hint = "'text' has no place in the layout of the stage; task= names one that has: speak"
    with pytest.raises(RequestError, match=hint):
        model.loglik(row)
    with pytest.raises(RequestError, match="task 'continue' has voice, not 'text'"):
        model.loglik(row, task="continue")


def test_saved_and_loaded_every_task_is_the_same_and_another_template_is_refused(model, tmp_path):
    model.save(tmp_path)
    again = vivavoce.load(tmp_path)
    for name, given in (("speak", {"text": [1, 2]}), ("listen", {"voice": [[1], [2], [3]]})):
        ours, theirs = (one.fill(name, given, length=4, seed=3) for one in (model, again))
        assert all(np.array_equal(ours[stream], theirs[stream]) for stream in ours) and ours
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text().replace("- listen\n", "- speak\n"))
    with pytest.raises(CheckpointError, match="another recipe"):
        load(tmp_path)


def test_a_stage_may_have_layouts_in_its_tasks_alone():
    recipe = {**RECIPE, "stages": [{**RECIPE["stages"][0]}]}
    del recipe["stages"][0]["layout"]
    recipe["stages"][0]["tasks"] = {
        "speak": {"given": ["text"], "fills": ["voice"],
                  "template": [7, "text", {"kind": "delay", "streams": ["voice"]}]},
        "mix": RECIPE["stages"][0]["tasks"]["mix"],
    }
    model = assemble(read_recipe(recipe))
    assert model.system.layout.lanes == 3 and model.system.layout_of("mix").lanes == 1
    assert model.fill("speak", {"text": [1]}, length=2)["voice"].shape[0] == 3
    recipe["stages"][0]["tasks"]["continue"] = {"fills": ["voice"]}
    with pytest.raises(RecipeError, match=r"tasks\.continue: give it a layout or a template"):
        read_recipe(recipe)


SPEAK = "stages.lm.tasks.speak"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({f"{SPEAK}.template": ["shout", "text", "layout"]}, "tasks.speak.layout: 'shout' names no stream"),
        ({f"{SPEAK}.template": ["text", "layout", "layout"]}, "tasks.speak.template: name 'layout' once"),
        ({f"{SPEAK}.layout": {"kind": "flat"}, f"{SPEAK}.template": ["text"]}, "template: name 'layout' once"),
        ({f"{SPEAK}.template": ["speak", "layout"]}, "tasks.speak.layout: 'text' is given, but no place"),
        ({f"{SPEAK}.template": ["text"]}, "tasks.speak.layout: 'voice' has a head, but no place"),
        ({f"{SPEAK}.layout": {"kind": "flatt"}, f"{SPEAK}.template": None}, "tasks.speak.layout.kind: no layout"),
        ({f"{SPEAK}.template": [{"literal": "speak", "loss": True}, "text", "layout"]}, "literals are forced"),
    ],
)  # fmt: skip
def test_a_wrong_layout_of_a_task_says_where(changes, expected):
    with pytest.raises(RecipeError) as error:
        build(**changes)
    assert expected in str(error.value), str(error.value)


def test_a_level_in_another_number_of_lanes_has_no_table_there():
    """By frames, a faster level stands in two lanes with a table each; flat, in one."""
    recipe = read_recipe("layout-flat", "smoke", {"stages.lm.tasks.parallel": {
        "fills": ["voice"], "layout": {"kind": "parallel", "clock": "frame", "streams": ["voice"]}}})  # fmt: skip
    with pytest.raises(RecipeError, match=r"'voice\[1\]' stands in 2 lanes here and in 1 elsewhere"):
        assemble(recipe)
