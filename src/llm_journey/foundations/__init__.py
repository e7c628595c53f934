"""The mathematics under a language model, written out in NumPy: each function with its formula, shapes, units, source.

Five modules: linear_algebra, probability, information, optimization, autograd. They favour reading over speed and are
proven equal to SciPy or PyTorch by tests/foundations; `pictures` draws what each idea does inside the transformer.
Nothing here imports torch, and nothing of the package below or beside it.
"""
