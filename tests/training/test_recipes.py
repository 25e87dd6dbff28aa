"""`vivavoce train`: phases after one another, resumed by the same command, a model directory in the end."""

import json
from importlib import resources

import pytest
import torch
import yaml

import vivavoce
from vivavoce.cli import main
from vivavoce.errors import RecipeError, VivavoceError
from vivavoce.nn.weights import read_safetensors
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training import RunDirectory
from vivavoce.training import checkpoint as checkpoints
from vivavoce.training.assembly import plan_for, task_for
from vivavoce.training.metrics import read_metrics
from vivavoce.training.recipes import train_recipe

PHASE = {"trains": "codec", "data": {"kind": "speech_synthesis", "voice": "flite:slt"}, "batch": 2}
SETTINGS = {"settings": {"log_every": 1, "ema": 0.5}, "optimizer": {"learning_rate": 1e-3}}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The smoke size of a shipped recipe with two short phases of its codec, on noise instead of a voice."""
    monkeypatch.setattr(
        "vivavoce.data.answers.voice_clips", lambda voice, rate: [0.1 * torch.randn(1, 4000) for _ in range(4)]
    )
    source = resources.files("vivavoce") / "recipes" / "mini.yaml"
    data = yaml.safe_load(source.read_text(encoding="utf-8"))
    judges = {"members": [{"kind": "stft", "size": 64, "filters": 2}]}
    short = {"mel": {"windows": [128], "mels": [8]}, "seconds": 0.2}
    data["training"] = [
        {**PHASE, **SETTINGS, "name": "first", "steps": 3, "objective": {"kind": "reconstruction", **short}},
        {
            **PHASE,
            **SETTINGS,
            "name": "second",
            "steps": 2,
            "start_from": "first",
            "objective": {"kind": "adversarial", "discriminators": judges, **short},
        },
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def train(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["train", *map(str, arguments), "--device", "cpu"])
        return left.value.code, capsys.readouterr()

    return call


def test_all_phases_then_nothing_more_to_do(recipe, train, tmp_path):
    run = tmp_path / "run"
    code, said = train(recipe, "--size", "smoke", "--run", run)
    assert code == 0, said.err
    assert RunDirectory(run).phases() == ["first", "second"]
    before = (run / "checkpoints" / "second" / "step-00000002" / "state.json").stat().st_mtime_ns
    assert train(recipe, "--size", "smoke", "--run", run)[0] == 0
    assert (run / "checkpoints" / "second" / "step-00000002" / "state.json").stat().st_mtime_ns == before
    # the run directory is a model: the codec is the averaged one of the last phase
    model = vivavoce.load(run)
    average = checkpoints.latest(RunDirectory(run).checkpoints("second")).averages["codec"]
    for key, value in model.system.codec.state_dict().items():
        assert torch.equal(value, average[key]), key
    # a longer budget goes on from the run directory itself
    code, said = train(run, "--set", "training.second.steps=3")
    assert code == 0, said.err
    assert checkpoints.latest(RunDirectory(run).checkpoints("second")).step == 3
    assert len(json.loads((run / "code.json").read_text())) == 3


def test_a_codec_learns_from_recordings(train, tmp_path):
    """The shipped recipe's phases, on two tones; its last phase keeps the codes of the first."""
    import numpy as np

    corpus = tmp_path / "corpus"
    for speaker, pitch in (("1", 0.05), ("2", 0.09)):
        (corpus / speaker / "5").mkdir(parents=True)
        tone = 0.2 * np.sin(pitch * np.arange(70000))[None].astype(np.float32)
        vivavoce.write(corpus / speaker / "5" / f"{speaker}-5-0000.flac", vivavoce.Audio(tone, 16000))
        (corpus / speaker / "5" / f"{speaker}-5.trans.txt").write_text(f"{speaker}-5-0000 A TONE\n")
    data = f"{{corpora: ['{corpus}'], held_out: [librispeech_2]}}"
    places = [f"--set=training.{name}.data={data}" for name in ("reconstruction", "adversarial")]
    code, said = train("speech-codec", "--size", "smoke", "--run", tmp_path / "run", *places)
    assert code == 0, said.err
    run = RunDirectory(tmp_path / "run")
    first, second = (read_safetensors(run.weights(name)["codec"]) for name in run.phases())
    changed = {key.split(".")[0] for key, value in first.items() if not torch.equal(value, second[key])}
    assert changed == {"decoder"}
    codes = vivavoce.load(run.path).resynth(vivavoce.Audio(np.zeros((1, 1000), np.float32), 16000)).codes
    assert codes.shape == (3, 4)
    assert any("evaluate/snr_db" in line for line in read_metrics(run.metrics))
    wrong = "--set=training.reconstruction.data={corpora: all}"
    code, said = train("speech-codec", "--size", "smoke", "--run", tmp_path / "other", wrong)
    assert code == 2 and "training.reconstruction.data: give corpora (a list)" in said.err


