"""Kyutai's checkpoints and moshi-finetune's adapters as they lie on disks; what does not fit; the model's verbs."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vivavoce
from moshi_models import CARD, LEVELS, MIMI, PUBLISHED, TEXT, WORDS, directory, language_model
from peers import peer
from proves import proves
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.layouts import build_layout
from vivavoce.systems.imports import kyutai
from vivavoce.systems.token_system import Cells
from vivavoce.tokenizers.pieces import SentencePieces

loaders = peer("moshi.models.loaders")
FRAME = 1920


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    monkeypatch.setattr(peer("moshi.utils.compile"), "_compile_disabled", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Their model and its directory."""
    reference, config = language_model()
    return reference, directory(tmp_path_factory.mktemp("kyutai"), reference, config)


@pytest.fixture(scope="module")
def model(saved):
    return vivavoce.load(saved[1])


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def logits(model, seed=3):
    """Text logits [B, T, text] of random codes, and those codes [B, 17, T]."""
    codes = torch.randint(0, CARD, (2, 1 + 2 * LEVELS, 9), generator=torch.Generator().manual_seed(seed))
    codes[:, 0] %= TEXT
    values = {"text": codes[:, :1], "voice": codes[:, 1 : 1 + LEVELS], "user": codes[:, 1 + LEVELS :]}
    with torch.inference_mode():
        found = model.system(Cells(values, dict.fromkeys(values, torch.full((2,), 9))))
    return found["text"].logits[0][:, :9], found["voice"].logits[3][:, 1:9], codes


def same(model, reference):
    """Whether text and a level's logits are those of the package's model."""
    text, level, codes = logits(model)
    with torch.inference_mode():
        theirs = reference(codes)
    one = (text - theirs.text_logits[:, 0]).abs().max() / theirs.text_logits.std()
    other = (level - theirs.logits[:, 3, :8]).abs().max() / theirs.logits[:, 3, :8].std()
    return float(one) < 1e-4 and float(other) < 1e-4


@proves("moshi", "weights", "loads")
def test_half_precision_and_the_names_of_older_files(saved, tmp_path):
    """bf16 as published; matrices of all steps in one; files under the names that the configuration gives."""
    reference, folder = saved
    target = copied(folder, tmp_path / "older")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    older = {}
    for name, tensor in tensors.items():
        if ".in_projs." in name or ".out_projs." in name:
            start, _, rest = name.partition("_projs.")
            number = int(rest.split(".")[0])
            key = f"{start}_proj{'_weight' if start.endswith('in') else '.weight'}"
            older.setdefault(key, {})[number] = tensor
        else:
            older[name] = tensor
    older = {k: torch.cat([v[i] for i in range(len(v))]) if isinstance(v, dict) else v for k, v in older.items()}
    assert any(name.endswith("in_proj_weight") for name in older) and len(older) < len(tensors)
    (target / "model.safetensors").unlink()
    save_file({name: tensor.contiguous() for name, tensor in older.items()}, target / "moshi.safetensors")
    (target / WORDS).rename(target / "words.model")
    (target / MIMI).rename(target / "codec.safetensors")
    config = json.loads((target / "config.json").read_text())
    names = {"moshi_name": "moshi.safetensors", "mimi_name": "codec.safetensors", "tokenizer_name": "words.model"}
    (target / "config.json").write_text(json.dumps({**config, **names, "lm_gen_config": {"temp": 0.5, "top_k": 9}}))
    halved, _ = language_model()
    halved.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    model = vivavoce.load(target)
    assert same(model, halved) and not same(model, reference)
    assert (model.system.sampling["voice"].temperature, model.system.sampling["voice"].top_k) == (0.5, 9)
    assert (model.system.sampling["text"].temperature, model.system.sampling["text"].top_k) == (0.7, 25)
    small = vivavoce.load(target, dtype=torch.bfloat16)
    assert {p.dtype for p in small.system.stage.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in small.system.codec.parameters()} == {torch.float32}


def test_without_sizes_it_is_the_published_model(tmp_path):
    """A directory of files under their usual names; how many levels are predicted stands in the weights."""
    for name in (MIMI, WORDS):
        (tmp_path / name).write_bytes(b"")
    assert kyutai.is_kyutai(tmp_path) and kyutai.read_config(tmp_path) == kyutai.PUBLISHED
    for levels in (8, 16):
        save_file({f"linears.{k}.weight": torch.zeros(1) for k in range(levels)}, tmp_path / "model.safetensors")
        assert kyutai.read_config(tmp_path)["dep_q"] == levels
    (tmp_path / "config.json").write_text('{"model_type": "personaplex"}')
    assert kyutai.is_kyutai(tmp_path) and kyutai.options(kyutai.read_config(tmp_path), "here")["both"]
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    assert not kyutai.is_kyutai(tmp_path)


