"""What defines PromptCodec: a prompt beside the codes, whose voice and frames join them by learned weights."""

import math

import pytest
import torch

from codec_families import narrow
from codec_parity import check_wave, speech_like
from codecs_recipes import learned
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.errors import RecipeError, RequestError
from vivavoce.training.prompt_task import PromptTask


@pytest.fixture(scope="module")
def codec():
    made = narrow("promptcodec")
    made.decoder.parts[0].weights.data.copy_(torch.tensor([1.0, 0.7, 1.3]))
    return made


@pytest.fixture(scope="module")
def wave(codec):
    return speech_like(0.3, codec.sample_rate)


@proves("promptcodec", "mechanism")
@torch.no_grad()
def test_voice_and_frames_of_the_prompt_join_by_learned_weights(codec):
    prompt, x = speech_like(0.21, codec.sample_rate, rows=2, seed=3), torch.randn(2, 4, 8)
    part = codec.decoder.parts[0]
    voice, frames, counts = codec.heard(prompt)
    assert voice.shape == (2, 8) and frames.shape == (2, 21, 8) and counts.tolist() == [21, 21]
    state = part.told(part.initial_state(2), voice, frames, counts)
    told, _ = part.step(x, state)
    keys, values = part.cross.kv(frames).chunk(2, dim=-1)
    asked, found = part.cross.query(part.norm(x)), []
    for head in range(2):
        one = slice(4 * head, 4 * head + 4)
        shares = (asked[..., one] @ keys[..., one].transpose(1, 2) / math.sqrt(4)).softmax(-1)
        found.append(shares @ values[..., one])
    by_hand = x + 0.7 * voice[:, None] + 1.3 * part.cross.out(torch.cat(found, -1))
    torch.testing.assert_close(told, by_hand)
    turned, _ = part.step(x, part.told(part.initial_state(2), voice, frames.flip(1), counts))
    torch.testing.assert_close(turned, told)  # where a frame of the prompt stands does not count
    alone, _ = part.step(x, part.initial_state(2))
    torch.testing.assert_close(alone, x)
    assert (frames[:, 5:] - frames[:, 4:-1]).abs().max() > 0.01


@proves("promptcodec", "mechanism")
@torch.no_grad()
def test_a_prompt_changes_the_sound_and_never_the_codes(codec, wave):
    one, other = speech_like(0.25, codec.sample_rate, seed=5), speech_like(0.4, codec.sample_rate, seed=6)
    codes = codec.encode(wave)
    sounds = [codec.decode(codes, prompt=prompt) for prompt in (None, one, other)]
    for number, sound in enumerate(sounds):
        assert all((sound - before).abs().max() > 0.01 * sound.std() for before in sounds[:number])
    rows = torch.full((3, 1, other.shape[-1]), float("nan"))
    rows[0, :, : one.shape[-1]], rows[1], lengths = one[0], other[0], torch.tensor([one.shape[-1], other.shape[-1], 0])
    both = codec.decode(codes.repeat(3, 1, 1), prompt=rows.nan_to_num(9.0), prompt_lengths=lengths)
    for row, alone in zip(both, (sounds[1], sounds[2], sounds[0])):
        check_wave(row[None], alone)
    state, pieces = codec.decoder_state(1, one), []
    for frame in range(codes.shape[-1]):
        piece, state = codec.decode_step(codes[..., frame : frame + 1], state)
        pieces.append(piece[..., : int(state.emitted[0])])
    pieces.append(codec.decode_flush(state)[0])
    check_wave(torch.cat(pieces, -1), sounds[1])
    assert torch.equal(codec.decode(codes, **codec.beside(wave)), codec.decode(codes, prompt=wave))
    with pytest.raises(RequestError, match="2 prompts for 1 rows"):
        codec.decode(codes, prompt=rows[:2])
    with pytest.raises(RequestError, match="waveforms"):
        codec.decode(codes, prompt=one[0])


@proves("promptcodec", "mechanism")
def test_codes_and_prompt_learn_apart_from_each_other():
    torch.manual_seed(0)
    codec = narrow("promptcodec")
    clips = [rows for rows in speech_like(0.6, codec.sample_rate, rows=3)]
    task = PromptTask(codec, clips, held_out=clips[:1], seconds=0.25, prompt=0.2, batch=3, apart=2.0,
                      mel={"windows": [128], "mels": [8]}, weights={"quantizer": 1})  # fmt: skip
    batch = task.batch(0, 0, 1)
    assert batch["wave"].shape == (3, 1, 2000) and batch["prompt"].shape == (3, 1, 1600)
    row, told = batch["wave"][0, 0], batch["prompt"][0, 0]  # both of one clip, at different places
    clip = next(clip[0] for clip in clips if (clip[0].unfold(0, 2000, 1) == row).all(1).any())
    assert (clip.unfold(0, 1600, 1) == told).all(1).any() and not torch.equal(row[:1600], told)
    _, _, quantized, alike = codec.eval().prompted(batch["wave"], batch["prompt"])
    voice, frames, _ = codec.heard(batch["prompt"])
    sides = [x / x.norm(dim=1, keepdim=True) for x in (quantized.latents.mean(1), voice, frames.mean(1))]
    by_hand = sum((a * b).sum(1).abs().mean() for a, b in ((sides[0], sides[1]), (sides[0], sides[2]), sides[1:])) / 3
    torch.testing.assert_close(alike, by_hand)
    logs = learned(task, 12)
    assert logs[-1]["mel"] < 0.8 * logs[0]["mel"]
    alike = alike.detach()
    with torch.no_grad():
        assert codec.prompted(batch["wave"], batch["prompt"])[3] < alike
        assert {"mel", "snr_db"} <= set(task.evaluate(0))
    made, _, _, alike = codec.prompted(batch["wave"], batch["prompt"])
    codec.zero_grad()
    (alike + made.square().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for name, p in codec.named_parameters()
               if name.startswith(("prompts", "decoder.parts.0.cross.kv")) and "key.bias" not in name)  # fmt: skip
    with pytest.raises(RecipeError, match="takes no prompt"):
        PromptTask(narrow("dmel"), clips)


@proves("promptcodec", "mechanism")
def test_published_rate_of_promptcodec():
    with torch.device("meta"):
        codec = codec_of({"kind": "promptcodec"})
    assert (codec.sample_rate, codec.frame_rate, codec.bits_per_second) == (24000, 75, 3000)
    assert len(codec.quantizer.groups) == 2 and codec.codebooks == 4
    with pytest.raises(RecipeError, match="heads 3 divide"):
        codec_of({"kind": "promptcodec", "heads": 3})
