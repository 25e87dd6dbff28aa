"""Text as pieces of words: SentencePiece's own reading of a sentence, a tokenizer.json's; words on frames."""

import io

import pytest
import sentencepiece

from peers import peer
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.tokenizers.pieces import JsonPieces, SentencePieces
from vivavoce.tokenizers.registry import build_tokenizer

SENTENCES = ["the cat sat on the mat", "a cat and a hat", "that is the thing that they thought", "naïve thoughts"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with merges and bytes, Moshi's special ids."""
    model, path = io.BytesIO(), tmp_path_factory.mktemp("words") / "words.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, model_type="bpe", vocab_size=320, pad_id=3,
        unk_id=0, bos_id=1, eos_id=2, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def test_pieces_are_sentencepieces_own(trained):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(trained))
    words = SentencePieces(trained)
    assert len(words) == reference.get_piece_size() and (words.pad, words.end_of_pad) == (3, 0)
    for text in (*SENTENCES, "zebra 7 £ 語"):
        ids = words.encode(text)
        assert ids == reference.encode(text)
        assert words.text(ids) == f" {reference.decode(ids)}"
        assert words.text([1, 3, *ids, 0, 2]) == words.text(ids), "control ids and pads are no text"
    one_by_one = "".join(words.text([i]) for i in words.encode("the cat sat"))
    assert one_by_one == " the cat sat"


def test_words_stand_in_consecutive_frames_behind_the_end_of_pads(trained):
    words = SentencePieces(trained)
    assert words.spoken("the thought") == [[0, *words.encode("the")], [0, *words.encode("thought")]]
    assert SentencePieces(trained, end_of_pad=None).spoken("  the ") == [words.encode("the")]
    assert words.spoken(" ") == []


def test_a_stand_in_spells_until_a_file_is_read(trained, tmp_path):
    words = build_tokenizer({"kind": "sentencepiece", "size": 400})
    assert len(words) == 400 and len(words.encode("cat")) == 4 and words.text(words.encode("Cat 7")) == " Cat 7"
    words.read(trained)
    assert len(words) == 400 and words.encode("the cat") == SentencePieces(trained).encode("the cat")
    words.save(tmp_path / "again.model")
    assert SentencePieces(tmp_path / "again.model").encode("the cat") == words.encode("the cat")


def test_files_that_are_none_are_refused(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"pieces; the model's vocabulary has 20"):
        SentencePieces(trained, size=20)
    with pytest.raises(RequestError, match="a SentencePiece model is expected there"):
        SentencePieces(tmp_path / "nothing.model")
    (tmp_path / "odd.model").write_bytes(b"odd")
    with pytest.raises(CheckpointError, match="no SentencePiece model"):
        SentencePieces(tmp_path / "odd.model")
    with pytest.raises(RequestError, match="give the size"):
        JsonPieces()
    with pytest.raises(RequestError, match="no file yet"):
        JsonPieces(size=8).encode("a")
    with pytest.raises(RequestError, match=r"a tokenizer\.json is expected there"):
        JsonPieces(tmp_path / "nothing.json")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        JsonPieces(tmp_path / "odd.json")


def test_a_tokenizer_json_reads_as_its_package_does(tmp_path):
    """Byte-level pieces, as Llama's; special ids are taken as they stand in a text, and are no text themselves."""
    tokenizers = peer("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|begin|>", "<|end|>", "<|pad|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(SENTENCES * 10, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    words = JsonPieces(tmp_path / "tokenizer.json", pad=2, end_of_pad=None)
    text = "<|begin|>the cat, naïve<|end|>"
    ids = words.encode(text)
    assert ids == made.encode(text).ids and ids[0] == 0 and ids[-1] == 1 and len(words) == made.get_vocab_size()
    assert words.text([*ids, 2]) == "the cat, naïve"
    first, second = words.spoken("the cat")
    assert words.text(first) == "the" and words.text(second) == " cat" and words.text([2]) == ""
    words.save(tmp_path / "again.json")
    assert JsonPieces(tmp_path / "again.json").encode(text) == ids
