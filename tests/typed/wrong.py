"""A user's script with a mistake on each marked line."""
# pyright: strict

import numpy as np
import torch

import epilogue
from epilogue.nn import FusedGatedMLP, FusedLinear, FusedMLP

x, w, a = torch.ones(4, 6), torch.ones(6, 6), np.ones((6, 6))

epilogue.lineaar(x, w)  # wrong
epilogue.linear(x, w, activatoin="gelu")  # wrong
epilogue.mlp(x, w, w, activation=3)  # wrong
epilogue.linear(x, a)  # wrong
epilogue.linear(a, a, w)  # wrong
epilogue.linear(x, w, activation="elu", alpha="1.0")  # wrong
epilogue.glu([x], w)  # wrong
epilogue.gated_mlp(x, w, w)  # wrong
epilogue.linear(a, a).backward()  # wrong
epilogue.linear_backward(a, a, a).wieght  # wrong
epilogue.backend("cuppy")  # wrong
epilogue.explain("mlp", 8, 8, "8")  # wrong
epilogue.explain("mpl", 8, 8, 8)  # wrong
epilogue.check("gelu", slope="0.1")  # wrong
epilogue.check("gelu").claim  # wrong
epilogue.activation(oracle="tanh")  # wrong
epilogue.nn.FusedLinaer(6, 6)  # wrong
epilogue.resolve(3)  # wrong
FusedLinear(6, 6, activatoin="gelu")  # wrong
FusedLinear(6, 6, dtype="float32")  # wrong
FusedMLP(6, 8, device=0.5)  # wrong
FusedMLP(6, 8)(a)  # wrong
FusedGatedMLP(6, 8)(x).shpae  # wrong
