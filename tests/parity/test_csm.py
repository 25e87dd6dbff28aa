"""CSM against transformers' `CsmForConditionalGeneration`: sizes, logits of both decoders, greedy frames."""

import json

import numpy as np
import pytest
import torch

import vivavoce
from peers import peer
from proves import proves
from published_models import mimi_config
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.systems.imports import csm
from vivavoce.systems.imports.pairs import check
from vivavoce.systems.token_system import Cells
from vivavoce.tokenizers.pieces import SentencePieces

transformers = peer("transformers")
LEVELS, CARD, SPARE, TEXT, ROWS = 6, 64, 3, 100, 2
ROPE = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}  # fmt: skip


def their_model(tied=True, rope=ROPE):
    """A random CsmForConditionalGeneration with grouped heads and stretched positions."""
    torch.manual_seed(5)
    depth = {
        "num_codebooks": LEVELS, "backbone_hidden_size": 32, "vocab_size": CARD + SPARE, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_parameters": rope,
    }  # fmt: skip
    config = transformers.CsmConfig(
        num_codebooks=LEVELS, vocab_size=CARD + SPARE, text_vocab_size=TEXT, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, codebook_pad_token_id=CARD + 2,
        codebook_eos_token_id=0, audio_token_id=98, audio_eos_token_id=99, bos_token_id=1, pad_token_id=98,
        tie_codebooks_embeddings=tied, rope_parameters=rope, depth_decoder_config=depth,
        codec_config=mimi_config(CARD, LEVELS),
    )  # fmt: skip
    model = transformers.CsmForConditionalGeneration(config).eval()
    chance = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("codec_model"):
                noise = torch.randn(parameter.shape, generator=chance)
                parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else parameter + noise * 0.2)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "tables of its own"])
def saved(request, tmp_path_factory):
    """Their model, and the directory that it saves."""
    model, folder = their_model(request.param), tmp_path_factory.mktemp("csm")
    model.save_pretrained(folder)
    SentencePieces().save(folder / "tokenizer.model")
    return model, folder


@proves("csm", "mechanism")
def test_the_published_size_has_their_names_shapes_and_number_of_weights():
    with torch.device("meta"):
        model = vivavoce.build("csm")
        reference = transformers.CsmForConditionalGeneration(transformers.CsmConfig())
    theirs = {name: tensor for name, tensor in reference.state_dict().items() if not name.startswith("codec_model")}
    config = reference.config.to_dict()
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    config["rope_parameters"] = config["depth_decoder_config"]["rope_parameters"] = rope
    found = csm.options(config, "published")
    csm.as_one(theirs, tied=True)
    check(model.system.stage, csm.pairs(found), theirs, "their model")
    count = sum(p.numel() for name, p in reference.named_parameters() if not name.startswith("codec_model"))
    assert sum(p.numel() for p in model.system.stage.parameters()) == count == 1_552_791_552


def request(chance, text=7, frames=9):
    return (torch.randint(4, 80, (ROWS, 1, text), generator=chance),
            torch.randint(0, CARD, (ROWS, LEVELS, frames), generator=chance))  # fmt: skip


@proves("csm", "weights")
@proves("csm", "mechanism")
def test_logits_of_the_backbone_and_of_every_level(saved):
    reference, folder = saved
    model = vivavoce.load(folder)
    text, voice = request(torch.Generator().manual_seed(1))
    size, frames = text.shape[2], voice.shape[2]
    with torch.no_grad():
        speech = reference.backbone_model.embed_tokens(voice.transpose(1, 2))
        columns = [reference.embed_text_tokens(text[:, 0]), speech]
        out = reference(inputs_embeds=torch.cat(columns, dim=1), output_hidden_states=True)
        hidden = out.hidden_states[-1][:, size - 1 : -1].flatten(0, 1)
        ids = torch.nn.functional.pad(voice.transpose(1, 2).flatten(0, 1)[:, : LEVELS - 1], (1, 0))
        depth = reference.depth_decoder(input_ids=ids, backbone_last_hidden_state=hidden).logits
        lengths = {"text": torch.full((ROWS,), size), "voice": torch.full((ROWS,), frames)}
        ours = model.system(Cells({"text": text, "voice": voice}, lengths), "speak")["voice"]
    expected = [out.logits[:, size - 1 : -1], *depth.view(ROWS, frames, LEVELS - 1, -1).unbind(2)]
    assert bool(ours.loss[:, size:].all()) and not bool(ours.loss[:, :size].any())
    for k, (found, theirs) in enumerate(zip(ours.logits, expected, strict=True)):
        error = float((found[:, size:] - theirs).abs().max() / theirs.std())
        assert error < 1e-4, f"level {k}: {error:.1e} of the deviation"


