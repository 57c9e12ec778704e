"""The choice of a kernel and of its tiles: which product is asked for, on which chip, what was measured and what the model predicts.

Nothing here launches a kernel, so that `epilogue.explain` can ask about a GPU that is not in this machine.
"""