def test_saved_as_our_own_it_is_the_same_model(saved, model, tmp_path):
    reference, _ = saved
    model.save(tmp_path / "own")
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"recipe.yaml", "model.safetensors", "words.model"}
    again = vivavoce.load(tmp_path / "own")
    assert same(again, reference)
    signal = np.random.default_rng(0).normal(0, 0.1, (4, FRAME)).astype(np.float32)
    said, other = model.duplex(3), again.duplex(3)
    assert [said.step(frame).tokens for frame in signal] == [other.step(frame).tokens for frame in signal]
    assert again.system.spoken("Hi you") == model.system.spoken("Hi you") != []


# -- adapters --


@pytest.fixture(scope="module")
def adapter(saved, tmp_path_factory):
    """What moshi-finetune writes: factors beside some matrices, and a table that was trained too."""
    _, folder = saved
    own, target, rank = load_file(folder / "model.safetensors"), tmp_path_factory.mktemp("consolidated"), 4
    torch.manual_seed(7)
    factors = {}
    for name, tensor in own.items():
        if tensor.dim() == 2 and "emb" not in name:
            base = name.removesuffix(".weight")
            factors[f"{base}.lora_A.weight"] = torch.randn(rank, tensor.shape[1]) * tensor.shape[1] ** -0.5
            factors[f"{base}.lora_B.weight"] = torch.randn(tensor.shape[0], rank) * 0.2
    save_file(factors, target / "lora.safetensors")
    (target / "config.json").write_text(
        json.dumps({**PUBLISHED, "lora": True, "lora_rank": rank, "lora_scaling": 1.5})
    )
    return target


@proves("moshi", "weights")
@pytest.mark.parametrize("fused", [False, True])
def test_an_adapter_is_merged_as_theirs(saved, adapter, fused):
    reference, folder = saved
    config = json.loads((adapter / "config.json").read_text())
    theirs = loaders.get_moshi_lm(
        folder / "model.safetensors", config, "cpu", torch.float32, adapter / "lora.safetensors", fuse_lora=fused
    )
    model = vivavoce.load(folder, adapter=adapter)
    assert same(model, theirs) and not same(model, reference)


def test_an_adapter_may_be_a_file_be_named_or_be_whole(saved, adapter, tmp_path):
    reference, folder = saved
    merged = logits(vivavoce.load(folder, adapter=adapter))[0]
    named = copied(folder, tmp_path / "named")
    shutil.copy(adapter / "lora.safetensors", named / "mine.safetensors")
    config = json.loads((adapter / "config.json").read_text())
    (named / "config.json").write_text(json.dumps({**config, "lora_name": "mine.safetensors"}))
    assert torch.equal(logits(vivavoce.load(named))[0], merged)
    other = logits(vivavoce.load(folder, adapter=adapter / "lora.safetensors"))[0]  # without its own scaling: 2
    assert not torch.allclose(other, merged)
    changed, _ = language_model(seed=1)
    whole = tmp_path / "consolidated"
    whole.mkdir()
    save_file({name: t.contiguous() for name, t in changed.state_dict().items()}, whole / "consolidated.safetensors")
    assert same(vivavoce.load(folder, adapter=whole), changed)
    tables = {"text_emb.weight": torch.randn(TEXT + 1, 32), **load_file(adapter / "lora.safetensors")}
    save_file(tables, tmp_path / "with-tables.safetensors")
    model = vivavoce.load(folder, adapter=tmp_path / "with-tables.safetensors")
    assert torch.equal(model.system.stage.tables["text"][0].weight, tables["text_emb.weight"])
    assert not same(model, reference)


