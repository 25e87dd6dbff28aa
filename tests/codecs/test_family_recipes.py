"""Shipped recipes of codecs of these families, at their smoke size: built, trained by all their phases, used, saved."""

import re

import numpy as np
import pytest
import torch

import vivavoce
from proves import proves
from vivavoce.audio import Audio, write
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.assembly import task_for
from vivavoce.training.fit import FitTask
from vivavoce.training.recipes import train_recipe

RECIPES = {
    "focalcodec-50hz": "focalcodec", "focalcodec-stream": "focalcodec", "ts3-codec": "ts3-codec", "taae": "taae",
    "mdctcodec": "mdctcodec", "apcodec": "apcodec", "apcodec-s": "apcodec",
    "encodec-24khz-lm": "encodec", "lmcodec": "lmcodec", "vocos": "vocos", "hifigan": "",
    "apcodec-plus": "apcodec-plus", "sq-codec": "sq-codec", "dmel": "dmel", "facodec": "facodec",
    "chattts-dvae": "chattts-dvae", "firefly-gan-vq": "firefly-gan-vq",
    "sqcodec": "sqcodec-one-quantizer",
    "repcodec": "repcodec", "pq-vae": "pq-vae", "maskgct-semantic": "maskgct-codecs",
    "maskgct-acoustic": "maskgct-codecs",
    "cosyvoice2": "cosyvoice2-s3-v2", "cosyvoice": "cosyvoice-s3-v1", "glm-4-voice-tokenizer": "glm4voice-tokenizer",
    "ichigo-whispervq": "ichigo-whispervq", "semanticodec": "semanticodec",
    "flowdec": "flowdec", "scoredec": "scoredec", "promptcodec": "promptcodec",
    "ssr-speech-watermark": "ssr-speech-watermark-encodec", "baichuan-audio-tokenizer": "baichuan-audio-tokenizer",
    "socodec": "socodec", "clamtts-mel-vae": "clamtts-mel-vae", "llm-codec": "llm-codec",
    "hilcodec": "hilcodec", "esc": "esc", "toneunit": "toneunit",
    "sensevoice-tokens": "",  # no row of the atlas
    "freqcodec": "funcodec", "complexdec": "complexdec", "gull": "gull",
    "single-codec": "single-codec",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two speakers' gliding tones as a corpus; the second one is held out."""
    folder = tmp_path_factory.mktemp("corpus")
    for speaker, pitch in (("1", 120), ("2", 210)):
        place = folder / speaker / "5"
        place.mkdir(parents=True)
        time = np.arange(24000) / 16000
        phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(2 * np.pi * time))) / 16000
        tone = sum(np.sin(k * phase) / k for k in range(1, 6))[None].astype(np.float32) * 0.15
        write(place / f"{speaker}-5-0000.flac", Audio(tone, 16000))
        (place / f"{speaker}-5.trans.txt").write_text(f"{speaker}-5-0000 A TONE\n")
    return {"kind": "recordings", "corpora": [str(folder)], "held_out": ["librispeech_2"]}


