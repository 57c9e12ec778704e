"""What `epilogue.explain` says of a call's products is what the call asks the dispatcher, whatever is trained, dropped or frozen."""

import inspect
import itertools
from types import SimpleNamespace

import pytest
import torch

import epilogue
from epilogue import autograd
from epilogue.autograd import operators
from epilogue.autograd.plain import plain_layer
from epilogue.backends import Backend
from epilogue.lookup import resolve_call
from epilogue.triton import dact, linear, operands
from epilogue.triton.plan.chips import CHIPS

M, SIZES = 24, {"aligned": (32, 48), "odd": (19, 29)}
GROUPS = {
    "linear": [("x",), ("weight",), ("bias",)],
    "glu": [("x",), ("weight",), ("bias",)],
    "mlp": [("x",), ("up_weight", "up_bias"), ("down_weight",), ("down_bias",)],
    "gated_mlp": [("x",), ("gate_weight", "up_weight", "gate_bias", "up_bias"), ("down_weight",), ("down_bias",)],
}
"""Arguments that are frozen together."""


@pytest.fixture
def asked(monkeypatch):
    """The problems that the launchers of a call would ask the dispatcher about; in their place plain torch operations run."""
    problems = []

    def linear_fwd(layer, applied, keep):
        problems.append(linear._problem(layer.in_rows(applied.gated), applied, keep))
        return plain_layer(layer, applied._replace(dropout=None), keep, "triton")

    def linear_dact(dy, weight, saved, keep, applied, needs):
        problems.append(dact._problem(dy, weight, applied, needs.h))
        m, n = dy.shape[0], weight.shape[1]
        width = (1 + applied.gated) * n
        return dy.new_zeros(m, width), dy.new_zeros(m, n), torch.zeros(width), torch.zeros(n)

    def act_bwd(dy, saved, keep, applied, needs):
        width = (1 + applied.gated) * dy.shape[1]
        return dy.new_zeros(len(dy), width), None, torch.zeros(width), torch.zeros(dy.shape[1])

    launchers = SimpleNamespace(linear_fwd=linear_fwd, linear_dact=linear_dact, act_bwd=act_bwd)
    monkeypatch.setattr(operators, "kernels", lambda name: Backend(None, None, lambda: launchers))
    for module in (dact, linear, operands):
        monkeypatch.setattr(module, "machine", lambda x: CHIPS["H100"])
    return problems


def arrays(op, k, n):
    shapes = {
        "x": (M, k), "weight": ((2 if op == "glu" else 1) * n, k), "bias": ((2 if op == "glu" else 1) * n,),
        "up_weight": (n, k), "gate_weight": (n, k), "down_weight": (k, n), "up_bias": (n,), "gate_bias": (n,),
        "down_bias": (k,),
    }  # fmt: skip
    return {
        name: torch.zeros(shape, dtype=torch.bfloat16)
        for name, shape in shapes.items()
        if name in itertools.chain(*GROUPS[op])
    }


def parameters(act):
    """Of the activation: those without a default; and where one is learnable, once more with that as a tensor."""
    given = {name: 1.0 for name, default in act.params.items() if default is inspect.Parameter.empty}
    yield given
    for name in act.learnable[:1]:
        yield {**given, name: torch.full((1,), 0.5)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("op", "dropout"), [(op, dropout) for op in GROUPS for dropout in (False, True) if "mlp" in op or not dropout]
)
def test_explain_says_what_the_call_asks(op, dropout, size, asked):
    (k, n), gated = SIZES[size], op in ("glu", "gated_mlp")
    tensors = arrays(op, k, n)
    acts = [act for act in epilogue.ACTIVATIONS.values() if gated or act.arity == 1]
    for act, params in [(entry, params) for entry in acts for params in parameters(entry)]:
        learned = [(name,) for name, value in params.items() if isinstance(value, torch.Tensor)]
        for choice in itertools.product((False, True), repeat=len(GROUPS[op] + learned)):
            frozen = {*itertools.chain(*itertools.compress(GROUPS[op] + learned, choice))}
            for name, tensor in (tensors | params).items():
                if isinstance(tensor, torch.Tensor):
                    tensor.requires_grad_(name not in frozen)
            asked.clear()
            resolved, values = resolve_call(op, act, params, gated)
            call = {
                name: tensors.get(name)
                for name in inspect.signature(getattr(epilogue, op)).parameters
                if name in tensors
            }
            options = {"dropout_p": 0.5} if dropout else {}
            y = getattr(autograd.KERNELS["triton"], op)(*call.values(), resolved, values, **options)
            if y.requires_grad:
                y.backward(torch.zeros_like(y))
            said = epilogue.explain(
                op,
                M,
                k,
                n,
                activation=act,
                training=True,
                dropout=dropout,
                frozen=frozen,
                gpu="H100",
                **params,
            )
            assert asked == [step.problem for step in said.steps], (act, params, frozen)
            assert said.backend == ("triton" if asked else "eager")


def test_nothing_is_kept_without_training(asked):
    tensors = arrays("mlp", 32, 48)
    with torch.no_grad():
        resolved, values = resolve_call("mlp", "gelu", {}, False)
        autograd.KERNELS["triton"].mlp(
            *(tensors[name] for name in ("x", "up_weight", "down_weight", "up_bias", "down_bias")), resolved, values
        )
    said = epilogue.explain("mlp", M, 32, 48, gpu="H100")
    assert asked == [step.problem for step in said.steps]


def test_without_an_activation_the_product_is_cublas():
    said = epilogue.explain("linear", 64, 64, 64, activation="identity", gpu="H100")
    assert (said.backend, said.because, said.steps) == ("eager", "without an activation the product is cuBLAS's", [])


def test_what_can_be_frozen():
    one, listed = (
        epilogue.explain("mlp", 8, 8, 8, training=True, frozen=f, gpu="H100") for f in ("up_bias", ["up_bias"])
    )
    assert one == listed
    with pytest.raises(ValueError, match="x, weight, bias, slope; got 'weights'"):
        epilogue.explain(
            "linear", 8, 8, 8, activation="prelu", slope=torch.ones(1), training=True, frozen=["weights"], gpu="H100"
        )