@proves("csm", "weights")
def test_greedy_frames_are_theirs(saved):
    """Row by row and several at once; what is given is gone on with."""
    reference, folder = saved
    model = vivavoce.load(folder)
    model.system.sampling.clear()
    text, _ = request(torch.Generator().manual_seed(2))
    items = [{"text": row[0].tolist()} for row in text]
    spoken = model.fill("speak", items, length=10)
    for row, found in zip(text, spoken, strict=True):
        theirs = reference.generate(input_ids=row, max_new_tokens=10, do_sample=False, depth_decoder_do_sample=False)
        assert found["voice"].T.tolist() == theirs[0].tolist()
        assert found["audio"].samples.shape == (1, 10 * 1920)
    going_on = model.fill("speak", {**items[0], "voice": spoken[0]["voice"][:, :4]}, length=10)
    assert np.array_equal(going_on["voice"], spoken[0]["voice"])


@proves("csm", "mechanism")
def test_a_frame_of_zeros_ends_the_turn(saved):
    """And only a whole one does; another row goes on."""
    _, folder = saved
    model = vivavoce.load(folder)
    text, voice = request(torch.Generator().manual_seed(3), frames=5)
    stop, nearly = voice[0].clone(), voice[1].clone()
    stop[:, 3] = 0
    nearly[:-1, 3] = 0
    nearly[-1, 3] = 5
    items = [{"text": row[0].tolist()} for row in text]
    head = model.system.stage.head("voice")
    seen: list[int] = []

    def choose(hidden, pick, prefix=None, levels=None):
        frame = len(seen)
        seen.append(frame)
        both = torch.stack([stop[:, min(frame, 4)], nearly[:, min(frame, 4)]])
        return both[-len(hidden) :]  # who has ended is left out

    head.choose = choose
    ended, other = model.fill("speak", items, length=5)
    assert ended["voice"].tolist() == stop[:, :3].tolist() and other["voice"].tolist() == nearly.tolist()
    assert ended["audio"].samples.shape == (1, 3 * 1920)
    with pytest.raises(RequestError, match="did not end within 20"):
        nearly[:, 4] = 1
        model.fill("speak", items, limit=20)


def test_turns_of_text_and_speech_stand_as_theirs(saved):
    """The context of a conversation: text, speech, text; then its answer."""
    reference, folder = saved
    model = vivavoce.load(folder)
    text, voice = request(torch.Generator().manual_seed(7), text=11, frames=6)
    counts = {"turn/text": torch.tensor([[7, 4]] * ROWS), "turn/voice": torch.tensor([[4, 2]] * ROWS)}
    words = reference.embed_text_tokens(text[:, 0])
    speech = reference.backbone_model.embed_tokens(voice.transpose(1, 2))
    lengths = {"text": torch.full((ROWS,), 11), "voice": torch.full((ROWS,), 6)}
    with torch.no_grad():
        parts = [words[:, :7], speech[:, :4], words[:, 7:], speech[:, 4:]]
        out = reference(inputs_embeds=torch.cat(parts, dim=1))
        ours = model.system(Cells({"text": text, "voice": voice}, lengths, counts), "converse")["voice"]
    spoken = [*range(7, 11), *range(15, 17)]
    assert ours.loss[0, :, 0].nonzero()[:, 0].tolist() == spoken
    before = [column - 1 for column in spoken]
    error = (ours.logits[0][:, spoken] - out.logits[:, before]).abs().max() / out.logits.std()
    assert float(error) < 1e-4


def test_log_probabilities_saving_and_loading(saved, tmp_path):
    _, folder = saved
    model = vivavoce.load(folder)
    text, voice = request(torch.Generator().manual_seed(4))
    item = [("text", text[0, 0].tolist(), False), ("voice", voice[0].numpy(), True)]
    found = model.loglik(item)
    assert found.keys() == {f"voice[{k}]" for k in range(LEVELS)} and all(n == 9 for _, n in found.values())
    model.save(tmp_path / "own")
    again = vivavoce.load(tmp_path / "own")
    assert again.loglik(item) == found
    assert again.system.streams["text"].tokenizer.encode("hello") == SentencePieces().encode("hello")


def test_what_does_not_fit_is_named(saved, tmp_path):
    _, folder = saved
    for name in folder.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for change, expected in [
        ({"num_codebooks": 5}, "speaks of|does not fit"), ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"num_hidden_layers": 3}, r"layers\.2.* is missing"), ({"codebook_eos_token_id": [0]}, "one id is supported"),
        ({"vocab_size": 40}, "the codec has 64 codes"),
    ]:  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=expected):
            vivavoce.load(tmp_path)


@proves("csm", "recipe", "builds")
@proves("csm", "recipe", "generates")
def test_the_smoke_size_builds_and_speaks():
    model = vivavoce.build("csm", size="smoke")
    said = model.fill("speak", {"text": "hello there"}, length=5, seed=1)
    assert said["voice"].shape == (6, 5) and said["audio"].samples.shape == (1, 5 * 1920)
    assert not np.array_equal(said["voice"], model.fill("speak", {"text": "hello there"}, length=5, seed=2)["voice"])
