"""Phases beside each other: the same weights as one after another, whoever is stopped or killed meanwhile."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from toys import parts_recipe, parts_task

import vivavoce
from vivavoce.errors import RequestError
from vivavoce.training import RunDirectory, jobs
from vivavoce.training import checkpoint as checkpoints
from vivavoce.training.errors import Interrupted, TrainingError
from vivavoce.training.metrics import read_metrics
from vivavoce.training.recipes import train_recipe
from warm_process import WARM

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
NAMES = ["voice", "listen", "converse"]
PARENT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toys import parts_recipe, parts_task
from vivavoce.training.recipes import train_recipe
slow = {{"pause": 0.5}}
train_recipe(parts_recipe(voice=slow, listen=slow), sys.argv[1], make_task=parts_task, jobs=2)
"""


@pytest.fixture(autouse=True)
def _warm(monkeypatch):
    """Phases begin in processes that are forked from a warm one; those of PARENT are as they always are."""
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda how: WARM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run as one process makes it, phase by phase."""
    torch.set_num_threads(1)
    torch.rand(7)  # its weights are nobody's leftovers
    return train_recipe(parts_recipe(), tmp_path_factory.mktemp("whole"), make_task=parts_task)


def same(run, whole):
    for name in NAMES:
        a, b = (checkpoints.latest(each.checkpoints(name)) for each in (run, whole))
        assert a.step == b.step == 6 and a.finished
        for states in ("modules", "averages"):
            for module, tensors in getattr(b, states).items():
                for key, value in tensors.items():
                    assert torch.equal(getattr(a, states)[module][key], value), (name, module, key)
    mine, theirs = (
        {name: [(m["step"], m["loss"]) for m in read_metrics(each.metrics) if m["phase"] == name] for name in NAMES}
        for each in (run, whole)
    )
    assert mine == theirs
    models = [vivavoce.load(each.path).system.state_dict() for each in (run, whole)]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


def begun(run, *names):
    """Until each of the phases has a checkpoint."""
    end = time.monotonic() + 600
    while not all(checkpoints.latest_path(run.checkpoints(name)) for name in names):
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.02)


def test_kill_of_the_parent_ends_all_and_the_next_call_makes_the_same_weights(whole, tmp_path):
    run = RunDirectory(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    begun(run, "voice", "listen")
    process.kill()
    process.wait()
    train_recipe(parts_recipe(), tmp_path, make_task=parts_task, jobs=2)  # waits for those that still save
    same(run, whole)
    assert run.report.read_text().count("<h2>") == 4


def stop(run):
    begun(run, "voice", "listen")
    os.kill(os.getpid(), signal.SIGTERM)


def kill_listen(run):
    begun(run, "voice", "listen")
    next(child for child in multiprocessing.active_children() if child.name == "listen").kill()


ENDS = {
    "fails": (None, TrainingError, r"phase 'listen', step 3.* is nan.*\(voice stopped and saved; the same"),
    "killed": (kill_listen, TrainingError, r"'listen': its process was killed by signal 9.*\(voice stopped and saved"),
    "stopped": (stop, Interrupted, "(voice, listen|listen, voice) stopped and saved; the same command goes on"),
}


@pytest.mark.parametrize("how", ENDS if LONG else ["fails", "stopped"])
def test_what_ends_one_ends_all_and_all_save(whole, tmp_path, how):
    run = RunDirectory(tmp_path)
    action, error, message = ENDS[how]
    if action is not None:
        threading.Thread(target=action, args=[run], daemon=True).start()
    # each goes on only when the other has saved something, however long that takes
    voice = {"pause": 4.0, "hold": 3, "until": str(run.checkpoints("listen"))}
    listen = {"pause": 4.0, "hold": 3, "until": str(run.checkpoints("voice"))}
    if how == "fails":
        listen |= {"poison": 3, "pause": 0.0}
    with pytest.raises(error, match=message):
        train_recipe(parts_recipe(voice=voice, listen=listen), tmp_path, make_task=parts_task, jobs=2)
    assert not multiprocessing.active_children() and set(run.phases()) == {"voice", "listen"}
    assert all(0 < checkpoints.latest(run.checkpoints(name)).step < 6 for name in run.phases())
    train_recipe(parts_recipe(), tmp_path, make_task=parts_task)
    same(run, whole)


def test_a_phase_depends_on_those_it_needs_and_on_no_other(whole, tmp_path):
    recipe = parts_recipe()
    for name in ("listen", "voice", "converse"):  # in the other order
        train_recipe(recipe, tmp_path, make_task=parts_task, phase=name)
    same(RunDirectory(tmp_path), whole)
    with pytest.raises(RequestError, match="builds on 'voice', which is not finished"):
        train_recipe(recipe, tmp_path / "new", make_task=parts_task, phase="converse")


def test_results_that_do_not_fit_each_other_are_not_joined(tmp_path):
    """A phase that was trained on another result of one that it needs than there is now."""
    train_recipe(parts_recipe(), tmp_path, make_task=parts_task)
    run = RunDirectory(tmp_path)
    made = {path: path.read_bytes() for path in (tmp_path / "model.safetensors", tmp_path / "recipe.yaml")}

    def longer(steps, **options):
        phases = [phase.model_copy(update={"steps": steps[phase.name]}) for phase in parts_recipe(**options).training]
        return parts_recipe().model_copy(update={"training": phases})

    recipe = longer({"voice": 8, "listen": 6, "converse": 6})
    with pytest.raises(RequestError, match=r"'voice' would train on, and phase 'converse'.*delete .*converse to train"):
        train_recipe(recipe, tmp_path, make_task=parts_task)
    assert all(path.read_bytes() == found for path, found in made.items()) and len(list(tmp_path.glob("recipe*"))) == 1
    # what nothing was trained on may go on
    train_recipe(longer({"voice": 6, "listen": 6, "converse": 8}), tmp_path, make_task=parts_task)
    assert checkpoints.latest(run.checkpoints("converse")).step == 8
    # the same weights again are as good as before, others are not
    shutil.rmtree(run.checkpoints("voice"))
    train_recipe(longer({"voice": 6, "listen": 6, "converse": 8}), tmp_path, make_task=parts_task)
    shutil.rmtree(run.checkpoints("voice"))
    another = longer({"voice": 6, "listen": 6, "converse": 8}, voice={"target": 1.0})
    for _ in range(2):  # when it has been trained, and whenever the run is taken up again
        with pytest.raises(RequestError, match=r"phase 'converse' was trained on another result of 'voice'.*delete"):
            train_recipe(another, tmp_path, make_task=parts_task)
    shutil.rmtree(run.checkpoints("converse"))
    train_recipe(another, tmp_path, make_task=parts_task)
    assert (tmp_path / "model.safetensors").read_bytes() != made[tmp_path / "model.safetensors"]


def test_checkpoints_that_do_not_say_what_they_were_begun_on_are_taken(tmp_path):
    train_recipe(parts_recipe(), tmp_path, make_task=parts_task)
    run = RunDirectory(tmp_path)
    assert set(checkpoints.needs(run.checkpoints("converse"))) == {"voice", "listen"}
    for file in run.checkpoints("converse").glob("*/state.json"):
        record = json.loads(file.read_text())
        del record["needs"]
        file.write_text(json.dumps(record))
    shutil.rmtree(run.checkpoints("voice"))
    train_recipe(parts_recipe(voice={"target": 1.0}), tmp_path, make_task=parts_task)
    assert checkpoints.load(checkpoints.latest_path(run.checkpoints("converse"))).needs == {}


def test_a_phase_that_nothing_can_run_beside_has_all_the_cores(monkeypatch, tmp_path):
    needs = {"voice": [], "voice-decoder": ["voice"], "listen": [], "converse": ["voice", "voice-decoder", "listen"]}
    assert [name for name in needs if jobs._alone(name, needs)] == ["converse"]
    assert jobs._alone("a", {"a": []}) and not jobs._alone("a", {"a": [], "b": []})
    asked = {}

    class Child:
        error, told = None, False

        def __init__(self, train, name, threads):
            asked[name] = threads
            self.name, self.process = name, None
            self.reports, other = multiprocessing.Pipe()
            other.close()

        def has_ended(self):
            return True

    monkeypatch.setattr(jobs, "_Child", Child)
    monkeypatch.setattr(jobs, "_share", lambda count: 8 // count)
    jobs.train_beside(print, needs, 2)
    assert asked == {"voice": 4, "voice-decoder": 4, "listen": 4, "converse": 8}
    asked.clear()
    # what is finished still counts: a phase has the same share when the run goes on
    jobs.train_beside(print, needs, 2, finished=["voice", "voice-decoder", "converse"])
    assert asked == {"listen": 4}


def test_jobs_and_torchrun_exclude_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr("vivavoce.training.recipes.Ranks.current", lambda device="cpu": type("R", (), {"world": 2}))
    with pytest.raises(RequestError, match="torchrun"):
        train_recipe(parts_recipe(), tmp_path, make_task=parts_task, jobs=2)
