"""What defines SSR-Speech's codec: new frames are marked in the sound, the others keep what was heard there."""

import pytest
import torch
import torch.nn.functional as F

from codec_families import narrow
from codec_parity import check_wave, speech_like
from codecs_recipes import learned
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.errors import RecipeError, RequestError
from vivavoce.training.watermark_task import WatermarkTask, regions

SYSTEM = "ssr-speech-watermark-encodec"


@pytest.fixture(scope="module")
def codec():
    return narrow("ssr-speech-codec")


@pytest.fixture(scope="module")
def wave(codec):
    return speech_like(0.2, codec.sample_rate)


@proves(SYSTEM, "mechanism")
@torch.no_grad()
def test_the_decoder_is_told_marks_and_what_stays(codec, wave):
    latents = codec.encode_latents(wave)
    codes = codec.encode(wave)
    quantized = codec.quantizer.decode(codes)
    marks = torch.zeros(1, latents.shape[1], dtype=torch.bool)
    marks[:, 10:25] = True
    told = codec.joined(quantized, marks, latents)
    assert told.shape[-1] == 16 + 16 + 1
    torch.testing.assert_close(told[..., :16], quantized)
    assert not told[:, 10:25, 16:32].any() and torch.equal(told[:, :10, 16:32], latents[:, :10])
    assert len(told[0, 10:25, 32].unique()) == len(told[0, 25:, 32].unique()) == 1 and told[0, 9, 32] != told[0, 10, 32]
    first, *rest = codec.decoder
    x = F.linear(F.elu(told), first.function[1].weight, first.function[1].bias)
    for part in rest:
        x = part(x)
    edited = codec.edit(codes, marks, wave)
    check_wave(edited, x.transpose(1, 2))
    everywhere = codec.decode_latents(codec.joined(quantized))
    check_wave(codec.decode(codes), everywhere)  # what a model says is new
    assert (edited - everywhere).abs().max() > 0.01 * edited.std()
    rows, lengths = torch.cat([wave, wave]), torch.tensor([wave.shape[-1], 15 * codec.hop])
    rows[1, :, 15 * codec.hop :] = 0
    both = codec.edit(codec.encode(rows, lengths), marks.repeat(2, 1), rows, lengths)
    check_wave(both[:1], edited[..., : wave.shape[-1]])
    alone = codec.edit(codec.encode(rows[1:, :, : 15 * codec.hop]), marks[:, :15], rows[1:, :, : 15 * codec.hop])
    check_wave(both[1:, :, : 15 * codec.hop], alone)
    with pytest.raises(RequestError, match="bool"):
        codec.edit(codes, marks.long(), wave)
    with pytest.raises(RequestError, match="filled with anything"):
        codec.edit(codes, marks, wave[..., : 5 * codec.hop])


@proves(SYSTEM, "mechanism")
@torch.no_grad()
def test_who_listens_hears_frames_of_any_sound(codec, wave):
    found = codec.marked(wave)
    logits = codec.listen(wave)
    torch.testing.assert_close(found, logits[..., 1].sub(logits[..., 0]).sigmoid())
    rows = torch.cat([wave, wave])
    rows[1, :, 2 * codec.hop :] = 5.0
    both = codec.marked(rows, torch.tensor([wave.shape[-1], 2 * codec.hop]))
    torch.testing.assert_close(both[:1], found)
    torch.testing.assert_close(both[1:, :2], codec.marked(wave[..., : 2 * codec.hop]))
    assert not both[1, 2:].any() and found.shape[-1] == codec.frames(wave.shape[-1])


@proves(SYSTEM, "mechanism")
def test_regions_are_one_to_four_and_leave_a_fifth():
    drawn = torch.stack([regions(50, torch.Generator().manual_seed(seed)) for seed in range(300)])
    share = drawn.float().mean(1)
    assert drawn.sum(1).max() <= 40 and share.min() > 0 and 0.3 < share.mean() < 0.7
    starts = (drawn[:, 1:] & ~drawn[:, :-1]).sum(1) + drawn[:, 0]
    assert set(starts.tolist()) == {1, 2, 3, 4}
    assert drawn.float().mean(0).min() > 0.03 and regions(1, torch.Generator()).all()


@proves(SYSTEM, "mechanism")
def test_marks_are_learned_and_codes_stay():
    torch.manual_seed(0)
    codec = narrow("ssr-speech-codec", filters=6, lstm=0)
    clips = list(speech_like(0.5, codec.sample_rate, rows=3))
    task = WatermarkTask(codec, clips, held_out=clips[:1], seconds=0.2, batch=2, mel={"windows": [128], "mels": [8]},
                         weights={"mel": 0.05, "wave": 0.0})  # fmt: skip
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    batch = task.batch(0, 0, 1)
    marks = task.marks(2, 40, 0)
    with torch.no_grad():
        made, _ = task.made(batch, marks)
        told = F.cross_entropy(codec.listen(made).transpose(1, 2), marks.long())
        clean = -codec.listen(batch).log_softmax(-1)[..., 0].mean()
    logs = learned(task, 26, ("decoder", "mark", "listener"))
    assert logs[0]["quantizer"] == pytest.approx(float(told + 0.25 * clean), rel=1e-4)
    assert logs[-1]["quantizer"] < 0.6 * logs[0]["quantizer"], [log["quantizer"] for log in logs]
    moved = {name.split(".")[0] for name, value in codec.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"decoder", "mark", "listener"}
    with torch.no_grad():
        figures = task.evaluate(0)
        assert figures == task.evaluate(1) and {"marked", "beside", "clean", "mel"} <= set(figures)
    assert figures["marked"] > figures["beside"] + 0.2 and figures["marked"] > figures["clean"] + 0.3, figures
    with pytest.raises(RecipeError, match="makes no marks"):
        WatermarkTask(narrow("dmel"), clips)


@proves(SYSTEM, "mechanism")
def test_published_rate_of_ssr_speech():
    with torch.device("meta"):
        codec = codec_of({"kind": "ssr-speech-codec"})
    assert (codec.sample_rate, codec.frame_rate, codec.bits_per_second) == (16000, 50, 2200)
    assert codec.mark.shape == (2, 8) and codec.decoder.parts[0].function[1].in_features == 128 + 128 + 8
    with pytest.raises(RecipeError, match="dim 8"):
        codec_of({"kind": "ssr-speech-codec", "dim": 8})
