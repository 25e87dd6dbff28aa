"""A language model over tokens in every kind of layout: it learns, generates what it predicts, rows are alone."""

import functools
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vivavoce
from vivavoce.errors import CheckpointError, DataError, RecipeError, RequestError
from vivavoce.layouts import Given
from vivavoce.lm.sampling import Sampling
from vivavoce.schema import read_recipe
from vivavoce.systems import TokenLM, assemble, load
from vivavoce.systems.token_system import PROMPT, Cells
from vivavoce.training.assembly import task_for

KINDS = [
    "flat", "dedup", "delay", "parallel", "interleaved", "words", "chain-of-modality", "text-aligned", "hierarchical",
    "time-multiplexed", "multi-stream",
]  # fmt: skip
# frames that are asked for; the others know themselves
ASKED = {"delay": 12, "parallel": 12, "dedup": 20, "flat": 6, "interleaved": 12, "chain-of-modality": 16}


@functools.cache
def trained(kind: str):
    """The smoke size of a recipe after its own training: model, task, and held-out figures before and after."""
    recipe = read_recipe(f"layout-{kind}", "smoke")
    model = assemble(recipe)
    phase = recipe.training[0]
    task = task_for(recipe, phase, model)
    before = task.evaluate(0)
    optimizer = torch.optim.AdamW(model.system.stage.parameters(), lr=phase.optimizer["learning_rate"])
    torch.manual_seed(0)
    for step in range(phase.steps or 0):
        optimizer.zero_grad()
        task.loss(task.batch(step, 0, 1), step)["loss"].backward()
        optimizer.step()
    return model, task, before, task.evaluate(0)


def first_task(model: TokenLM) -> str:
    return next(iter(model.system.tasks))


def items(kind: str, rows: int = 3) -> list[dict]:
    """Requests of the first task, made of held-out rows: given streams whole, two frames of each prompt."""
    model, task, _, _ = trained(kind)
    made = []
    for number in range(rows):
        cells = task.held_out(0)
        item = {}
        for name in model.system.task(first_task(model)).given:
            plain = name.removesuffix(PROMPT)
            spec = model.system.streams[plain].spec
            ids = cells.values[plain][number, :, : int(cells.lengths[plain][number].max())].clone()
            item[plain] = (ids if name == plain else ids[:, : 2 * spec.cells(0)]).numpy()
        if kind == "words":
            for name in ("word/text", "word/voice"):
                counts = cells.counts[name][number]
                item[name] = counts[counts >= 0].tolist()
        made.append(item)
    return made


def segments(kind: str, row: int) -> list[tuple]:
    """A held-out row as segments: what the first task gives is context, the rest is scored."""
    model, task, _, _ = trained(kind)
    cells, about = task.held_out(0), model.system.task(first_task(model))
    parts: list[tuple] = []
    for name in dict.fromkeys((*about.given, *about.fills)):
        if not name.endswith(PROMPT):
            ids = cells.values[name][row, :, : int(cells.lengths[name][row].max())]
            parts.append((name, ids, name in about.fills))
            parts.append((f"word/{name}", cells.counts[f"word/{name}"][row].tolist(), False))
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_more_than_which_tokens_are_frequent(kind):
    model, task, before, after = trained(kind)
    name = first_task(model)
    with torch.no_grad():
        predictions = model.system(task.held_out(0), name)
    nats, count = 0.0, 0
    for stream, prediction in predictions.items():
        for level in range(model.system.streams[stream].spec.levels):
            mine = [k for k, slot in enumerate(model.system.stage.slots[stream]) if slot.level == level]
            ids = prediction.targets[..., mine][prediction.loss[..., mine]]
            share = torch.bincount(ids).double() / max(len(ids), 1)
            nats += float(-(share[share > 0].log() * share[share > 0]).sum()) * len(ids)
            count += len(ids)
    key = "nats" if "nats" in after else f"{name}_nats"
    assert before[key] > 0.9 * nats / count > 1.5
    assert after[key] < 0.75 * nats / count


