"""What the operations say to arguments that do not fit: what was given, what was expected, what to do."""

import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import epilogue
from checks import OPS, arguments, each
from epilogue import gated_mlp, glu, linear, mlp
from epilogue.nn import FusedGLU, FusedMLP

X, W, B = torch.ones(4, 5), torch.ones(6, 5), torch.ones(6)
UP, DOWN = torch.ones(6, 5), torch.ones(3, 6)
GATED = (X, UP, UP, DOWN)
NX, NW = np.ones((4, 5)), np.ones((6, 5))

# A call, and what its message says in this order.
TYPE_ERRORS = [
    (lambda: linear(X, W, activation=lambda x: x), "must be a name … got <function"),
    (lambda: linear(X, W, activation=nn.Softmax(-1)), "Softmax … nn.GELU()"),
    (lambda: linear(X, W, alpha=2.0), "gelu has no parameter 'alpha' … none"),
    (lambda: linear(X, W, act="relu"), "linear: unknown keyword 'act'; did you mean activation?"),
    (lambda: FusedMLP(5, 6, out=3), "FusedMLP: unknown keyword 'out'; did you mean out_features?"),
    (lambda: linear(X, W, "relu"), "linear: bias must be a torch.Tensor … got str; an activation goes by keyword"),
    (lambda: linear(X, W, activatoin="relu"), "linear: unknown keyword 'activatoin'; did you mean activation?"),
    (lambda: linear(X, W, activation="leaky_relu", negativ_slope=0.2), "linear … mean negative_slope?"),
    (lambda: linear(X, W, param=0.1), "gelu has no parameter 'param'"),
    (lambda: linear(X, W, dropout=0.1), "gelu has no parameter 'dropout'"),
    (lambda: mlp(X, UP, DOWN, dropout=0.1), "mlp: unknown keyword 'dropout'; did you mean dropout_p?"),
    (lambda: gated_mlp(*GATED, gate_wieght=UP), "gated_mlp … mean gate_weight?"),
    (lambda: FusedMLP(5, 6, dropout_p=0.1), "FusedMLP: unknown keyword 'dropout_p'; did you mean dropout?"),
    (lambda: FusedGLU(5, 6, activatoin="relu"), "FusedGLU … did you mean activation?"),
    (lambda: epilogue.linear_backward(NX, NX, NW, wieght=NW), "linear_backward … mean weight?"),
    (
        lambda: epilogue.explain("mlp", 8, 8, 8, dropout_p=0.1, gpu="H100"),
        "explain … 'dropout_p'; did you mean dropout?",
    ),
    (lambda: linear(X, W, activation=partial(F.gelu, aproximate="tanh")), "no parameter 'aproximate'"),
    (lambda: linear(X, W, activation="threshold", value=1.0), "needs the parameter 'threshold'"),
    (
        lambda: linear(X, W, activation=nn.LeakyReLU(0.3), negative_slope=0.1),
        "twice, by activation=LeakyReLU",
    ),
    (lambda: linear(X, W, activation="elu", alpha=B), "elu's alpha must be a number … prelu(slope)"),
    (lambda: linear(X, W, activation="elu", alpha="1.0"), "elu's alpha must be a number, got '1.0'"),
    (lambda: linear(X, W, activation="elu", alpha=True), "elu's alpha must be a number, got True"),
    (lambda: linear(X.to(torch.float8_e4m3fn), W), "float16, bfloat16, float32 or float64 … float8_e4m3fn"),
    (lambda: linear([1.0], W), "x must be a torch.Tensor, a numpy.ndarray or a cupy.ndarray … got list … as_tensor"),
    (lambda: linear(X.int(), W), "float16, bfloat16, float32 or float64 … torch.int32 … convert it"),
    (lambda: linear(X.cfloat(), W), "float16, bfloat16, float32 or float64 … complex64"),
    (lambda: linear(X, None), "weight must be a torch.Tensor as x is … got NoneType"),
    (lambda: linear(X, NW), "weight must be a torch.Tensor as x is … got ndarray"),
    (lambda: linear(NX, W), "weight must be a numpy.ndarray as x is … got Tensor"),
    (lambda: linear(X, W, 1.0), "bias must be a torch.Tensor as x is … got float"),
    (lambda: linear(X, W.double()), "weight must have the dtype of x, torch.float32 … float64 … autocast"),
    (lambda: linear(X, W, B.half()), "bias must have the dtype of x … torch.float16"),
    (lambda: linear(NX, NW.astype(np.float32)), "dtype of x, float64 … got float32"),
    (lambda: linear(X, W.to("meta")), "weight must be on the device of x, cpu … got meta … Move one"),
    (lambda: linear(X, W, B.to("meta")), "bias must be on the device of x, cpu; got meta"),
    (lambda: linear(X, W, activation="prelu", slope=np.ones(6)), "a number or a floating torch.Tensor"),
    (lambda: linear(NX, NW, activation="prelu", slope=B), "or a floating numpy.ndarray"),
    (lambda: linear(X, W, activation="prelu", slope=B.int()), "a number or a floating torch.Tensor"),
    (lambda: linear(X, W, activation="prelu", slope=B.to("meta")), "prelu's slope … cpu; got meta"),
    (lambda: mlp(X, UP, DOWN.half()), "down_weight must have the dtype of x"),
    (lambda: epilogue.linear_backward(B, X, W), "linear_backward is for arrays … backward()"),
]

