"""What `fuse` refuses and why, and what it takes of a block that is more than an MLP."""

import logging
import re

import pytest
import torch
from torch import nn

from blocks import Dense, Gated, Packed, Plain
from epilogue.catalogue import ACTIVATIONS
from epilogue.nn import Report, fuse
from epilogue.nn.surgery import trial
from epilogue.nn.surgery.report import Row

OWN = """
from epilogue import activation, derivative_of
from epilogue.vocabulary import tanh

@activation(oracle=lambda F, x: x * x.tanh())
def x_tanh_for_fuse(x):
    return x * tanh(x)

@derivative_of(x_tanh_for_fuse)
def x_tanh_for_fuse_grad(x):
    t = tanh(x)
    return t + x * (1.0 - t * t)
"""


class Residual(Plain):
    def forward(self, x):
        return x + super().forward(x)


class Clamped(Gated):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.two(x).clamp(max=10.0)) * self.one(x))


class Normed(Gated):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        return self.down_proj(self.norm(self.act_fn(self.two(x)) * self.one(x)))


class Scaled(Gated):
    def forward(self, x):
        return super().forward(x) * 1.01


class Needy(Gated):
    def forward(self, x, position):
        return super().forward(x) + position


class Mixer(nn.Module):
    """An MLP over another axis, which images of as many columns as rows do not show."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(8, 12), nn.Linear(12, 8), nn.GELU()

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x.transpose(1, 2)))).transpose(1, 2)


class UsedTwice(Dense):
    """The activation is given what the layer computed, and so is something else."""

    def forward(self, x):
        z = self.dense(x)
        return self.activation(z) + z


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(4, 8, 12)), nn.Parameter(torch.zeros(4, 12, 8))

    def forward(self, x):
        return torch.bmm(torch.bmm(x, self.up).relu(), self.down)


class Unknown(Plain):
    """With an activation that the catalogue has not."""

    def __init__(self):
        super().__init__(nn.Softmax(-1))

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class Generator(Gated):
    def forward(self, x):
        yield self.down_proj(self.act_fn(self.two(x)) * self.one(x))


class InALambda(Gated):
    def forward(self, x):
        hidden = lambda x: self.act_fn(self.two(x)) * self.one(x)  # noqa: E731
        return self.down_proj(hidden(x))


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Clamped, r"between its layers stands `self.act_fn\(self.two\(x\).clamp\(max=10.0\)\) \* self.one\(x\)`"),
        (Unknown, r"`self.activation\(self.fc1\(x\)\)` is no activation of the catalogue"),
        (Generator, "its forward cannot be read: it is a generator"),
        (InALambda, r"`self.act_fn\(self.two\(x\)\) \* self.one\(x\)` is in a lambda, which has a scope of its own"),
        (Experts, "three axes"),
    ],
)
def test_what_is_refused(cls, reason, caplog):
    module = nn.ModuleDict({"mlp": cls()})
    with caplog.at_level(logging.INFO, logger="epilogue"):
        report = fuse(module)
    assert not report.fused
    (row,) = report.refused
    assert row.path == "mlp"
    assert re.search(reason, row.reason)
    assert "0 fused, 1 refused" in str(report)
    assert row.reason in str(report)
    assert "refused mlp" in caplog.text
    assert type(module["mlp"]) is cls


@pytest.mark.parametrize(
    ("cls", "pattern"),
    [(Normed, "glu"), (Scaled, "gated"), (Needy, "gated"), (Residual, "plain"), (Mixer, "plain")],
)
def test_what_stands_around_stays(cls, pattern):
    module, x = cls().double().eval(), torch.randn(2, 8, 8, dtype=torch.float64)
    args = (x, torch.randn(8, dtype=torch.float64)) if cls is Needy else (x,)
    expected = module(*args)
    assert [row.pattern for row in fuse(module).fused] == [pattern]
    torch.testing.assert_close(module(*args), expected, rtol=1e-12, atol=1e-12)


def test_a_result_that_is_used_twice():
    report = fuse(UsedTwice())
    assert not report.fused
    assert [row.reason for row in report.refused] == [
        "the layer's output in `self.activation(z)` is used elsewhere too"
    ]


def test_an_activation_of_ones_own_is_seen_once_the_catalogue_has_it():
    class XTanh(nn.Module):
        def forward(self, x):
            return x * torch.tanh(x)

    assert not fuse(Plain(XTanh())).fused
    before = dict(ACTIVATIONS)
    try:
        exec(OWN, {})
        (row,) = fuse(Plain(XTanh())).fused
    finally:
        ACTIVATIONS.clear()
        ACTIVATIONS.update(before)
    assert row.activation == "x_tanh_for_fuse"


def test_a_forward_of_the_instances_own():
    module = Plain()
    module.forward = lambda x: 2 * x
    report = fuse(module)
    assert not report.fused
    assert "a forward of the instance's own" in report.refused[0].reason


def test_fused_before():
    module = nn.ModuleList([Plain(), Gated()])
    fuse(module)
    assert str(fuse(module)).startswith("nothing to fuse found, 2 fused before")


def test_include_nothing():
    assert not fuse(Plain(), include=[]).fused
    with pytest.raises(ValueError, match=r"include='\*.mlp' matches no module's path; they are like 'a', 'a.fc1'"):
        fuse(nn.ModuleDict({"a": Plain()}), include="*.mlp")


def test_the_report_groups_what_differs_in_numbers_alone():
    def rows(*paths, reason=""):
        return [Row(path, "gated", "silu", reason) for path in paths]

    report = Report(
        rows(*(f"layers.{i}.mlp" for i in range(12)), "mlp", "layers.3.fc1", "layers.3.fc2"),
        [*rows("0.experts.8", "0.experts.9", "1.experts.10", "1.mlp", reason="no"), *rows("2.mlp", reason="neither")],
    )
    assert str(report).splitlines() == [
        "would fuse 15, 5 refused",
        "module            count  pattern  activation  reason",
        "layers.0…11.mlp   12     gated    silu",
        "mlp               1      gated    silu",
        "layers.3.fc1      1      gated    silu",
        "layers.3.fc2      1      gated    silu",
        "0…1.experts.8…10  3      gated    silu        no",
        "1.mlp             1      gated    silu        no",
        "2.mlp             1      gated    silu        neither",
    ]
    assert str(Report(rows("", "0", "1"))).splitlines()[2:] == [
        "(the model)  1      gated    silu",
        "0…1          2      gated    silu",
    ]


def test_a_prelu_of_channels_is_none_of_ours():
    """torch's channels are the second axis, ours the last."""
    assert not fuse(Gated(nn.PReLU(12))).fused