def smoke(name, data):
    phases = [phase.name for phase in read_recipe(name, "smoke").training]
    return read_recipe(name, "smoke", {f"training.{phase}.data": data for phase in phases})


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=proves(key, "recipe") if key else ()) for n, key in RECIPES.items()]
)
def test_it_builds_trains_and_generates(name, data, tmp_path):
    torch.manual_seed(0)
    recipe = smoke(name, data)
    model = assemble(recipe)
    codec = model.system.codec
    for phase in recipe.training:
        task = task_for(recipe, phase, model)
        names = [f"{key}.{name}" for key, module in task.modules().items() for name, _ in module.named_parameters()]
        assert all(any(re.match(pattern, name) for name in names) for pattern in phase.trainable), phase.trainable
        codec.train()
        before = {key: value.clone() for key, value in codec.state_dict().items()}
        weights = [p for key, p in codec.named_parameters() if trained(key, phase) and p.requires_grad]
        optimizers = {
            key: torch.optim.Adam(
                [*(weights if "codec" in modules else []),
                 *(p for module in modules if module != "codec" for p in task.modules()[module].parameters())], 1e-3
            )
            for key, modules in task.optimizers().items()
        }  # fmt: skip
        if isinstance(task, FitTask):
            task.fit()
        for step in range(0 if isinstance(task, FitTask) else phase.steps):
            for updated, losses in task.updates(task.batch(step, 0, 1), step):
                optimizers[updated].zero_grad()
                losses["loss"].backward()
                assert all(loss.isfinite() for loss in losses.values()), losses
                optimizers[updated].step()
        changed = {key for key, value in codec.state_dict().items() if not torch.equal(value, before[key])}
        assert changed and all(trained(key, phase) for key in changed), changed
        codec.eval()
    model.save(tmp_path)
    again = vivavoce.load(tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.1, (1, recipe.sample_rate // 10 + 1)).astype(np.float32)
    one, other = (each.resynth(Audio(noise, recipe.sample_rate)) for each in (model, again))
    assert one.audio.samples.shape == noise.shape and np.isfinite(one.audio.samples).all()
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.audio.samples, other.audio.samples)


def trained(key, phase):
    """Whether a phase trains this tensor of the codec."""
    if phase.objective.kind == "kmeans":
        return key.endswith((".centers", ".scale"))
    if key.startswith("quantizer.") and phase.objective.kind in ("features", "diffusion", "transcription", "language"):
        return True  # moving averages are no parameters that a pattern could name
    return not phase.trainable or any(re.search(pattern, f"codec.{key}") for pattern in phase.trainable)


@proves("apcodec-plus", "mechanism")
def test_a_decoder_learns_once_more_from_nothing(data):
    """The second stage has the codes of the first, whose encoder and codebooks stay, and nothing of its decoder."""
    recipe = smoke("apcodec-plus", data)
    torch.manual_seed(0)
    model = assemble(recipe)
    codec = model.system.codec
    wave = 0.3 * torch.randn(1, 1, 4800)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # the first stage has trained
    codes = codec.eval().encode(wave)
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    joint, decoder = (task_for(recipe, phase, model) for phase in recipe.training)
    assert not joint.keep_codes and decoder.keep_codes
    after = codec.state_dict()
    moved = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved == {"decoder"} and torch.equal(codec.encode(wave), codes)
    matrices = [key for key, value in after.items() if key.startswith("decoder") and value.dim() > 1]
    assert all(not torch.equal(after[key], before[key]) for key in matrices)
    same = task_for(recipe, recipe.training[1], model).codec.state_dict()  # a run that goes on begins from the same
    assert all(torch.equal(same[key], value) for key, value in after.items())


@proves("focalcodec", "mechanism")
def test_decoder_and_quantizer_are_trained_apart(data, tmp_path):
    """Two phases of one run: the vocoder learns from features that no codes have touched, and the codes without it; the
    encoder that the features come from stays as it was."""
    recipe = smoke("focalcodec-50hz", data)
    torch.manual_seed(0)
    run = train_recipe(recipe, tmp_path)
    weights = {name: vivavoce.nn.weights.read_safetensors(run.weights(name)["codec"]) for name in run.phases()}
    changed = {key.split(".parts.")[0] + "." + key.split(".parts.")[1][0] if ".parts." in key else key.split(".")[0]
               for key, value in weights["codes"].items() if not torch.equal(value, weights["vocoder"][key])}
    assert changed == {"encoder.1", "decoder.0"}
    vocoder = task_for(recipe, recipe.training[0], assemble(recipe))
    wave = vocoder.batch(0, 0, 1)
    with torch.no_grad():
        sound, said = vocoder.resynthesize(wave)
        codec = vocoder.codec
        assert said.codes.shape[1] == 0
        assert torch.equal(sound, codec.vocode(codec.features(wave))[..., : wave.shape[-1]])


def test_a_run_of_phases_of_spectra_has_its_report(data, tmp_path):
    """The loss of that name does not stand where a run says which of its own phases a line is of."""
    torch.manual_seed(0)
    run = train_recipe(smoke("apcodec", data), tmp_path)
    lines = [line for line in run.metrics.read_text().splitlines() if '"phases"' in line]
    assert run.report.is_file() and lines and all('"phase": "adversarial"' in line for line in lines)
