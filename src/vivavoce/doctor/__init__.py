"""What is wrong with a corpus, a token store, a recipe or a run, and what to do about it (`vivavoce doctor`).

`examine.doctor(place)` looks; a file for each kind holds its checks: `corpus`, `store`, `recipe`, `run`, and those of
a built `model`. A check is one small function in a registry (see `findings`).
"""