@pytest.mark.parametrize(
    ("actual", "expected", "difference"),
    [
        ([1.0, 4.5], [1.0, 4.0], 0.125),
        ([1.0, torch.nan], [1.0, 4.0], torch.inf),
        ([1.0, 4.0], [1.0, torch.nan], torch.inf),
        ([torch.inf, 4.0], [1.0, 4.0], torch.inf),
        ([torch.nan, torch.inf, 4.0], [torch.nan, torch.inf, 4.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_what_is_not_finite_is_no_agreement(actual, expected, difference):
    assert trial.relative(torch.tensor(actual), torch.tensor(expected)) == difference


def test_a_layer_of_zeros_hides_nothing():
    module = Clamped()
    nn.init.zeros_(module.down_proj.weight)
    assert not fuse(module).fused
    assert not module.down_proj.weight.any()


def test_a_module_that_knows_its_sizes(counted):
    class Knows(Packed):
        def forward(self, x):
            gate, up = self.w1(x).split([12, 12], -1)
            return self.w2(self.drop(up * self.act(gate)))

    (row,) = fuse(Knows()).fused
    assert row.pattern == "gated packed"


def test_nothing_where_nothing_is():
    report = fuse(
        nn.ModuleList([nn.Linear(3, 3), nn.MultiheadAttention(8, 2), nn.Sequential(nn.Linear(3, 4), nn.ReLU())])
    )
    assert [(row.path, row.pattern) for row in report.fused] == [("2", "sequential")]
    assert not report.refused
