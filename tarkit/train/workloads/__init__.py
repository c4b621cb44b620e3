"""What one step of each trainer computes and keeps, from its settings and what it starts from.

A model is built on torch's meta device: its values are counted, none is allocated. FLOPs and bytes
follow the formulas of `tarkit.train.costs` and `tarkit.train.sana_costs`. Each trainer has a file
here; `stages.py` lists them.

Letters: B rows of a pass, N codes of a picture, K codes, V vocabulary, D width, E width of an
embedding of the language model.
"""