@pytest.mark.parametrize("kind", KINDS)
def test_generation_through_next_is_the_argmax_of_the_whole(kind):
    """Column by column with the key-value state = the teacher-forced pass over what came out of it."""
    model = trained(kind)[0]
    system, name = model.system, first_task(model)
    requests = items(kind)
    cells = model._cells(requests, "fill")
    lengths = model._lengths(name, cells, ASKED.get(kind), 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "sampling", dict.fromkeys(system.filled, Sampling(temperature=0)))
        filled, walked = system.generate(name, cells, lengths, torch.arange(3), limit=300)
    values = {key: value for key, value in cells.values.items() if value.shape[2]}
    with torch.no_grad():
        predictions = system.stage(walked, {**values, **{key: filled[key] for key in system.filled}})
    compared = 0
    for stream, prediction in predictions.items():
        end = system.streams[stream].spec.end
        for k, slot in enumerate(system.stage.slots[stream]):
            logits = prediction.logits[k]
            if slot.level and end is not None:
                logits = logits[..., :end]
            here = prediction.loss[..., k] & (prediction.targets[..., k] >= 0)
            chosen = logits.gather(-1, prediction.targets[..., k : k + 1].clamp(min=0))[..., 0]
            assert float((logits.amax(-1) - chosen)[here].amax() if here.any() else 0) < 1e-4
            compared += int(here.sum())
    assert compared == int(walked.loss.sum()) and compared > 9
    assert sum(len(filled[stream].unique()) - 1 for stream in predictions) > 2, "all alike: this test could not fail"
    if all(system.streams[stream].spec.end is None for stream in system.filled):
        whole = {n: lengths.get(n, cells.lengths.get(n)) for n in system.streams}
        placed = system.layout.place(whole, Given(counts=cells.counts), torch.arange(3))
        assert torch.equal(placed.mask("index"), walked.mask("index"))
        assert torch.equal(placed.mask("stream"), walked.mask("stream"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_filled_the_same_in_any_company(kind):
    model = trained(kind)[0]
    requests, name = items(kind), first_task(model)
    together = model.fill(name, requests, ASKED.get(kind), seed=[5, 6, 7], limit=1000)
    for row in (0, 2):
        alone = model.fill(name, requests[row], ASKED.get(kind), seed=5 + row, limit=1000)
        assert alone.keys() == together[row].keys() == set(model.system.task(name).fills)
        for stream, ids in alone.items():
            assert np.array_equal(ids, together[row][stream])
            assert ids.shape[0] == model.system.streams[stream].spec.levels
            assert ids.max(initial=0) < model.system.streams[stream].size
    assert sum(ids.size for row in together for ids in row.values()) > 9
    again = model.fill(name, requests, ASKED.get(kind), seed=[15, 16, 17], limit=1000)
    assert any(not np.array_equal(a[s], b[s]) for a, b in zip(together, again) for s in a)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_the_same_in_any_batch(kind):
    model = trained(kind)[0]
    rows = [segments(kind, row) for row in range(3)]
    together = model.loglik(rows)
    for row, one in zip(rows, together):
        alone = model.loglik(row)
        assert {key: count for key, (_, count) in alone.items()} == {key: count for key, (_, count) in one.items()}
        for key, (total, count) in alone.items():
            assert count > 0 and total < 0
            assert abs(total - one[key][0]) < 1e-4 * count
    own = model.loglik(rows, vocabulary="stream")
    for full, part in zip(together, own):
        assert all(part[key][0] >= full[key][0] - 1e-4 * full[key][1] for key in part)


def test_many_items_are_scored_in_batches_and_come_back_in_their_order(monkeypatch):
    """Of some tokens each, by length: what is computed at a time does not grow with what is asked."""
    from vivavoce.systems import token_lm

    model = trained("flat")[0]
    rows = [segments("flat", number % 3) for number in range(9)] + [[("voice", np.zeros((3, 0), np.int64), True)]]
    expected, columns = model.loglik(rows), []
    model.system.stage.backbone.register_forward_pre_hook(lambda module, given: columns.append(given[0].shape[:2]))
    largest = max(max(stream.vocabulary) for stream in model.system.streams.values())
    monkeypatch.setattr(token_lm, "LOGITS", 40 * largest)
    found = model.loglik(rows)
    assert len(columns) > 3 and all(rows == 1 for rows, _ in columns)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(abs(one[key][0] - other[key][0]) < 1e-4 * one[key][1] for key in one)
    assert found[-1] == {} and found[0] != found[1] and found[0].keys()


def test_log_probabilities_by_hand():
    """A delay of one column a level: the sums over two levels, from the tables, the decoder and the heads alone."""
    model = trained("delay")[0]
    lm = model.system.stage
    codes = torch.tensor([[3, 1, 4], [1, 5, 9], [2, 6, 5], [3, 5, 8]])
    found = model.loglik([("voice", codes[:, :1], False), ("voice", codes[:, 1:], True)])
    with torch.no_grad():
        columns = [lm.begin.detach()]
        for column in range(5):
            at = [(k, column - k) for k in range(4) if 0 <= column - k < 3]
            columns.append(sum(lm.tables["voice"][k].weight[codes[k, i]] for k, i in at))
        hidden = lm.backbone(torch.stack(columns)[None])[0]
        for k in range(4):
            logprob = [float(lm.linear["voice"][k](hidden[k + i]).log_softmax(-1)[codes[k, i]]) for i in (1, 2)]
            total, count = found[f"voice[{k}]"]
            assert count == 2 and math.isclose(total, sum(logprob), abs_tol=1e-4)
    parts = model.loglik([("voice", codes[:, :1], True), ("voice", codes[:, 1:], False)])
    whole = model.loglik([("voice", codes, True)])
    for key, (total, count) in whole.items():
        assert count == 3 and math.isclose(total, parts[key][0] + found[key][0], abs_tol=1e-4)


def test_saved_and_loaded_it_is_the_same_and_another_is_refused(tmp_path):
    model = trained("interleaved")[0]
    model.save(tmp_path / "model")
    again = vivavoce.load(tmp_path / "model")
    assert isinstance(again, TokenLM) and again.verbs == {"fill": "native", "loglik": "native"}
    ours, theirs = (one.fill("answer", length=9, seed=3) for one in (model, again))
    assert all(np.array_equal(ours[stream], theirs[stream]) for stream in ours)
    row = segments("interleaved", 0)
    assert model.loglik(row) == again.loglik(row)
    path = tmp_path / "model" / "recipe.yaml"
    path.write_text(path.read_text().replace("voice: 4", "voice: 5"))
    with pytest.raises(CheckpointError, match="another recipe"):
        load(tmp_path / "model")
    path.write_text(path.read_text().replace("voice: 5", "voice: 4"))
    weights = tmp_path / "model" / "model.safetensors"
    with safe_open(str(weights), framework="pt") as file:
        tensors, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, str(weights), metadata={**about, "layout": "of another version"})
    with pytest.raises(CheckpointError, match="another layout"):
        load(tmp_path / "model")


def test_the_command_trains_it_into_a_model_directory(tmp_path):
    from vivavoce.training.recipes import train_recipe

    recipe = read_recipe("layout-delay", "smoke", {"training.patterns.steps": 2})
    run = train_recipe(recipe, tmp_path / "run")
    filled = vivavoce.load(run.path).fill("continue", {"voice": np.ones((4, 2), np.int64)}, length=5)
    assert filled["voice"].shape == (4, 5) and (filled["voice"][:, :2] == 1).all()


def test_it_trains_on_a_token_store_of_its_own_tokenizer_only(tmp_path):
    pytest.importorskip("pyarrow")
    from vivavoce.data.store import TokenWriter
    from vivavoce.data.tokens import StreamSpec, TokenRow

    specs = {"units": StreamSpec("hubert", "abc", (50.0,), 16000, size=16)}
    writer = TokenWriter(tmp_path / "store", specs)
    random = np.random.default_rng(0)
    lengths = random.integers(4, 12, 8)
    writer.add([
        TokenRow(f"u{i}", n / 50, "CC0", "made", {"units": [random.integers(0, 16, (1, n))]})
        for i, n in enumerate(lengths)
    ])  # fmt: skip
    writer.finish()
    data = {"training.patterns.data": {"kind": "token_store", "path": str(tmp_path / "store")}}

    def task_of(**changes):
        recipe = read_recipe("layout-dedup", "smoke", {"training.patterns.steps": 1, **changes})
        phase = recipe.phase("patterns").model_copy(
            update={"data": type(recipe.training[0].data).model_validate(data["training.patterns.data"])}
        )
        return task_for(recipe, phase, assemble(recipe))

    task = task_of(**{"tokenizers.units.fingerprint": "abc"})
    batch = task.batch(0, 0, 1)
    frames = batch.cells.lengths["units"]
    rows = torch.arange(len(frames))
    assert (batch.cells.values["units"][rows, 0, frames - 1] == 16).all(), "every row ends with the end token"
    assert torch.isfinite(task.loss(batch, 0)["loss"])
    with pytest.raises(DataError, match="made by another tokenizer"):
        task_of(**{"tokenizers.units.fingerprint": "xyz"})
    with pytest.raises(DataError, match="holds ids beyond 7"):
        task_of(**{"tokenizers.units.size": 8}).batch(0, 0, 1)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("delay", {"stages.lm.layout.kind": "delayed"}, "stages.lm.layout.kind: no layout 'delayed'"),
        ("delay", {"stages.lm.layout.delays": {"voice": [0, 1]}}, "stages.lm.layout.delays.voice: 2 delays for 4"),
        ("delay", {"stages.lm.backbone.widht": 3}, "stages.lm.backbone: option 'widht' is unknown"),
        ("delay", {"stages.lm.backbone.kind": "towers"}, "stages.lm.backbone: 'towers'"),
        ("delay", {"stages.lm.backbone.heads": 3}, "stages.lm: width 32 is no multiple of 3 heads"),
        ("delay", {"stages.lm.backbone.rope_scaling": {"rope_type": "linear"}}, "stages.lm: rope_scaling of type 'lin"),
        ("delay", {"stages.lm.decode.order": "masked"}, "stages.lm.decode.order: 'masked'"),
        ("delay", {"stages.lm.decode.length": "long"}, "stages.lm.decode.length: 'long' is none of"),
        ("delay", {"stages.lm.decode.sampling": {"top_q": 1}}, "stages.lm.decode.sampling.voice: option 'top_q'"),
        ("delay", {"stages.lm.heads.voice": {"kind": "flow"}}, "stages.lm.heads.voice: kind 'flow' is unknown"),
        ("delay", {"tokenizers.codes.size": 0}, "tokenizers.codes cannot be built from its options: size 0"),
        ("delay", {"tokenizers.codes.sizes": 3}, "tokenizers.codes: tokenizer (integers)"),
        ("delay", {"stages.lm.tasks.continue.given": ["voice[1:]"]}, "stages.lm.tasks.continue: 'voice[1:]'"),
        ("flat", {"stages.lm.heads.voice": {"kind": "depth", "layers": 1, "width": 8, "heads": 1}}, "into one lane"),
        ("flat", {"stages.lm.layout.streams": ["voice"]}, "stages.lm.layout: 'text' has a head, but no place"),
        ("chain-of-modality", {"stages.lm.layout.learn_tags": True}, "stages.lm.layout: literals are forced"),
        ("dedup", {"streams.units.clock": "once"}, "streams.units.clock: 'once'"),
        ("dedup", {"interaction.kind": "turns", "interaction.hears": "units"}, "interaction.speaks: 'voice' is not"),
    ],
)
def test_a_wrong_recipe_says_where(name, changes, expected):
    with pytest.raises(RecipeError) as error:
        assemble(read_recipe(f"layout-{name}", "smoke", changes))
    assert expected in str(error.value)


