"""Moshi in transformers' format: a directory with Mimi inside loads; logits are `MoshiForConditionalGeneration`'s."""

import json

import numpy as np
import pytest
import torch

import vivavoce
from peers import peer
from proves import proves
from published_models import mimi_config
from vivavoce.errors import CheckpointError
from vivavoce.systems.token_system import Cells
from vivavoce.tokenizers.pieces import SentencePieces

transformers = peer("transformers")
ROWS, FRAMES, LEVELS, CARD, TEXT = 2, 13, 8, 64, 80


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Their model with random weights and the directory that it saves."""
    torch.manual_seed(4)
    config = transformers.MoshiConfig(
        vocab_size=TEXT, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        audio_vocab_size=CARD, ffn_dim=96, num_codebooks=LEVELS, sliding_window=50,
        audio_encoder_config=mimi_config(CARD, LEVELS),
        depth_decoder_config={"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64},
    )  # fmt: skip
    model = transformers.MoshiForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("audio_encoder"):
                wide = parameter.dim() > 1
                noise = torch.randn_like(parameter) * (parameter.shape[-1] ** -0.5 if wide else 0.3)
                parameter.copy_(noise if wide else parameter + noise)
    folder = tmp_path_factory.mktemp("moshi")
    model.save_pretrained(folder)
    SentencePieces().save(folder / "tokenizer.model")
    return model, folder


def columns(values, delays, initial):
    """Values [B, K, T] as columns: each level late by its delay, initial tokens before it and in a first column."""
    late = torch.full((ROWS, values.shape[1], FRAMES + 1), initial)
    for k, delay in enumerate(delays):
        late[:, k, 1 + delay :] = values[:, k, : FRAMES - delay]
    return late


@proves("moshi", "weights")
def test_logits_of_text_and_every_level(saved):
    reference, folder = saved
    model, chance, late = vivavoce.load(folder), torch.Generator().manual_seed(1), [0, *[1] * (LEVELS - 1)]
    text = torch.randint(0, TEXT, (ROWS, 1, FRAMES), generator=chance)
    voice, user = torch.randint(0, CARD, (2, ROWS, LEVELS, FRAMES), generator=chance)
    words = columns(text, [0], TEXT)
    said, heard = columns(voice, late, CARD), columns(user, late, CARD)
    with torch.no_grad():
        theirs = reference(
            input_ids=words[:, 0, :-1], moshi_audio_codes=said[..., :-1], user_audio_codes=heard[..., :-1]
        )
        ids = torch.cat([words[:, :, 1:], said[:, : LEVELS - 1, 1:]], dim=1).transpose(1, 2).flatten(0, 1)
        hidden = theirs.last_hidden_state.flatten(0, 1)[:, None].expand(-1, LEVELS, -1)
        depth = reference.depth_decoder(input_ids=ids, last_hidden_state=hidden).logits.view(ROWS, FRAMES, LEVELS, CARD)
        lengths = dict.fromkeys(("text", "voice", "user"), torch.full((ROWS,), FRAMES))
        ours = model.system(Cells({"text": text, "voice": voice, "user": user}, lengths))
    error = (ours["text"].logits[0][:, :FRAMES] - theirs.logits).abs().max() / theirs.logits.std()
    assert float(error) < 1e-4
    for k, logits in enumerate(ours["voice"].logits):
        there = ours["voice"].loss[:, :FRAMES, k]
        error = (logits[:, :FRAMES] - depth[:, :, k])[there].abs().max() / depth.std()
        assert float(error) < 1e-4 and int(there.sum()) == ROWS * (FRAMES - late[k]), k


@proves("moshi", "weights")
def test_the_codec_inside_is_theirs_and_it_talks(saved):
    reference, folder = saved
    model = vivavoce.load(folder)
    wave = torch.randn(1, 1, 9600, generator=torch.Generator().manual_seed(2)) * 0.1
    with torch.no_grad():
        theirs = reference.audio_encoder.encode(wave, num_quantizers=LEVELS).audio_codes
    assert torch.equal(model.system.codec.encode(wave), theirs)
    session = model.duplex(seed=0)
    out = [session.step(np.zeros(session.frame_size, np.float32)) for _ in range(3)]
    assert all(len(each.tokens["voice"]) == LEVELS and each.audio.shape == (1920,) for each in out)


def test_what_does_not_fit_is_named(saved, tmp_path):
    _, folder = saved
    for name in folder.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for key, value, expected in [
        ("hidden_size", 64, r"config|does not fit"), ("num_hidden_layers", 3, r"layers\.2.* is missing"),
        ("hidden_act", "mish", "hidden_act = 'mish'"), ("audio_vocab_size", 32, "speaks of 8 of 32"),
    ]:  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError, match=expected):
            vivavoce.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "ffn_dim"}))
    with pytest.raises(CheckpointError, match="'ffn_dim' is missing"):
        vivavoce.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        vivavoce.load(tmp_path)
