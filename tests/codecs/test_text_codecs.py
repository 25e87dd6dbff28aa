"""Codecs that learn from texts and language models: LLM-Codec and DM-Codec, with small checkpoints made here."""

import json

import pytest
import torch
import torch.nn.functional as F

from codec_parity import speech_like
from proves import proves
from vivavoce.audio import read
from vivavoce.codecs import codec_of
from vivavoce.codecs.registry import config_of
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.quantizers import build_quantizer
from vivavoce.tokenizers.pieces import JsonPieces
from vivavoce.training.assembly import task_for
from vivavoce.training.text_supervision import TextSupervision, Told
from vivavoce.training.text_teacher import TextTeacher
from vivavoce.training.told_task import ToldTask

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["▁one", "▁two", "▁three", "▁four", "▁I", "▁am", "▁listening"]
PIECES = ["<unk>", "<s>", "</s>", *WORDS, *"▁abcdefgh", "ing", "▁1", "ten"]
SMALL = {"kind": "llm-codec", "encoder_dim": 16, "encoder_rates": [4, 20], "decoder_dim": 64, "decoder_rates": [20, 4],
         "attn_window_size": 4}  # fmt: skip
WHISPER = {"kind": "whisper", "mels": 16, "width": 32, "layers": 1, "heads": 2, "hidden": 16}


def tokenizer():
    """Words if they are known, else their letters."""
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", ignore_merges=True))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A Llama, and the encoders of a T5 and a BERT, over the same pieces."""
    folder, size = tmp_path_factory.mktemp("language-models"), len(PIECES)
    torch.manual_seed(0)
    common = {"num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
    models = {
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=size, hidden_size=8, **common)),
        "t5": transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=size, d_model=10, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
        ),
        "bert": transformers.BertModel(
            transformers.BertConfig(vocab_size=size, hidden_size=12, **common), add_pooling_layer=False
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def codec(checkpoints):
    torch.manual_seed(0)
    made = codec_of({**SMALL, "vocabulary": {"source": str(checkpoints / "llama")}}).eval()
    with torch.no_grad():  # so that latents of speech have many directions
        last = made.encoder.parts[-2]
        wave = speech_like(0.5, 16000)
        latents = made.encode_latents(wave)[0].unflatten(1, (4, -1)).flatten(0, 1)
        last.weight.div_(latents.std(0)[:, None, None])
        last.bias.sub_(made.encode_latents(wave)[0].unflatten(1, (4, -1)).flatten(0, 1).mean(0))
    return made


# LLM-Codec


@proves("llm-codec", "mechanism")
@torch.no_grad()
def test_codes_are_words_of_the_language_model(codec, checkpoints):
    """The table is the model's own; the slowest level has whole words alone; what is said can be read and read back."""
    table = transformers.AutoModel.from_pretrained(checkpoints / "llama").get_input_embeddings().weight
    assert torch.equal(codec.quantizer.table, table) and codec.codebook_sizes == (6, len(PIECES), len(PIECES))
    wave = speech_like(0.5, 16000)
    codes = codec.encode(wave)
    ids = codec.token_ids(codes)
    assert ids.shape == codes.shape and torch.equal(ids == -1, codes == -1)
    whole = [word for word in WORDS if len(word) > 2]  # not "I": one letter is no word
    slow = ids[0, 0][ids[0, 0] >= 0].tolist()
    assert {PIECES[i] for i in slow} <= set(whole) and torch.equal(ids[:, 1:], codes[:, 1:])
    text = JsonPieces(checkpoints / "llama" / "tokenizer.json", pad=-1, end_of_pad=None)
    (said,) = codec.words(codes, text)
    assert said[0].split() == [PIECES[i][1:] for i in slow] and len(said) == 3
    assert text.encode(said[0].strip()) == slow, "the language model reads the same words"
    assert torch.equal(codec.codes_of(ids), codes)
    for wrong, level in ((PIECES.index("▁I"), 0), (len(PIECES), 1), (-2, 2)):
        other = ids.clone()
        other[0, level, 0] = wrong
        with pytest.raises(RequestError, match=f"level {level} has no code for row {wrong}"):
            codec.codes_of(other)
    again = codec_of(config_of(codec)).eval()  # which needs the language model no more
    assert "source" not in json.dumps(config_of(codec))
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.encode(wave), codes) and torch.equal(again.token_ids(codes), ids)