def test_one_phase_needs_those_before_it(recipe, train, tmp_path):
    run = tmp_path / "run"
    code, said = train(recipe, "--size", "smoke", "--run", run, "--phase", "second")
    assert code == 2 and "builds on 'first'" in said.err
    code, said = train(recipe, "--size", "smoke", "--run", run, "--phase", "first")
    assert code == 0 and RunDirectory(run).phases() == ["first"] and not (run / "model.safetensors").exists()
    assert train(recipe, "--size", "smoke", "--run", run, "--phase", "second")[0] == 0
    assert (run / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--phase", "third"], "no phase 'third'"),
        (["--set", "training.first.steps"], "write a dotted path and a value"),
        (["--set", "training.first.steps=[1"], "not a YAML value"),
        (["--set", "training.first.steps=-3"], "training[first].steps"),
        (["--set", "training.first.settings.stepz=3"], "unknown key 'stepz'"),
        (["--set", "training.first.optimizer.learning_rate=5e-4"], "learning_rate is the text '5e-4', not a number"),
        (["--set", "training.first.settings.ema=high"], "ema is the text 'high'"),
        (["--set", "training.first.trainable=[nothing]"], "matches no parameter"),
        (["--set", "training.first.objective.mel=loud"], "choose one of"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--set", "training=[]"], "no training phases"),
    ],
)
def test_a_wrong_request_is_one_line(recipe, train, tmp_path, arguments, message):
    code, said = train(recipe, "--size", "smoke", "--run", tmp_path / "run", *arguments)
    assert code == 2 and message in said.err and said.err.count("\n") == 1, said.err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"objective": {"kind": "reconstruktion"}}, "objective 'reconstruktion' on data 'speech_synthesis' is not one"),
        ({"data": {"kind": "speech"}}, "on data 'speech' is not one"),
        ({"data": {"kind": "speech_synthesis", "voise": "x"}}, "training.second.data: unknown voise"),
        ({"data": {"kind": "speech_synthesis", "voice": 3}}, "training.second.data: give voice (a text); found 3"),
        ({"data": {"kind": "recordings", "corpora": "all"}}, "training.second.data: give corpora (a list)"),
        ({"objective": {"kind": "reconstruction", "secondz": 1}}, "training.second.objective: "),
        ({"objective": {"kind": "reconstruction", "mel": {"windows": 3}}}, "training.second.objective: 'int' object"),
        ({"objective": {"kind": "reconstruction", "mel": "loud"}}, "choose one of"),
        ({"trainable": ["codek"]}, "training.second: trainable: pattern 'codek' matches no parameter"),
        ({"optimizer": {"rates": {"codek": 1}}}, "training.second: optimizer.rates: pattern 'codek'"),
        ({"settings": {"optimizers": {"codek": {}}}}, "training.second.settings.optimizers: no optimizer 'codek'"),
        ({"settings": {"accumulate": 3}}, "training.second: a batch of 2 cannot be shared by 3"),
        ({"settings": {"name": "first"}}, "training.second.settings.name: it stands beside settings"),
        ({"settings": {"log_every": [1]}}, "phase 'second': log_every is [1]"),
    ],
)
def test_a_recipe_is_checked_as_a_whole_before_anything_is_written(recipe, train, tmp_path, change, message):
    """What is wrong in the last phase is not found after the first has trained."""
    data = yaml.safe_load(recipe.read_text())
    data["training"][1] |= change
    recipe.write_text(yaml.safe_dump(data))
    code, said = train(recipe, "--size", "smoke", "--run", tmp_path / "run")
    assert code == 2 and message in said.err and said.err.count("\n") == 1, said.err
    assert not (tmp_path / "run").exists()


def test_a_system_that_cannot_be_built_leaves_no_recipe_behind(tmp_path):
    recipe = read_recipe("layout-delay", "smoke", {"stages.lm.backbone.layers": -1})
    with pytest.raises(RecipeError, match=r"stages\.lm\.backbone\.layers is -1"):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_that_mini_trains_is_checked_without_data(monkeypatch):
    """And the check changes neither the model nor chance."""
    for name in ("data.answers.voice_clips", "data.digit_bank.build_bank"):
        monkeypatch.delattr(f"vivavoce.{name}")
    recipe = read_recipe("mini", "smoke")
    model, state = assemble(recipe), torch.get_rng_state()
    before = {key: value.clone() for key, value in model.system.state_dict().items()}
    plans = [plan_for(recipe, phase, model) for phase in recipe.training]
    assert [plan.pack for plan in plans] == [False, False, True, True, True]
    assert set(plans[2].task.modules()) == {"encoder", "word_head"}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.system.state_dict().items())
    assert all(p.requires_grad for p in model.system.parameters())