def test_an_adapter_that_does_not_fit_is_refused(saved, adapter, tmp_path):
    _, folder = saved
    factors = load_file(adapter / "lora.safetensors")
    name = "transformer.layers.0.self_attn.in_projs.0"
    for change, expected in [
        ({f"{name}.lora_A.weight": None}, "has lora_B, but no lora_A"),
        ({f"{name}.lora_B.weight": None}, "has lora_A, but no lora_B"),
        ({f"{name}.lora_A.weight": torch.zeros(4, 31)}, r"\[96, 4\] x \[4, 31\] for a matrix \[96, 32\]"),
        ({"nothing.lora_A.weight": torch.zeros(4, 3)}, "the model has no 'nothing.weight'"),
    ]:
        wrong = {key: value for key, value in {**factors, **change}.items() if value is not None}
        save_file(wrong, tmp_path / "lora.safetensors")
        with pytest.raises(CheckpointError, match=expected):
            vivavoce.load(folder, adapter=tmp_path / "lora.safetensors")
    save_file({"text_emb.weight": torch.zeros(81, 32)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="no LoRA factors"):
        vivavoce.load(folder, adapter=tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="holds no adapter"):
        vivavoce.load(folder, adapter=folder)
    with pytest.raises(RequestError, match="no checkpoint of Kyutai's"):
        vivavoce.load("mini", adapter=adapter)
    with pytest.raises(RequestError, match="no adapter 'nowhere'"):
        vivavoce.load(folder, adapter="nowhere")


# -- what does not fit --


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dim": 64}, r"'.*' is \[.*\]; its configuration makes"),
        ({"num_layers": 3}, r"'transformer\.layers\.2\..*' is missing"),
        ({"num_layers": 1}, r"'transformer\.layers\.1\..*' is in no part of the model"),
        ({"norm_emb": True}, "norm_emb = True: its embeddings are normalised, which is not supported"),
        ({"conditioners": {"speaker": {}}}, "conditioners = .*which no stream of the recipe carries"),
        ({"demux_second_stream": True}, "two text streams share one vocabulary"),
        ({"dep_q": 0}, "a model that writes and does not speak"),
        ({"dep_q": 4}, "dep_q = 4, 17 delays"),
        ({"positional_embedding": "sin"}, "positional_embedding = 'sin' is none of rope"),
        ({"depformer_pos_emb": "sin"}, "depformer_pos_emb = 'sin' is not supported; none is"),
        ({"depformer_gating": "none"}, "depformer_gating = 'none' is not supported"),
        ({"norm": "batch"}, "norm = 'batch' is none of rms_norm_f32"),
        ({"text_card_out": 5}, "text_card_out = 5"),
        ({"card": 128}, "codebooks of 256; the language model speaks of 8 of 128"),
        ({"num_heads": 0}, "no model can be made of it"),
        ({"text_card": 20}, "pieces; the model's vocabulary has 20"),
        ({"mimi_name": "other.safetensors"}, "Mimi's weights are expected there"),
        ({"tokenizer_name": "other.model"}, "the text tokenizer is expected there"),
        ({"moshi_name": "model.pt"}, "is a pickle, which is not read unasked"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(saved, tmp_path, change, expected):
    _, folder = saved
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED, **change}))
    with pytest.raises(CheckpointError, match=expected):
        vivavoce.load(tmp_path)