def test_a_wrong_request_says_what():
    model = assemble(read_recipe("layout-chain-of-modality", "smoke"))
    for call, expected in [
        (lambda: model.fill("sing"), "no task 'sing'; there are answer, transcribe"),
        (lambda: model.fill("answer"), "'user' is to be given"),
        (lambda: model.fill("answer", {"voice": [1]}), "takes user, not 'voice'"),
        (lambda: model.fill("answer", {"user": [99]}), "ids from 99 to 99; 'user' has 0 to 16"),
        (lambda: model.fill("answer", {"user": [[1], [2]]}), "integers [1, T] expected"),
        (lambda: model.fill("answer", {"user": "hello"}), "no tokenizer that reads it"),
        (lambda: model.fill("answer", {"user": [1]}, length=-1), "is negative"),
        (lambda: model.fill("answer", {"user": [1]}, seed=[1, 2]), "2 seeds for 1 items"),
        (lambda: model.loglik([("voice", [1])]), "a segment is (stream, value, scored)"),
        (lambda: model.loglik([("audio", [1], True)]), "streams of audio: none"),
        (lambda: model.loglik([("voice", [1], True)], vocabulary="all"), "there are full, stream"),
        (lambda: model.reply([]), "layout-chain-of-modality has no verb 'reply'; it has fill, loglik"),
        (lambda: trained("delay")[0].fill("continue"), "nothing says how long 'voice' is to be"),
    ]:
        with pytest.raises(RequestError) as error:
            call()
        assert expected in str(error.value)
    assert not hasattr(model, "duplex")


def test_cells_of_streams_that_are_missing_are_empty():
    system = trained("multi-stream")[0].system
    whole = system.complete(Cells({}, {"text": torch.tensor([2, 0])}))
    assert whole.values["user"].shape == (2, 3, 0) and whole.lengths["voice"].tolist() == [0, 0]


@pytest.mark.parametrize("path, value, said", [
    ("stages.dialogue.backbone.width", "x", r"mini: stages\.dialogue.*width is 'x'"),
    ("stages.dialogue.decode.sampling.text.logit_bias", {99: 1.0}, r"mini: stages\.dialogue.*id 99: 'text' has 0"),
    ("tokenizers.codec", {"kind": "spectral_codec", "stemm": 3}, r"mini: tokenizers\.codec: .*'stemm'"),
])  # fmt: skip
def test_what_a_part_refuses_has_its_place_in_the_recipe(path, value, said):
    with pytest.raises(RecipeError, match=said):
        vivavoce.build("mini", "smoke", **{path: value})
