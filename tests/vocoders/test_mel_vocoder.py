"""Mel vocoders alone: trained by the codec's task with Vocos's own losses, loaded again, and named by codecs of mel
frames."""

import numpy as np
import pytest
import torch

import vivavoce
from codec_families import NARROW
from codec_parity import speech_like
from codecs_recipes import learned
from peers import peer
from proves import proves
from vivavoce.audio import Audio
from vivavoce.audio.resample import resample
from vivavoce.codecs import codec_of, load_codec, save_codec
from vivavoce.codecs.discriminators import build_discriminators
from vivavoce.errors import RecipeError, RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble, build
from vivavoce.training.adversarial import discriminator_loss, feature_matching, generator_loss
from vivavoce.training.codec_task import CodecTask
from vivavoce.vocoders.mel import vocoder_mel

VOCODER = {"kind": "vocos", "width": 8, "hidden": 12, "layers": 2}


@proves("vocos", "mechanism")
def test_the_losses_of_the_package():
    """Means over periods and, a tenth of it, over resolutions: with the recipe's weights, those of vocos/experiment.py.
    """
    peer("vocos")
    from vocos import loss

    options = read_recipe("vocos").training[0].objective.options
    members = options["discriminators"]["members"]
    weights = build_discriminators({"members": [{"kind": "period", "period": 2, "weight": 0.5}]}).weights
    assert weights == [0.5] and build_discriminators("dac").weights is None
    weights = [member["weight"] for member in members]
    chance = torch.Generator().manual_seed(0)
    real, fake = (
        [(2 * torch.randn(2, 30, generator=chance), [torch.randn(2, 4, 9, generator=chance) for _ in range(3)])
         for _ in members] for _ in range(2)
    )  # fmt: skip
    parts = [slice(0, 5), slice(5, 8)]
    logits = [[judgement for judgement, _ in each] for each in (real, fake)]
    maps = [[found for _, found in each] for each in (real, fake)]
    gen, disc, match = 0.0, 0.0, 0.0
    for part, coefficient in zip(parts, (1.0, 0.1)):
        count = len(members[part])
        gen += coefficient * loss.GeneratorLoss()(logits[1][part])[0] / count
        disc += coefficient * loss.DiscriminatorLoss()(logits[0][part], logits[1][part])[0] / count
        match += coefficient * loss.FeatureMatchingLoss()(maps[0][part], maps[1][part]) / count
    kind = options["adversarial"]
    assert [member["kind"] for member in members] == ["period"] * 5 + ["band"] * 3
    assert float(generator_loss(fake, kind, True, weights)) == pytest.approx(float(gen), rel=1e-4)
    assert float(discriminator_loss(real, fake, kind, True, weights)) == pytest.approx(float(disc), rel=1e-4)
    assert float(feature_matching(real, fake, summed=True, weights=weights)) == pytest.approx(float(match), rel=1e-4)


@proves("vocos", "mechanism")
def test_the_mel_distance_of_the_package(speech_files):
    peer("vocos")
    from vocos import loss

    options = read_recipe("vocos").training[0].objective.options
    wave = torch.from_numpy(vivavoce.read(speech_files[0]).samples[:, 8000:32576])[None]
    other = 0.8 * wave + 0.003 * torch.randn_like(wave)
    theirs = 45 * loss.MelSpecReconstructionLoss()(other[0], wave[0])
    task = CodecTask(codec_of({"kind": "mel_vocoder", "vocoder": VOCODER}), [wave[0]], mel=options["mel"])
    assert float(options["weights"]["mel"] * task.mel(other, wave)) == pytest.approx(float(theirs), rel=0.02)


@proves("vocos", "mechanism")
def test_it_learns_to_speak_and_is_loaded_again(speech_files, tmp_path):
    """On recorded speech, by the recipe's own losses."""
    recipe = read_recipe("vocos", "smoke", {"tokenizers.codec.vocoder": {**VOCODER, "width": 32, "hidden": 48}})
    torch.manual_seed(0)
    model = assemble(recipe)
    codec = model.system.codec
    said = vivavoce.read(speech_files[0]).samples[:, 8000:40000]
    clips = list(torch.from_numpy(resample(said, 16000, 24000)).split(6000, dim=1))[:6]
    options = {key: value for key, value in recipe.training[0].objective.options.items() if key != "kind"}
    task = CodecTask(codec, clips[:5], held_out=clips[5:], batch=4, **{**options, "seconds": 0.2})
    with torch.no_grad():
        before = task.evaluate(0)
    logs = learned(task, 15)
    with torch.no_grad():
        after = task.evaluate(0)
    assert logs[-1]["mel"] < 0.7 * logs[0]["mel"] and after["mel"] < 0.8 * before["mel"]
    model.save(tmp_path)
    audio = Audio(said[:, :12345], 24000)
    made, again = (each.resynth(audio) for each in (model, vivavoce.load(tmp_path)))
    assert made.audio.samples.shape == audio.samples.shape and made.tokens_per_second == 0
    np.testing.assert_array_equal(made.audio.samples, again.audio.samples)