@pytest.mark.parametrize(
    "scene, message",
    [({"snr": 3}, "data.scene: snr: Input should be"), ({"episodes": [1]}, "data.scene: episodes"), (3, "mapping")],
)
def test_a_scene_of_the_wrong_kind_is_named(scene, message):
    recipe = read_recipe("mini", "smoke", {"training.hear.data.scene": scene})
    with pytest.raises(RecipeError, match=message):
        plan_for(recipe, recipe.phase("hear"), assemble(recipe))


def test_a_missing_run_recipe_or_device_is_said(recipe, train, capsys):
    assert train(recipe)[0] == 2
    assert train("nowhere.yaml", "--run", "x")[0] == 2
    with pytest.raises(SystemExit) as left:
        main(["train", str(recipe), "--run", "x", "--device", "gpu"])
    assert left.value.code == 2 and "no such device" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["reconstruction", "adversarial"])
def test_a_system_without_a_codec_has_none_to_train(kind, tmp_path):
    phase = {"name": "voice", "trains": "snac", "objective": {"kind": kind}, "steps": 1}
    values = read_recipe("layout-flat").model_dump(mode="json", exclude_defaults=True)
    for data in ({"kind": "speech_synthesis", "voice": "flite:slt"}, {"kind": "recordings", "corpora": ["x"]}):
        recipe = read_recipe(values | {"training": [phase | {"data": data}], "smoke": {}})
        with pytest.raises(RecipeError, match=r"training\.voice: this system has no codec to train"):
            task_for(recipe, recipe.phase("voice"), assemble(recipe))


@pytest.mark.parametrize(
    "name,phase,message",
    [
        ("mini", {"objective": {"kind": "reconstruction"}, "data": {"kind": "speech_synthesis"}}, "data: give voice"),
        (
            "mini",
            {"objective": {"kind": "next_token"}, "data": {"kind": "digit_conversations"}, "trains": "dialogue"},
            "objective: give streams",
        ),
        (
            "layout-flat",
            {"objective": {"kind": "words"}, "data": {"kind": "digit_conversations"}, "trains": "lm"},
            "a full-duplex system with an encoder 'ear'",
        ),
    ],
)
def test_what_a_phase_lacks_is_named(name, phase, message):
    values = read_recipe(name).model_dump(mode="json", exclude_defaults=True)
    recipe = read_recipe(values | {"training": [{"name": "p", "trains": "codec", "steps": 1} | phase], "smoke": {}})
    with pytest.raises(RecipeError, match=rf"training\.p.*{message}"):
        task_for(recipe, recipe.phase("p"), assemble(recipe))


@pytest.mark.parametrize(
    "data,message",
    [
        ({"leave_uot": ["theo"]}, "data: unknown leave_uot"),
        ({"scene": {"dictaton": 1}}, "data.scene: .*dictaton"),
        ({"leave_out": "theo"}, r"data: give leave_out \(a list\); found 'theo'"),
        ({"leave_out": ["thea"]}, "give a list of some of george, lucas, nicolas, theo, yweweler"),
    ],
)
def test_a_slip_in_what_is_left_out_is_not_passed_over(data, message, pack, monkeypatch):
    """It would give the figure of a speaker that was trained on."""
    monkeypatch.setattr("vivavoce.data.answers.Voice.spoken", lambda self, text, tempo=1.0: None)
    values = read_recipe("mini").model_dump(mode="json", exclude_defaults=True)
    phase = values["training"][2] | {"data": {"kind": "digit_conversations"} | data}
    recipe = read_recipe(values | {"training": [phase]})
    with pytest.raises(VivavoceError, match=message):
        task_for(recipe, recipe.phase("hear"), assemble(recipe), pack)


def test_what_trains_an_encoder_and_what_hears_with_it_follow_each_other():
    values = read_recipe("mini").model_dump(mode="json", exclude_defaults=True)
    assert values["training"][3]["name"] == "listen"
    values["training"][3]["after"] = []
    with pytest.raises(RecipeError, match="'hear' trains 'ear' too"):
        read_recipe(values)
