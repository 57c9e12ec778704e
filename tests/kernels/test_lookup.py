"""How a user's word for an activation finds it: names, torch.nn modules, functions."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import epilogue
from checks import cases
from epilogue import ACTIVATIONS, Activation, lookup, resolve
from epilogue.lookup import bind_params

NAMES = {name: name for name in ACTIVATIONS} | {
    "linear": "identity",
    "none": "identity",
    "heaviside": "step",
    "log_sigmoid": "logsigmoid",
    "relu2": "relu_squared",
    "squared_relu": "relu_squared",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "GELU": "gelu",
    "SiLU": "silu",
    "LeakyReLU": "leaky_relu",
    "leakyrelu": "leaky_relu",
    "quick-gelu": "quick_gelu",
    "QuickGELU": "quick_gelu",
    "HardSwish": "hardswish",
    "hard_swish": "hardswish",
}


@pytest.mark.parametrize(("spelling", "name"), NAMES.items())
def test_names(spelling, name):
    assert resolve(spelling) == (ACTIVATIONS[name], {})


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_itself(name):
    assert ACTIVATIONS[name].name == name
    assert resolve(ACTIVATIONS[name]) == (ACTIVATIONS[name], {})


def test_none_is_identity():
    assert resolve(None) == (ACTIVATIONS["identity"], {})


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("glu", "sigmoid"),
        ("reglu", "relu"),
        ("geglu", "gelu"),
        ("geglu_tanh", "gelu_tanh"),
        ("swiglu", "silu"),
        ("SwiGLU", "silu"),
        ("ReGLU", "relu"),
        ("gated_mish", "mish"),
        ("gated_relu_squared", "relu_squared"),
    ],
)
def test_gated_variants(spelling, name):
    variant, params = resolve(spelling)
    assert (variant.arity, variant.gate, params) == (2, ACTIVATIONS[name], {})
    assert variant is ACTIVATIONS[name].gated
    assert resolve(variant) == (variant, {})


SLOPES = nn.PReLU(5)
MODULES = [
    (nn.Identity(), "identity", {}),
    (nn.Sigmoid(), "sigmoid", {}),
    (nn.Hardsigmoid(), "hardsigmoid", {}),
    (nn.LogSigmoid(), "logsigmoid", {}),
    (nn.Tanh(), "tanh", {}),
    (nn.Hardtanh(-2.0, 0.5), "hardtanh", {"min_val": -2.0, "max_val": 0.5}),
    (nn.Tanhshrink(), "tanhshrink", {}),
    (nn.Softsign(), "softsign", {}),
    (nn.ReLU(inplace=True), "relu", {}),
    (nn.ReLU6(), "relu6", {}),
    (nn.LeakyReLU(0.2), "leaky_relu", {"negative_slope": 0.2}),
    (SLOPES, "prelu", {"slope": SLOPES.weight}),
    (nn.ELU(0.5), "elu", {"alpha": 0.5}),
    (nn.SELU(), "selu", {}),
    (nn.CELU(2.0), "celu", {"alpha": 2.0}),
    (nn.GELU(), "gelu", {}),
    (nn.GELU("tanh"), "gelu_tanh", {}),
    (nn.SiLU(), "silu", {}),
    (nn.Mish(), "mish", {}),
    (nn.Hardswish(), "hardswish", {}),
    (nn.Softplus(2.0, 5.0), "softplus", {"beta": 2.0, "threshold": 5.0}),
    (nn.Softshrink(0.7), "softshrink", {"lambd": 0.7}),
    (nn.Hardshrink(0.7), "hardshrink", {"lambd": 0.7}),
    (nn.Threshold(0.5, -2.0), "threshold", {"threshold": 0.5, "value": -2.0}),
]


@pytest.mark.parametrize(("module", "name", "params"), MODULES, ids=lambda value: str(value))
def test_modules(module, name, params):
    entry, found = resolve(module)
    assert (entry.name, found) == (name, params)
    entry, values = bind_params(entry, found)
    x = torch.linspace(-4.0, 4.0, 45, dtype=torch.float64).reshape(9, 5)
    expected = module.double()(x.clone()).detach().numpy()
    values = tuple(v.detach().numpy() if isinstance(v, torch.Tensor) else v for v in values)
    np.testing.assert_allclose(entry.value(x.numpy(), *values), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "module", [nn.LeakyReLU, nn.ELU, nn.CELU, nn.Hardtanh, nn.Softplus, nn.Softshrink, nn.Hardshrink]
)
def test_defaults_are_torchs(module):
    entry = resolve(module.__name__)[0]
    assert entry.params == {name: getattr(module(), name) for name in entry.params}
    assert entry.params


def test_prelus_default_is_torchs():
    assert ACTIVATIONS["prelu"].params == {"slope": nn.PReLU().weight.item()}


@pytest.mark.parametrize(
    "name",
    [
        "hardsigmoid", "logsigmoid", "hardtanh", "tanhshrink", "softsign", "relu", "relu6", "leaky_relu", "prelu",
        "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "softplus", "softshrink", "hardshrink", "threshold",
    ],
)  # fmt: skip
def test_functions_of_torch_nn_functional(name):
    assert resolve(getattr(F, name)) == (ACTIVATIONS[name], {})


@pytest.mark.parametrize(
    ("function", "name"),
    [(torch.sigmoid, "sigmoid"), (torch.tanh, "tanh"), (torch.relu, "relu"), (torch.sign, "sign")],
)
def test_functions_of_torch(function, name):
    assert resolve(function) == (ACTIVATIONS[name], {})


WEIGHT = torch.ones(3)


@pytest.mark.parametrize(
    ("spec", "name", "params"),
    [
        (partial(F.gelu, approximate="tanh"), "gelu_tanh", {}),
        (partial(F.gelu, approximate="none"), "gelu", {}),
        (partial(F.leaky_relu, negative_slope=0.2, inplace=True), "leaky_relu", {"negative_slope": 0.2}),
        (partial(F.prelu, weight=WEIGHT), "prelu", {"slope": WEIGHT}),
        (partial(partial(F.softplus, beta=3.0), threshold=7.0), "softplus", {"beta": 3.0, "threshold": 7.0}),
    ],
)
def test_partials(spec, name, params):
    assert resolve(spec) == (ACTIVATIONS[name], params)


@pytest.mark.parametrize("cls", [nn.GELU, nn.LeakyReLU, nn.Hardtanh, nn.Identity, nn.GLU])
def test_a_class_is_its_instance_without_arguments(cls):
    assert resolve(cls) == resolve(cls())
    assert resolve(partial(nn.LeakyReLU, negative_slope=0.2))[1] == {"negative_slope": 0.2}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("gelo", "'gelu'"), ("swigul", "'swiglu'"), ("leaky", "'leaky_relu'"), ("hardswich", "'hardswish'")],
)
def test_an_unknown_name_lists_the_known_and_suggests_one(name, hint):
    with pytest.raises(ValueError, match=f"unknown activation '{name}'. Did you mean {hint}") as error:
        resolve(name)
    assert all(known in str(error.value) for known in ACTIVATIONS)


def test_an_unknown_name_far_from_all_gets_no_suggestion():
    with pytest.raises(ValueError, match=r"unknown activation 'qqq'\. Known: identity, "):
        resolve("qqq")


class Loud(nn.GELU):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (nn.Softmax(-1), "no activation for the module Softmax"),
        (nn.GLU(0), "GLU halves the last axis here: give it dim=-1, got 0"),
        (partial(F.glu, dim=1), "GLU halves the last axis here: give it dim=-1, got 1"),
        (nn.RReLU(), "no activation for the module RReLU"),
        (nn.Linear(2, 2), "no activation for the module Linear"),
        (nn.Bilinear(2, 2, 2), "no activation for the module Bilinear"),
        (Loud(), "no activation for the module Loud"),
        (lambda x: x, "got <function"),
        (F.softmax, "got <function softmax"),
        (F.linear, "got <built-in function linear"),
        (F.bilinear, "bilinear"),
        (torch.heaviside, "heaviside"),
        (partial(F.leaky_relu, None, 0.2), "fixes positional arguments"),
        (3, "got 3"),
        (nn.Linear, "no activation for the module Linear"),
        (nn.RReLU, "no activation for the module RReLU"),
        (Loud, "no activation for the module Loud"),
        (nn.Threshold, r"the class Threshold needs arguments: pass an instance, Threshold\(…\)"),
        (int, "got <class 'int'>"),
    ],
)
def test_what_is_no_activation(spec, message):
    with pytest.raises(TypeError, match=message):
        resolve(spec)


@pytest.mark.parametrize(
    ("name", "params", "error", "message"),
    [
        ("gelu", {"alpha": 1.0}, TypeError, "gelu has no parameter 'alpha'; its parameters: none"),
        ("elu", {"beta": 1.0}, TypeError, "elu has no parameter 'beta'; its parameters: alpha"),
        ("threshold", {"threshold": 1.0}, TypeError, "threshold needs the parameter 'value'"),
        ("elu", {"alpha": "wide"}, TypeError, "elu's alpha must be a number, got 'wide'"),
        ("elu", {"alpha": None}, TypeError, "elu's alpha must be a number, got None"),
        ("elu", {"alpha": float("nan")}, ValueError, "elu's alpha must be a number, got nan"),
        (
            "elu",
            {"alpha": np.ones(3)},
            TypeError,
            r"got an array; learnable are prelu\(slope\), swish\(beta\), xielu\(alpha_p, alpha_n\)",
        ),
        ("leaky_relu", {"negative_slope": torch.ones(1)}, TypeError, "must be a number, got an array"),
        ("gelu", {"approximate": "erf"}, ValueError, r"gelu takes approximate='none' or one of \['tanh'\]; got 'erf'"),
    ],
)
def test_parameters_that_do_not_fit(name, params, error, message):
    with pytest.raises(error, match=message):
        bind_params(ACTIVATIONS[name], params)


@pytest.mark.parametrize("number", [0.2, 2, np.float32(0.5), np.float64(0.5), np.array(0.5), np.int64(2)])
def test_numbers_of_any_kind_become_floats(number):
    (value,) = bind_params(ACTIVATIONS["leaky_relu"], {"negative_slope": number})[1]
    assert type(value) is float
    assert value == number


def test_defaults_and_order():
    assert bind_params(ACTIVATIONS["softplus"], {"threshold": 7}) == (ACTIVATIONS["softplus"], (1.0, 7.0))
    assert bind_params(ACTIVATIONS["hardtanh"], {}) == (ACTIVATIONS["hardtanh"], (-1.0, 1.0))
    assert bind_params(ACTIVATIONS["prelu"], {"slope": WEIGHT})[1][0] is WEIGHT


@pytest.mark.parametrize(("entry", "values"), cases(every=False))
def test_copies_and_pickles_are_the_same_object(entry, values):
    for one in (entry, entry.gated):
        assert copy.deepcopy(one) is one
        assert copy.copy(one) is one
        assert pickle.loads(pickle.dumps(one)) is one
        assert isinstance(one, Activation)


def test_repr():
    assert repr(ACTIVATIONS["softplus"]) == "<activation softplus(x, beta, threshold)>"
    assert repr(ACTIVATIONS["silu"].gated) == "<activation swiglu(a, b)>"
    assert repr(ACTIVATIONS["maxout"]) == "<activation maxout(a, b)>"


TORCHS_GLU = {"module": nn.GLU(), "function": F.glu, "partial": partial(F.glu, dim=-1)}


@pytest.mark.parametrize("spec", TORCHS_GLU)
def test_torchs_glu_is_the_pair_whose_gate_is_last(spec, device):
    """Of a packed weight, so that a linear layer and its GLU become one."""
    assert resolve(TORCHS_GLU[spec]) == (ACTIVATIONS["glu_gate_last"], {})
    x, weight, bias = (torch.randn(*shape, device=device, requires_grad=True) for shape in ((5, 8), (12, 8), (12,)))
    y, expected = epilogue.glu(x, weight, bias, TORCHS_GLU[spec]), F.glu(F.linear(x, weight, bias))
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    for ours, torchs in zip(*(torch.autograd.grad(out, (x, weight, bias), dy) for out in (y, expected)), strict=True):
        torch.testing.assert_close(ours, torchs)


class TestTransformers:
    """Every activation that transformers knows by name, as its module and as its name, against that module."""

    transformers = pytest.importorskip("transformers.activations")
    known = sorted(transformers.ACT2CLS)

    @pytest.mark.parametrize("name", known)
    def test_by_name_and_as_a_module(self, name):
        module = self.transformers.ACT2FN[name].double()
        if name == "xielu":  # whose parameters are bfloat16 from the start
            module = self.transformers.XIELUActivation(dtype=torch.float64)
        x = torch.cat([torch.linspace(-30.0, 30.0, 1201), torch.tensor([0.0, -1e-7, 1e-7, -300.0, 300.0])]).double()
        x.requires_grad_()
        expected = module(x)
        (gradient,) = torch.autograd.grad(expected.sum(), x)
        for spec in (module, name):
            entry, values = bind_params(*resolve(spec))
            values = tuple(v.detach().numpy() if isinstance(v, torch.Tensor) else v for v in values)
            with np.errstate(all="ignore"):
                found = [np.asarray(f(x.detach().numpy(), *values)) for f in (entry.value, entry.derivatives["x"])]
            # some constants of transformers have ten digits
            np.testing.assert_allclose(found[0], expected.detach().numpy(), rtol=1e-9, atol=1e-8)
            np.testing.assert_allclose(np.broadcast_to(found[1], x.shape), gradient.numpy(), rtol=1e-9, atol=1e-8)

    def test_every_class_is_known(self):
        classes = {type(self.transformers.ACT2FN[name]) for name in self.known}
        named = {cls.__name__ for cls in classes if cls.__module__ == "transformers.activations"}
        assert named <= set(lookup._TRANSFORMERS)

    def test_clipped_otherwise_is_none(self):
        with pytest.raises(TypeError, match=r"ClippedGELUActivation\(-1.0, 1.0\): only gelu clipped to -10 and 10"):
            resolve(self.transformers.ClippedGELUActivation(-1.0, 1.0))

    def test_a_subclass_is_none(self):
        class Loud(self.transformers.SiLUActivation):
            pass

        with pytest.raises(TypeError, match="no activation for the module Loud"):
            resolve(Loud())

    def test_xielus_parameters_learn(self, device):
        module = self.transformers.XIELUActivation(dtype=torch.float32).to(device)
        x, weight, bias = (torch.randn(*shape, device=device, requires_grad=True) for shape in ((5, 8), (12, 8), (12,)))
        y, expected = epilogue.linear(x, weight, bias, module), module(F.linear(x, weight, bias))
        torch.testing.assert_close(y, expected)
        inputs, dy = (x, weight, bias, module.alpha_p, module.alpha_n), torch.randn_like(y)
        for ours, torchs in zip(
            *(torch.autograd.grad(out, inputs, dy, retain_graph=True) for out in (y, expected)), strict=True
        ):
            torch.testing.assert_close(ours, torchs)
        arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
        slopes = {"alpha_p": arrays[3], "alpha_n": arrays[4]}
        grads = epilogue.linear_backward(dy.cpu().numpy(), *arrays[:3], activation="xielu", **slopes)
        for name in slopes:
            (torchs,) = torch.autograd.grad(expected, getattr(module, name), dy, retain_graph=True)
            np.testing.assert_allclose(grads.params[name], torchs.cpu().numpy(), rtol=1e-5)
