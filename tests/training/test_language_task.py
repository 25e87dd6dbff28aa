"""What defines Baichuan-Audio's tokenizer: codes of falling size, of which a frozen language model reads the text."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from codec_families import narrow
from codec_parity import check_wave, speech_like
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.errors import RecipeError
from vivavoce.lm.pretrained import load_text_lm
from vivavoce.tokenizers.registry import build_tokenizer
from vivavoce.training.flow_task import FlowTask
from vivavoce.training.language_task import LanguageTask, language_model

SYSTEM = "baichuan-audio-tokenizer"
SPELLED = {"kind": "sentencepiece"}
SMALL = {"llm": {"layers": 1, "width": 16, "heads": 2}, "text": SPELLED, "width": 8, "layers": 1}
QWEN = {"model_type": "qwen2", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 7}  # fmt: skip


@pytest.fixture(scope="module")
def codec():
    return narrow("baichuan-audio")


def batch_of(task, clips, targets):
    return task.collated(list(zip(clips, targets)))


@proves(SYSTEM, "mechanism")
@torch.no_grad()
def test_codes_are_of_falling_size_and_all_are_told_to_the_flow(codec):
    with torch.device("meta"):
        whole = codec_of({"kind": "baichuan-audio"})
    assert (whole.frame_rate, whole.sample_rate) == (12.5, 24000)
    assert whole.codebook_sizes == (8192, 4096, 2048, 1024, 1024, 1024, 1024, 1024) and whole.bits_per_second == 1075
    assert whole.to_mel.embedding.num_embeddings == 8192 + 4096 + 2048 + 5 * 1024 and whole.to_mel.config.ratio == 4
    wave = speech_like(0.3, 24000)
    codes = codec.encode(wave)
    assert codes.shape == (1, 3, codec.frames(wave.shape[-1])) and codec.codebook_sizes == (32, 16, 8)
    table = codec.to_mel.embedding.weight
    by_hand = table[codes[:, 0]] + table[32 + codes[:, 1]] + table[48 + codes[:, 2]]
    torch.testing.assert_close(codec.to_mel.embed(codec.numbers(codes)), by_hand)
    codec.codebooks = 1
    first = codec.decode(codec.encode(wave))
    codec.codebooks = 3
    check_wave(codec.decode(codes[:, :1]), first)


@proves(SYSTEM, "mechanism")
def test_the_model_says_the_text_behind_the_frames(codec):
    """By hand: each row alone, frames then ids, and the next id of every column behind the last frame."""
    torch.manual_seed(0)
    clips, texts = [speech_like(0.4, 24000)[0], speech_like(0.25, 24000, seed=3)[0]], ["ab", "hello"]
    task = LanguageTask(codec.eval(), clips, texts=texts, **SMALL)
    batch = batch_of(task, clips, task.targets)
    with torch.no_grad():
        losses, _ = task.losses(batch)
        text, mels = [], []
        for clip, target in zip(clips, task.targets):
            alone = codec.quantize(codec.encode_latents(clip[None])).latents
            columns = torch.cat([task.head.enter(alone), task.llm.embed(target[None])], dim=1)
            logits = task.llm.logits(task.llm.decoder(columns))[0, alone.shape[1] - 1 : -1]
            text.append(F.cross_entropy(logits, target, reduction="sum"))
            coarse, fine = task.head.mel(alone, torch.tensor([alone.shape[1]]))
            mels.append((coarse, fine, alone.shape[1] * 2))
        torch.testing.assert_close(losses["language"], sum(text) / sum(map(len, task.targets)))
        mel, total, count = codec.mel(batch["wave"]), 0.0, 0
        for row, (coarse, fine, size) in enumerate(mels):
            for made in (coarse, fine):
                apart = made[0, :size] - mel[row, :size]
                total = total + apart.abs().sum() + apart.square().sum()
            count += size * mel.shape[2]
        torch.testing.assert_close(losses["mel"], total / count)
    assert task.targets[0].tolist() == [*build_tokenizer(SPELLED).encode("ab"), task.end]
    assert "'ab'" in task.show(batch)[1]


@proves(SYSTEM, "mechanism")
def test_tokens_learn_by_a_model_that_stays(codec):
    """Which of two sounds it is, the codes learn to tell a frozen model, and their mel frames with it."""
    torch.manual_seed(0)
    codec = narrow("baichuan-audio")
    time = torch.arange(4800) / 24000
    clips = [(0.3 * torch.sin(2 * torch.pi * hertz * time))[None] for hertz in (200, 3000)] * 2
    task = LanguageTask(codec, clips, texts=["a", "b"] * 2, held_out=clips[:2], held_out_texts=["a", "b"], batch=4,
                        weights={"mel": 0.005, "quantizer": 0.1},
                        **{**SMALL, "llm": {**SMALL["llm"], "width": 64}})  # fmt: skip
    frozen = [p.clone() for p in task.llm.parameters()]
    decoder = {name: value.clone() for name, value in codec.decoder.state_dict().items()}
    assert not set(task.modules()["head"].state_dict()) & set(task.llm.state_dict())
    first = task.evaluate(0)
    optimizer = torch.optim.Adam([*codec.encoder.parameters(), *task.head.parameters()], 1e-2)
    codec.train()
    for step in range(20):
        ((_, losses),) = task.updates(task.batch(step, 0, 1), step)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert {"language", "mel", "quantizer", "usage/2"} <= set(losses)
    ears = [p for name, p in codec.encoder.named_parameters() if p.requires_grad and "key.bias" not in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ears)
    codec.eval()
    last = task.evaluate(0)
    assert last["language"] < 0.7 * first["language"] and last["mel"] < 0.6 * first["mel"], (first, last)
    assert all(torch.equal(p, before) for p, before in zip(task.llm.parameters(), frozen))
    assert all(torch.equal(value, decoder[name]) for name, value in codec.decoder.state_dict().items())
    flow = FlowTask(codec, clips, held_out=clips[:1], seconds=0.2, batch=2)
    with torch.no_grad():
        assert {"flow", "used/0", "used/2"} <= set(flow.evaluate(0))
    with pytest.raises(RecipeError, match="no mel frames"):
        LanguageTask(narrow("dmel"), clips, texts=["a"] * 4, **SMALL)


@proves(SYSTEM, "mechanism")
def test_a_published_model_is_read_from_its_directory(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    tokenizers.Tokenizer(tokenizers.models.WordLevel({**vocabulary, "?": 27}, unk_token="?")).save(
        str(tmp_path / "tokenizer.json")
    )
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers")
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**QWEN)).eval()
    save_file({name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"},
              tmp_path / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    llm, pieces, end = language_model(str(tmp_path), None)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        torch.testing.assert_close(llm(ids), model(ids).logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(llm(ids), load_text_lm(tmp_path)(ids))
    assert end == 7 and len(pieces) == 28
    with pytest.raises(RecipeError, match="needs a tokenizer"):
        language_model({"layers": 1, "width": 16, "heads": 2}, None)
    (tmp_path / "config.json").write_text(json.dumps({**QWEN, "eos_token_id": None}))
    with pytest.raises(RecipeError, match="None ends a text"):
        language_model(str(tmp_path), None)