@torch.no_grad()
def test_frames_of_each_form():
    wave = speech_like(0.3, 24000)[..., :7000]
    vocos = codec_of({"kind": "vocos-mel-24khz", "vocoder": VOCODER})
    frames = vocos.encode_latents(wave)
    whole = torch.nn.functional.pad(wave[:, 0], (0, -7000 % 256))
    torch.testing.assert_close(frames, vocos.decoder.log_mel(whole))
    sizes = {"width": 8, "residual_kernels": [3], "residual_dilations": [[1]]}
    for kind in ("hifigan", "bigvgan"):
        of = {"kind": kind, "rates": [8, 8, 4], "kernels": [16, 16, 8], **sizes}
        codec = codec_of({"kind": "mel_vocoder", "mel": {"of": "hifigan", "mels": 20, "floor": 1e-5}, "vocoder": of})
        frames = codec.encode_latents(wave)
        torch.testing.assert_close(frames, vocoder_mel(whole, 24000, 1024, 256, 20, None))
        assert codec.decode_latents(frames).shape[-1] == whole.shape[-1]
    for samples in (1, 255, 256, 300, 1500):
        assert vocos.decode(None, torch.tensor([samples]), **vocos.beside(wave[..., :samples])).shape == (1, 1, samples)
    published = build("hifigan").system.codec.decoder
    assert sum(parameter.numel() for parameter in published.parameters()) == 13_926_017  # config_v1, norms folded


@pytest.mark.parametrize("name", ["dmel", "chattts-dvae"])
def test_a_codec_of_mel_frames_speaks_through_it(name, tmp_path):
    plain = codec_of({"kind": name, **NARROW[name]})
    c = plain.config
    mel = {"of": "decades", "mels": c.mels, "fft_size": c.fft_size, "hop": c.hop, "fmin": c.fmin, "fmax": c.fmax}
    if name == "dmel":
        mel |= {"window": c.window, "floor": c.floor}
    else:
        mel |= {"floor": 1e-5, "edge": (c.fft_size - c.hop) // 2}
    options = {"kind": "mel_vocoder", "sample_rate": c.sample_rate, "mel": mel, "vocoder": VOCODER}
    recipe = read_recipe("vocos", "smoke", {"sample_rate": c.sample_rate, "tokenizers.codec": options})
    torch.manual_seed(1)
    recipe = recipe.model_copy(update={"tokenizers": {"codec": type(recipe.tokenizers["codec"])(**options)}})
    model = assemble(recipe)
    model.save(tmp_path / "run")
    codec = codec_of({"kind": name, **NARROW[name], "vocoder": {"source": str(tmp_path / "run")}})
    own = codec.decoder.parts[-1].state_dict()
    theirs = model.system.codec.decoder.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)
    wave = speech_like(0.1, c.sample_rate)
    if name == "chattts-dvae":
        with torch.no_grad():
            frames = codec.features(wave)
            heard = model.system.codec.encode_latents(torch.nn.functional.pad(wave, (0, -wave.shape[2] % codec.hop)))
        torch.testing.assert_close(frames, heard[:, : frames.shape[1]])
    save_codec(codec, tmp_path / "codec")
    (tmp_path / "run" / "recipe.yaml").unlink()
    again = load_codec(tmp_path / "codec")
    assert torch.equal(again.decode(again.encode(wave)), codec.eval().decode(codec.encode(wave)))


def test_what_does_not_go_together_is_named(tmp_path):
    build("vocos", "smoke").save(tmp_path / "vocos")
    for kind, options, said in (
        ("dmel", {"source": str(tmp_path / "vocos")}, "other mel frames: .*of vocos, not decades"),
        ("dmel", {"source": str(tmp_path / "none")}, "has no recipe.yaml"),
        ("dmel", {"source": str(tmp_path / "vocos"), "width": 8}, "width beside `source`"),
        ("firefly-gan-vq", {"source": str(tmp_path / "vocos")}, "no mel frames come back"),
        ("mel_vocoder", {"kind": "unit_hifigan"}, "hears units"),
        ("mel_vocoder", {"kind": "hifigan"}, "320 samples a frame, frames are 256 apart"),
    ):
        with pytest.raises(RecipeError, match=said):
            codec_of({"kind": kind, "vocoder": options})
    for mel, said in (({"of": "log"}, "none of vocos"), ({"fmin": 80.0}, "fmin: fixed"), ({"bands": 3}, "bands")):
        with pytest.raises(RecipeError, match=said):
            codec_of({"kind": "mel_vocoder", "mel": mel})
    with pytest.raises(RequestError, match="no codes"):
        build("vocos", "smoke").system.codec.decode(torch.zeros(1, 0, 3))