def test_missing_wrong_and_pickled_files_are_named(saved, tmp_path):
    reference, folder = saved
    target = copied(folder, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    short = {name: tensor for name, tensor in tensors.items() if "linears" not in name}
    save_file({**short, "odd": torch.zeros(2)}, target / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'linears\.0\.weight' is missing.*'linears\.3\.weight'.*; and 5 more"):
        vivavoce.load(target)
    (target / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cut short"):
        vivavoce.load(target)
    (target / WORDS).write_bytes(b"no")
    with pytest.raises(CheckpointError, match="no SentencePiece model"):
        vivavoce.load(target)
    SentencePieces().save(target / WORDS)
    (target / "config.json").write_text(json.dumps({**PUBLISHED, "moshi_name": "model.pt"}))
    torch.save({"fsdp_best_state": {"model": reference.state_dict()}}, target / "model.pt")
    assert same(vivavoce.load(target, allow_pickle=True), reference)
    save_file({**tensors, "text_linear.weight_scb": torch.zeros(2)}, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(PUBLISHED))
    with pytest.raises(CheckpointError, match="quantized by bitsandbytes"):
        vivavoce.load(target)


# -- what defines it --


@proves("moshi", "mechanism")
def test_acoustic_levels_stand_one_column_late_on_both_sides(model):
    """Text and semantic level of a frame in its column, the acoustic levels in the next; what is said before what is
    heard, from a column of initial tokens on."""
    layout = model.system.layout
    places = layout.place({name: torch.tensor([3]) for name in ("text", "voice", "user")})
    grid = places.grid({name: torch.arange(3).expand(1, n, -1) for name, n in [("text", 1), ("voice", 8), ("user", 8)]})
    assert grid[0, [0, 1, 2, 8, 9, 10, 16]].tolist() == [
        [0, 1, 2, -1], [0, 1, 2, -1], [-1, 0, 1, 2], [-1, 0, 1, 2], [0, 1, 2, -1], [-1, 0, 1, 2], [-1, 0, 1, 2],
    ]  # fmt: skip
    assert layout.fingerprint == build_layout(
        {"kind": "multi-stream", "delays": layout.delays}, list(layout.streams)
    ).fingerprint
    stage = model.system.stage
    levels = [("text", 1), ("voice", 8), ("user", 8)]
    blanks = [stage.tables[name][k].weight[-1] for name, n in levels for k in range(n)]
    torch.testing.assert_close(stage.beginning(), torch.stack(blanks).sum(0))


@proves("moshi", "mechanism")
def test_the_text_comes_before_the_sound_of_its_frame_and_steers_it(model):
    """Inner monologue: another word changes what is said in the same frame; the sound does not change the word."""
    _, _, codes = logits(model)
    values = {"text": codes[:, :1], "voice": codes[:, 1 : 1 + LEVELS], "user": codes[:, 1 + LEVELS :]}

    def read(**changes):
        with torch.inference_mode():
            found = model.system(Cells({**values, **changes}, dict.fromkeys(values, torch.full((2,), 9))))
        return found["text"].logits[0], torch.stack([found["voice"].logits[k] for k in range(LEVELS)], 2)

    text, sound = read()
    word = values["text"].clone()
    word[:, 0, 5] = (word[:, 0, 5] + 1) % TEXT
    other_text, other_sound = read(text=word)
    assert torch.equal(text[:, :6], other_text[:, :6]) and torch.equal(sound[:, :5], other_sound[:, :5])
    assert bool((sound[:, 5] != other_sound[:, 5]).flatten(1).any(1).all())
    level = values["voice"].clone()
    level[:, 2, 4] = (level[:, 2, 4] + 1) % CARD  # stands in column 5
    other_text, other_sound = read(voice=level)
    assert torch.equal(text[:, :6], other_text[:, :6])
    assert torch.equal(sound[:, 5, :3], other_sound[:, 5, :3])
    assert not torch.equal(sound[:, 5, 3:], other_sound[:, 5, 3:])


@proves("moshi", "recipe", "builds")
@proves("moshi", "recipe", "generates")
def test_the_smoke_size_builds_and_talks():
    model = vivavoce.build("moshi", size="smoke")
    signal = np.random.default_rng(0).normal(0, 0.1, (3, FRAME)).astype(np.float32)
    session = model.duplex(seed=2)
    said = [session.step(frame) for frame in signal]
    assert len({tuple(out.tokens["voice"]) for out in said}) == 3 and all(out.audio.shape == (FRAME,) for out in said)


# -- verbs --


def test_rows_in_lockstep_are_conversations_of_their_own(model):
    """Rows that begin together, one that is reset, one held now and then: each says what it says alone, to the bit at
    its first frame (before which each has chosen text and voice already)."""
    signal = np.random.default_rng(1).normal(0, 0.1, (3, 10, FRAME)).astype(np.float32)
    rows = model.duplex_rows(3)
    for row, seed in enumerate((5, 6, 7)):
        rows.reset(row, seed)
    said, heard = [[], [], []], [0, 0, 0]
    for tick in range(10):
        if tick == 4:
            rows.reset(2, seed=9)
            said[2], heard[2] = [], 0
        active = [True, tick % 3 != 1, True]
        batch = np.stack([signal[row, heard[row]] for row in range(3)])
        for row, out in enumerate(rows.step(batch, active)):
            if out is not None:
                said[row].append(out)
                heard[row] += 1
    for row, seed in enumerate((5, 6, 9)):
        session = model.duplex(seed)
        alone = [session.step(frame) for frame in signal[row, : heard[row]]]
        assert [out.tokens for out in said[row]] == [out.tokens for out in alone]
        assert all(np.allclose(a.audio, b.audio, atol=1e-5) for a, b in zip(said[row], alone, strict=True))


def test_a_prompt_is_what_was_before(model):
    """From its first frame on, which is chosen before anything is heard."""
    signal = np.random.default_rng(2).normal(0, 0.1, (8, FRAME)).astype(np.float32)
    session = model.duplex(3)
    said = [session.step(frame) for frame in signal]
    prompt = {name: np.array([out.tokens[name] for out in said[:5]]).T for name in ("text", "voice")}
    prompt["user"] = vivavoce.Audio(signal[:5].reshape(1, -1), 24000)
    # Text and semantic level of the frame after the prompt are chosen with its last frame: by the same seed.
    again = model.duplex(3, prompt)
    assert [again.step(frame).tokens for frame in signal[5:]] == [out.tokens for out in said[5:]]
    other = model.duplex(3, {**prompt, "voice": (prompt["voice"] + 1) % CARD})
    assert [other.step(frame).tokens for frame in signal[5:]] != [out.tokens for out in said[5:]]


def test_forced_words_stand_piece_by_piece(model):
    """Words in order, the pieces of each in consecutive frames behind the id that says that a word comes."""
    session, pieces = model.duplex(4), SentencePieces()
    session.say("hi you", threshold=0.0)
    expected = [0, *pieces.encode("hi"), 0, *pieces.encode("you")]
    said = [session.step(np.zeros(FRAME, np.float32)) for _ in expected]
    assert [out.tokens["text"][0] for out in said] == expected and not session.saying
    assert "".join(out.text for out in said) == " hi you"
    session = model.duplex(4)
    session.say([pieces.pad] * 3 + pieces.encode("no"))
    said = [session.step(np.zeros(FRAME, np.float32)) for _ in range(6)]
    assert "".join(out.text for out in said) == " no"
    session.say("yes", threshold=0.0)  # in the middle: from the next frame that has no word yet
    said = [session.step(np.zeros(FRAME, np.float32)) for _ in range(6)]
    assert "".join(out.text for out in said[1:]) == " yes"


def test_reply_fill_loglik_features_resynth(model):
    audio = vivavoce.Audio(np.random.default_rng(3).normal(0, 0.1, (1, 7 * FRAME)).astype(np.float32), 24000)
    reply = model.reply([("user", audio)], limit=0.5)
    assert reply.audio.sample_rate == 24000
    assert reply.text.replace(" ", "") == "".join(text.strip() for _, text in reply.pieces)
    filled = model.fill("duplex", {"user": audio}, seed=2)
    assert filled["voice"].shape == (LEVELS, 7) and filled["text"].shape == (1, 7)
    session = model.duplex(2)
    said = [session.step(frame) for frame in audio.samples.reshape(-1, FRAME)]
    assert [out.tokens["voice"] for out in said] == filled["voice"].T.tolist()
    given = [("user", audio, False), ("text", filled["text"], True)]
    both = [*given, ("voice", filled["voice"], True)]
    found = model.loglik([both, given])
    assert found[0]["text"][1] == 7 and found[0]["voice[0]"][1] == 7 and found[0]["voice[7]"][1] == 6
    assert found[1].keys() == {"text"}
    alone = model.loglik(both)
    assert all(abs(alone[key][0] - found[0][key][0]) < 1e-4 * alone[key][1] for key in alone)
    user = model.system.codec.encode(torch.from_numpy(audio.samples)[None])[0]
    assert model.loglik([("user", user.numpy(), False), *both[1:]]) == alone
    silent = model.loglik(both[1:])  # a stream that is left out is silent
    assert silent["text"][0] != alone["text"][0] and silent.keys() == alone.keys()
    assert model.features(audio).values.shape == (7, 64) and model.resynth(audio).codes.shape == (LEVELS, 7)
    with pytest.raises(RequestError, match="'user' is never predicted"):
        model.loglik([("user", audio, True)])
    spoken = model.reply([("user", "hi you")], task="speak", limit=4.0)
    assert spoken.text == "hi you" and spoken.audio.samples.any()
    said = model.fill("speak", {"text": "hi you"}, length=30)
    words = [i for i in said["text"][0] if i not in (0, 3)]
    assert words == SentencePieces().encode("hi you") and said["voice"].shape == (LEVELS, 30)


def test_a_channel_that_is_predicted_can_be_scored_and_is_heard_all_the_same(tmp_path):
    """Both channels: the user's levels follow the voice's in the depth transformer."""
    reference, config = language_model("both channels predicted")
    model = vivavoce.load(directory(tmp_path / "both", reference, config))
    audio = vivavoce.Audio(np.random.default_rng(4).normal(0, 0.1, (1, 5 * FRAME)).astype(np.float32), 24000)
    found = model.loglik([("user", audio, True)])
    assert found["user[0]"][1] == 5 and found["user[7]"][1] == 4
    session = model.duplex(1)
    said = [session.step(frame) for frame in audio.samples.reshape(-1, FRAME)]
    assert set(said[0].tokens) == {"text", "voice"}
    quiet = model.duplex(1)
    assert [quiet.step(np.zeros(FRAME, np.float32)).tokens for _ in said][1:] != [out.tokens for out in said][1:]
