"""Models in training, stock and with epilogue: the demos, the training step, the bytes kept for backward."""
