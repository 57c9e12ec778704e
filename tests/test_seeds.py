"""The seeds of the field, as plain tests: what a layer act(x Wᵀ + b) was first found to be able to do."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import epilogue
from epilogue.nn import FusedLinear, FusedMLP

CORNERS = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]


def arrays(kind):
    """A function that makes arrays of that kind."""
    return np.array if kind == "numpy" else torch.tensor


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("name", "weights", "bias", "truth"),
    [
        ("and", [1.0, 1.0], -1.5, [0, 0, 0, 1]),
        ("or", [1.0, 1.0], -0.5, [0, 1, 1, 1]),
        ("nand", [-1.0, -1.0], 1.5, [1, 1, 1, 0]),
    ],
)
def test_one_threshold_unit_computes(name, weights, bias, truth, kind):
    """McCulloch and Pitts 1943; Rosenblatt 1958."""
    array = arrays(kind)
    y = epilogue.linear(array(CORNERS), array([weights]), array([bias]), activation="step")
    assert y[:, 0].tolist() == truth


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_two_layers_of_threshold_units_compute_xor(kind):
    """h₁ = step(x₁ + x₂ - 0.5), h₂ = step(x₁ + x₂ - 1.5), y = step(h₁ - h₂ - 0.5).  Minsky and Papert 1969."""
    array = arrays(kind)
    h = epilogue.linear(array(CORNERS), array([[1.0, 1.0], [1.0, 1.0]]), array([-0.5, -1.5]), activation="step")
    assert h.tolist() == [[0, 0], [1, 0], [1, 0], [1, 1]]
    y = epilogue.linear(h, array([[1.0, -1.0]]), array([-0.5]), activation="step")
    assert y[:, 0].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("activation", ["tanh", "gelu", "silu"])
def test_a_small_mlp_learns_xor(activation, device):
    """Rumelhart, Hinton and Williams 1986."""
    torch.manual_seed(0)
    x, truth = torch.tensor(CORNERS, device=device), torch.tensor([0.0, 1.0, 1.0, 0.0], device=device)
    model = FusedMLP(2, 8, 1, activation=activation, device=device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert ((model(x)[:, 0] > 0) == truth.bool()).all()


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def test_backpropagation_by_matrix_formulas(rng):
    """A 2-4-3-2 network: δ = (Wᵀδ') ⊙ f'(z), ∂W = δ aᵀ, ∂b = δ, equal to autograd and to the reference."""
    sizes = (2, 4, 3, 2)
    weights = [rng.standard_normal((n, k)) for k, n in pairwise(sizes)]
    biases = [rng.standard_normal(n) for n in sizes[1:]]
    x, target = rng.standard_normal(2), rng.standard_normal(2)

    activations = [x]
    for weight, bias in zip(weights, biases, strict=True):
        activations.append(sigmoid(weight @ activations[-1] + bias))
    delta = activations[-1] - target
    by_formula = []
    for weight, a, below in zip(weights[::-1], activations[:0:-1], activations[-2::-1], strict=True):
        delta = delta * a * (1.0 - a)
        by_formula.append((np.outer(delta, below), delta))
        delta = weight.T @ delta

    layers = [FusedLinear(k, n, activation="sigmoid", dtype=torch.float64) for k, n in pairwise(sizes)]
    for layer, weight, bias in zip(layers, weights, biases, strict=True):
        layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    y = nn.Sequential(*layers)(torch.tensor(x))
    (0.5 * (y - torch.tensor(target)).square().sum()).backward()

    dy = activations[-1] - target
    for layer, weight, bias, below, (dw, db) in zip(
        layers[::-1], weights[::-1], biases[::-1], activations[-2::-1], by_formula, strict=True
    ):
        np.testing.assert_allclose(layer.weight.grad, dw, rtol=1e-10)
        np.testing.assert_allclose(layer.bias.grad, db, rtol=1e-10)
        grads = epilogue.linear_backward(dy, below, weight, bias, activation="sigmoid")
        np.testing.assert_allclose(grads.weight, dw, rtol=1e-10)
        np.testing.assert_allclose(grads.bias, db, rtol=1e-10)
        dy = grads.x


def blobs(rng, rows=200, d=5):
    """Two classes that a plane separates with a margin."""
    normal = rng.standard_normal(d)
    x = rng.standard_normal((rows, d))
    x += np.sign(x @ normal)[:, None] * normal / np.linalg.norm(normal)
    return x, (x @ normal > 0).astype(np.float64)


def test_logistic_regression_has_its_closed_form_gradient(rng):
    """Of the mean cross-entropy: ∂w = Xᵀ(p - t) / n, ∂b = mean(p - t).  Cox 1958."""
    x, truth = blobs(rng)
    model = FusedLinear(5, 1, activation="sigmoid", dtype=torch.float64)
    p = model(torch.tensor(x))[:, 0]
    nn.functional.binary_cross_entropy(p, torch.tensor(truth)).backward()
    error = p.detach().numpy() - truth
    np.testing.assert_allclose(model.weight.grad[0], x.T @ error / len(x), rtol=1e-9)
    np.testing.assert_allclose(model.bias.grad[0], error.mean(), rtol=1e-9)


def test_logistic_regression_separates_what_a_plane_separates(rng, device):
    x, truth = (torch.tensor(array, dtype=torch.float32, device=device) for array in blobs(rng))
    model = FusedLinear(5, 1, activation="sigmoid", device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(300):
        p = model(x)[:, 0]
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy(p, truth).backward()
        optimizer.step()
    assert ((model(x)[:, 0] > 0.5) == truth.bool()).all()


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "gelu", "silu", "softplus"])
def test_two_sided_gradient_checking_to_four_digits(activation, rng):
    """(J(θ + ε) - J(θ - ε)) / 2ε with ε = 1e-4, for every weight of a network."""
    x, truth = torch.tensor(rng.standard_normal((10, 3))), torch.tensor(rng.standard_normal((10, 2)))
    model = FusedMLP(3, 5, 2, activation=activation, dtype=torch.float64)

    def cost():
        return (model(x) - truth).square().mean()

    cost().backward()
    for parameter in model.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(flat.numel()):
            value = flat[i].item()
            costs = []
            for shifted in (value + 1e-4, value - 1e-4):
                flat[i] = shifted
                costs.append(cost().item())
            flat[i] = value
            assert gradient[i].item() == pytest.approx((costs[0] - costs[1]) / 2e-4, rel=1e-4, abs=1e-8)