VALUE_ERRORS = [
    (
        lambda: linear(X, W, activation="gelo"),
        "unknown activation 'gelo' … mean 'gelu' … relu_squared … epilogue.activation",
    ),
    (lambda: gated_mlp(X, torch.ones(12, 5), None, DOWN, up_bias=B), "packed [2H, K] … leave out up_bias"),
    (lambda: gated_mlp(X, (UP, UP), None, DOWN), "gated_mlp: a pair goes in as gate_weight and up_weight"),
    (lambda: mlp(X, UP, DOWN, recompute="no"), "mlp: recompute must be True or False, got 'no'"),
    (lambda: mlp(X, UP, DOWN, dropout_p=None), "mlp: dropout_p must be a probability between 0 and 1, got None"),
    (lambda: gated_mlp(X, torch.ones(11, 5), None, DOWN), "packed gate_weight is [2F, K] … [11, 5]"),
    (lambda: linear(X, W, activation="maxout"), "linear: 'maxout' takes two … epilogue.glu"),
    (lambda: linear(X, W, activation="swiglu"), "'swiglu' takes two … epilogue.glu"),
    (lambda: mlp(X, UP, DOWN, activation="bilinear"), "mlp: 'bilinear' … epilogue.gated_mlp"),
    (lambda: linear(X, B), "weight must be [out, in], two axes … got shape [6]"),
    (lambda: linear(X, W[None]), "weight must be [out, in] … got shape [1, 6, 5]"),
    (lambda: linear(X[0, 0], W), "the last axis of x … 5 … x [] … weight [6, 5]"),
    (lambda: linear(torch.ones(4, 7), W), "last axis of x must be weight's second, 5 … x [4, 7]"),
    (lambda: linear(X, W.T), "got x [4, 5] and weight [5, 6] … goes in as weight.T"),
    (lambda: linear(X, W, torch.ones(5)), "bias must have shape [6] … row of weight … got [5]"),
    (lambda: linear(X, W, torch.ones(1, 6)), "bias must have shape [6] … got [1, 6]"),
    (lambda: linear(NX, NW.T), "got x [4, 5] and weight [5, 6] … weight.T"),
    (
        lambda: linear(X, W, activation="prelu", slope=torch.ones(5)),
        "one element or 6 … got shape [5]",
    ),
    (lambda: linear(X, W, activation="prelu", slope=torch.ones(6, 1)), "one element or 6 … [6, 1]"),
    (lambda: glu(X, torch.ones(7, 5)), "packed weight is [2F, K] … even … got [7, 5]"),
    (lambda: glu(X, W, (B, B)), "laid out as weight is … one array [2F], got a pair"),
    (lambda: glu(X, (W, W), B), "laid out as weight is … a pair (gate, up), got one array"),
    (lambda: glu(X, (W, W, W)), "pairs (gate, up) … got 3 and 2 items"),
    (lambda: glu(X, (W, W), (B,)), "pairs (gate, up) … got 2 and 1 items"),
    (lambda: glu(X, (W, W[:4])), "must have one shape … got [6, 5] and [4, 5]"),
    (lambda: glu(X, (W.T, W)), "glu: the last axis of x must be gate_weight's second"),
    (lambda: glu(X, (W, W.T)), "up_weight's second … goes in as up_weight.T"),
    (lambda: glu(X, (W, W), (B, torch.ones(4))), "up_bias must have shape [6] … got [4]"),
    (lambda: glu(X, W, activation="prelu", slope=B), "prelu's slope must have one element or 3"),
    (lambda: mlp(X, W.T, DOWN), "mlp: the last axis of x must be up_weight's second … up_weight.T"),
    (lambda: mlp(X, UP, DOWN.T), "down_weight must be [out, 6] … hidden … got [6, 3]"),
    (lambda: mlp(X, UP, DOWN, None, B), "down_bias must have shape [3] … got [6]"),
    (lambda: gated_mlp(X, UP, UP, DOWN.T), "gated_mlp: down_weight must be [out, 6]"),
    (lambda: gated_mlp(X, UP, UP[:4], DOWN), "gated_mlp: gate and up weight … one shape"),
    (lambda: mlp(X, UP, DOWN, dropout_p=1.5), "dropout_p … between 0 and 1, got 1.5"),
    (lambda: gated_mlp(*GATED, dropout_p=-0.1), "gated_mlp: dropout_p … got -0.1"),
    (lambda: gated_mlp(*GATED, dropout_p=float("nan")), "between 0 and 1, got nan"),
    (
        lambda: mlp(NX, NW, np.ones((3, 6)), dropout_p=0.5, training=True),
        "needs torch tensors … training=False",
    ),
    (lambda: epilogue.linear_backward(np.ones((4, 5)), NX, NW), "result's shape [4, 6] … float64 [4, 5]"),
    (lambda: epilogue.linear_backward(np.ones((4, 6), int), NX, NW), "floating … got int64 [4, 6]"),
    (lambda: epilogue.linear_backward(torch.ones(4, 6), NX, NW), "numpy.ndarray … got Tensor"),
    (lambda: epilogue.glu_backward(np.ones((4, 6)), NX, NW), "glu_backward: dy … [4, 3]"),
    (lambda: epilogue.mlp_backward(NX, NX, NW, np.ones((3, 6))), "mlp_backward: dy … [4, 3]"),
    (lambda: epilogue.gated_mlp_backward(NX, NX, NW, NW, np.ones((3, 6))), "gated_mlp_backward: dy … [4, 3]"),
]


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [(TypeError, *case) for case in TYPE_ERRORS] + [(ValueError, *case) for case in VALUE_ERRORS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_message(error, call, message):
    with pytest.raises(error, match=".*".join(re.escape(part) for part in message.split(" … "))):
        call()


@pytest.mark.parametrize("op", OPS)
def test_mistakes_in_any_operand_are_found(op, rng):
    args = each(torch.tensor, arguments(op, rng))
    call = getattr(epilogue, op.split()[0])
    call(**args)
    for name, value in args.items():
        if value is None:
            continue
        for change in (torch.Tensor.int, torch.Tensor.half, lambda tensor: tensor.to("meta")):
            with pytest.raises(TypeError, match=r"float16|dtype of x|device of x"):
                call(**{**args, name: each(change, value)})
        with pytest.raises(ValueError, match=r"must|even"):
            call(**{**args, name: each(lambda t: t[..., :-1], value)})


class Tagged(np.ndarray):
    """A subclass of a user's."""


SUBCLASSES = {
    "matrix": (np.asmatrix, "convert it with numpy.asarray"),
    "MaskedArray": (lambda array: np.ma.array(array, mask=array > 0.5), "convert it with its filled"),
    "Tagged": (lambda array: array.view(Tagged), "convert it with numpy.asarray"),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("subclass", SUBCLASSES)
@pytest.mark.parametrize("op", OPS)
def test_numpys_subclasses_are_refused(op, subclass, rng):
    """A matrix multiplies where an array's elements do, a masked array would lose its mask: in any operand, forward and backward."""
    made, remedy = SUBCLASSES[subclass]
    args = {**arguments(op, rng), "activation": "prelu", "slope": np.ones(6)}
    name = op.split()[0]
    dy = np.ones(getattr(epilogue, name)(**args).shape)
    for backward in (False, True):
        call = getattr(epilogue, f"{name}_backward" if backward else name)
        whole = {**args, "dy": dy} if backward else args
        for operand in set(whole) - {"activation"}:
            if whole[operand] is None:
                continue
            with pytest.raises(
                TypeError, match=f"{name}.* a numpy.ndarray itself, got its subclass {subclass}.*{remedy}"
            ):
                call(**{**whole, operand: each(made, whole[operand])})


@pytest.mark.parametrize("op", OPS)
def test_a_mapped_file_is_an_array(op, rng, tmp_path):
    args = arguments(op, rng)

    def mapped(array):
        file = np.memmap(tmp_path / "array", array.dtype, "w+", shape=array.shape)
        file[...] = array
        return file

    call = getattr(epilogue, op.split()[0])
    y = call(**{**args, "x": mapped(args["x"])})
    np.testing.assert_array_equal(y, call(**args))
    assert type(y) is np.ndarray


def test_attributes_that_are_not_there():
    with pytest.raises(AttributeError, match="module 'epilogue' has no attribute 'swiglu'"):
        epilogue.swiglu  # noqa: B018
