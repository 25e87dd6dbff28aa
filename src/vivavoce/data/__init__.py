"""Corpora and token stores: from recordings or offline synthesis to batches of tokens.

`clips` and `corpora` bring corpora in (`cuts`: lhotse), `synthesis`, `spoken` and `dialogues` make them, `augment`
changes waveforms, `tokenize` fills a `store`, `packing` and `buckets` form batches. `conversations` and its neighbours
simulate what the embedded model is trained on.
"""