@proves("llm-codec", "mechanism")
def test_levels_are_quantized_by_direction_at_rates_of_their_own():
    """By the published formula, level by level: mean over a stride, nearest direction among the projected rows, the row
    itself repeated; the loss moves the maps and the latents, never the table."""
    torch.manual_seed(0)
    quantizer = build_quantizer({"kind": "frozen_rvq", "width": 4 * 6, "entries": 20, "inner": 5, "words": 12})
    chosen = torch.randperm(20)[:12].sort().values
    quantizer.load(torch.randn(20, 5), chosen)
    x = torch.randn(2, 3, 24, requires_grad=True)
    residual, said, loss = x.unflatten(2, (4, 6)).flatten(1, 2), 0, 0
    found = quantizer.train()(x)
    for level, stride in enumerate((4, 2, 1)):
        book = quantizer.books()[level]
        rows = chosen if level == 0 else torch.arange(20)
        entries = quantizer.table[rows] @ book.project.weight.T + book.project.bias
        z = residual.unflatten(1, (-1, stride)).mean(2)
        cosine = F.normalize(z, dim=-1) @ F.normalize(entries, dim=-1).T
        codes = cosine.argmax(-1)
        assert torch.equal(found.codes[:, level, : 12 // stride], codes)
        heard = entries[codes]
        loss = loss + 0.25 * F.mse_loss(z, heard.detach()) + F.mse_loss(heard, z.detach())
        back = (z + (heard - z).detach()).repeat_interleave(stride, dim=1)
        residual, said = residual - back, said + back
    torch.testing.assert_close(found.latents, said.unflatten(1, (-1, 4)).flatten(2))
    torch.testing.assert_close(found.loss, loss)
    found.loss.backward()
    assert x.grad.abs().sum() > 0 and all(book.project.weight.grad.any() for book in quantizer.books())
    assert not quantizer.table.requires_grad and "table" in dict(quantizer.named_buffers())


@proves("llm-codec", "mechanism")
def test_levels_learn_what_a_text_means_and_what_an_encoder_hears(codec, checkpoints):
    """The mean of the slowest level against the mean of T5's vectors of the text, the second level against Whisper's
    frames nearest in time, both by hand; and both fall."""
    torch.manual_seed(0)
    wave = torch.cat([speech_like(0.4, 16000), speech_like(0.4, 16000, seed=3)])
    options = {"text_mean": {"weight": 2.0, "language_model": {"source": str(checkpoints / "t5")}},
               "level_features": {"level": 1, "teacher": WHISPER}}  # fmt: skip
    terms = TextSupervision(codec, options)
    terms.tell(Told(["one two three", ""], torch.zeros(2), torch.ones(2)))
    latents = codec.encode_latents(wave).detach()
    quantized = codec.quantize(latents)
    losses = terms(codec, wave, latents, quantized)
    first, second = codec.quantizer.books()[:2]
    codes = quantized.codes
    t5 = transformers.T5EncoderModel.from_pretrained(checkpoints / "t5").eval()
    vectors = t5(torch.tensor([[3, 4, 5]])).last_hidden_state[0]
    project = terms.terms["text_mean"].project
    slow = first.lookup(codes[:1, 0, : latents.shape[1]])
    torch.testing.assert_close(losses["text_mean"], F.mse_loss(project(slow.mean(1)), vectors.mean(0)[None]))
    heard = terms.terms["level_features"].heard(wave)
    middle = second.lookup(codes[:, 1, : 2 * latents.shape[1]])
    places = (torch.arange(middle.shape[1]) * heard.shape[1] / middle.shape[1]).long()
    project = terms.terms["level_features"].project
    torch.testing.assert_close(losses["level_features"], F.mse_loss(project(middle), heard[:, places]))
    torch.testing.assert_close(terms.total(losses), 2 * losses["text_mean"] + losses["level_features"])
    learning = torch.nn.Parameter(latents.clone())
    optimizer = torch.optim.Adam([learning, *(p for p in terms.parameters() if p.requires_grad)], 4e-2)
    seen = []
    for _ in range(12):
        losses = terms(codec, wave, learning, codec.quantize(learning))
        optimizer.zero_grad()
        terms.total(losses).backward()
        optimizer.step()
        seen.append({name: float(value.detach()) for name, value in losses.items()})
    assert all(seen[-1][name] < 0.8 * seen[0][name] for name in seen[0]), (seen[0], seen[-1])


def test_language_models_that_do_not_fit_are_named(checkpoints, tmp_path):
    with pytest.raises(RequestError, match="no language model"):
        codec_of({**SMALL, "vocabulary": {"source": str(tmp_path / "nothing")}})
    with pytest.raises(RecipeError, match="unknown size"):
        codec_of({**SMALL, "vocabulary": {"size": 3}})
    with pytest.raises(RequestError, match="a table of 3 rows"):
        codec_of({**SMALL, "vocabulary": {"entries": 3, "words": 4, "width": 2}})
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoints / "llama" / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        codec_of({**SMALL, "vocabulary": {"source": str(tmp_path)}})
    quantizer = build_quantizer({"kind": "frozen_rvq", "width": 8, "entries": 4, "inner": 2})
    with pytest.raises(CheckpointError, match="a table of"):
        quantizer.load(torch.zeros(5, 2))
    with pytest.raises(RecipeError, match="layer 2"):
        TextTeacher(str(checkpoints / "bert"), layer=2)


# DM-Codec


@proves("dm-codec", "mechanism")
@torch.no_grad()
def test_vectors_of_pieces_in_context(checkpoints):
    """Those of transformers' own model, without the special pieces; the mean over layers, or one of them."""
    bert = transformers.BertModel.from_pretrained(checkpoints / "bert").eval()
    said = bert(torch.tensor([[4, 3, 5]]), output_hidden_states=True).hidden_states
    place = str(checkpoints / "bert")
    for layer, expected in (("all", torch.stack(said).mean(0)), (None, said[-1]), (0, said[0])):
        (found,) = TextTeacher(place, layer=layer)(["two one three"])
        torch.testing.assert_close(found, expected[0])
    one, other = TextTeacher(place)(["one two", "two one"])
    assert not torch.allclose(one[1], other[0], atol=1e-3), "the context counts"
    assert TextTeacher(place)([""])[0].shape == (0, 12)


@proves("dm-codec", "mechanism")
def test_the_first_level_learns_what_is_said_along_each_dimension(checkpoints):
    """-log sigmoid of the cosine over time of each dimension, to the pieces spread over the clip, by hand; rows without
    a text have no part; together with HuBERT's it is the mean of both."""
    torch.manual_seed(0)
    codec = codec_of({"kind": "speechtokenizer", "filters": 2, "dim": 8, "lstm": 1, "codebook_size": 32}).eval()
    hubert = {"kind": "hubert", "conv_widths": [8] * 7, "width": 16, "layers": 2, "heads": 2, "hidden": 16,
              "position_kernel": 8, "position_groups": 2}  # fmt: skip
    language_model = {"source": str(checkpoints / "bert"), "layer": "all"}
    terms = TextSupervision(codec, {"distillation": {"weight": 60, "teacher": hubert},
                                    "text_distillation": {"weight": 60, "language_model": language_model}})  # fmt: skip
    wave = torch.cat([speech_like(0.4, 16000), speech_like(0.4, 16000, seed=3)])
    latents = codec.encode_latents(wave)
    quantized = codec.quantize(latents)
    # the first crop is the second half of its clip: of four pieces it says the last two
    terms.tell(Told(["one two three four", ""], torch.tensor([0.5, 0.0]), torch.tensor([1.0, 1.0])))
    losses = terms(codec, wave, latents, quantized)
    (vectors,) = TextTeacher(**language_model)(["one two three four"])
    target = vectors[[2] * 10 + [3] * 10]
    term = terms.terms["text_distillation"]
    said = term.project(codec.quantizer.decode(quantized.codes[:, :1]))[0]
    cosine = (said * target).sum(0) / (said.norm(dim=0) * target.norm(dim=0))
    torch.testing.assert_close(losses["text_distillation"], -torch.sigmoid(cosine).log().mean())
    both = (losses["distillation"] + losses["text_distillation"]) / 2
    torch.testing.assert_close(terms.total(losses), 120 * both)
    terms.tell(Told(["", ""], torch.zeros(2), torch.ones(2)))
    assert float(terms(codec, wave, latents, quantized)["text_distillation"]) == 0
    with pytest.raises(RecipeError, match="axis 'time'"):
        TextSupervision(codec, {"text_distillation": {"language_model": {}, "axis": "time"}})
    with pytest.raises(RecipeError, match="speed"):
        ToldTask(codec, [wave[0]], texts=["one"], speed=(0.9, 1.1))


@proves("dm-codec", "mechanism")
def test_it_learns_from_crops_of_clips_and_their_texts(checkpoints, speech_files):
    """Crops of real speech: each is told its own clip's text and its place in it; both distillations fall."""
    torch.manual_seed(0)
    clips = [torch.from_numpy(read(path).mono().resample(16000).samples) for path in speech_files[:2]]
    codec = codec_of({"kind": "speechtokenizer", "filters": 2, "dim": 16, "lstm": 1, "codebook_size": 32,
                      "quantizer": {"start_iterations": 2}})  # fmt: skip
    task = ToldTask(
        codec, clips, texts=["one two three four", "I am listening"], seconds=0.4, batch=3, seed=1,
        mel={"windows": [256], "mels": [8]}, weights={"mel": 0, "wave": 0.1},
        supervision={"text_distillation": {"weight": 20, "language_model": {"source": str(checkpoints / "bert")}}},
    )  # fmt: skip
    batch = task.batch(0, 0, 1)
    told = task.told(batch)
    for row, (clip, start) in enumerate(zip(batch["clips"].tolist(), batch["starts"].tolist())):
        assert torch.equal(batch["wave"][row], clips[clip][:, start : start + 6400])
        assert told.texts[row] == task.texts[clip]
        assert float(told.begins[row]) == pytest.approx(start / clips[clip].shape[1])
    halves = [task.batch(0, rank, 3) for rank in range(3)]
    assert all(torch.equal(batch[key], torch.cat([half[key] for half in halves])) for key in batch)
    assert "of '" in task.show(batch)[1]
    learning = [*codec.parameters(), *(p for p in task.supervision.parameters() if p.requires_grad)]
    optimizer, seen = torch.optim.Adam(learning, 1e-2), []
    codec.train()
    for _ in range(12):
        ((_, losses),) = task.updates(batch, 0)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append(float(losses["text_distillation"]))
    assert seen[-1] < 0.9 * seen[0], seen


def test_recipes_give_their_texts(recorded):
    """The plan of a recipe with such a term hands the manifest's transcripts on."""
    from vivavoce.systems import build

    model = build("dm-codec", "smoke")
    task = task_for(model.recipe, model.recipe.training[0], model, None)
    assert isinstance(task, ToldTask) and task.texts == ["one two", "", "three"]
