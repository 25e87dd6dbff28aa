"""Small models in transformers' format with random weights: what tests take for a recogniser, a text model, a codec."""

import json
from pathlib import Path

import torch

LETTERS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4} | {chr(97 + i): 5 + i for i in range(26)}


def ctc_recogniser(folder: Path):
    """A wav2vec 2.0 with a CTC head over letters, saved in `folder`; model and processor."""
    import transformers

    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps(LETTERS))
    config = transformers.Wav2Vec2Config(
        vocab_size=len(LETTERS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that letters change from frame to frame
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    processor = transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def mimi_config(codebook_size: int, levels: int) -> dict:
    """A narrow Mimi's configuration, as a part of another model's."""
    import transformers

    return transformers.MimiConfig(
        num_filters=4, hidden_size=64, upsample_groups=64, num_hidden_layers=1, intermediate_size=96,
        codebook_size=codebook_size, codebook_dim=48, vector_quantization_hidden_dimension=48, num_quantizers=levels,
    ).to_dict()  # fmt: skip


def text_lm(folder: Path, kind: str = "llama", begins: bool = True):
    """A causal language model over bytes, saved in `folder`; model and tokenizer. begins: texts begin with a token."""
    import transformers

    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    bytes_of = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    bytes_of.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of.decoder = tokenizers.decoders.ByteLevel()
    if begins:
        bytes_of.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    named = {"bos_token": "<s>"} if begins else {}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_of, eos_token="</s>", **named)
    sizes = {
        "llama": {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "num_attention_heads": 2,
                  "max_position_embeddings": 256},
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
        "opt": {"hidden_size": 16, "num_hidden_layers": 2, "ffn_dim": 24, "num_attention_heads": 2,
                "max_position_embeddings": 256, "word_embed_proj_dim": 16},
    }[kind]  # fmt: skip
    ids = {"bos_token_id": 0 if begins else 1, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(vocabulary), **sizes, **ids)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
