"""What `fuse` refuses and why, and what it takes of a block that is no MLP."""

import logging
import re

import pytest
import torch
from torch import nn

from blocks import Dense, Gated, Packed, Plain
from epilogue.nn import fuse, surgery, trial


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


class Untrainable(Gated):
    def forward(self, x):
        if self.training:
            raise ValueError("for inference alone")
        return super().forward(x)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (UsedTwice, "it computes something else, differing by"),
        (Untrainable, "it cannot be called: ValueError: for inference alone"),
        (Clamped, "it computes something else, the nearest differs by"),
        (Normed, r"it also holds norm \(LayerNorm\)"),
        (Scaled, "it computes something else, the nearest differs by 9.9e-03"),
        (Needy, "its forward takes 2 arguments, not hidden states alone"),
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


def test_the_report_groups_what_differs_in_numbers_alone():
    def rows(*paths, reason=""):
        return [surgery.Row(path, "gated", "silu", reason) for path in paths]

    report = surgery.Report(
        rows(*(f"layers.{i}.mlp" for i in range(12)), "mlp", "layers.3.fc1", "layers.3.fc2"),
        [*rows("0.experts.8", "0.experts.9", "1.experts.10", "1.mlp", reason="no"), *rows("2.mlp", reason="neither")],
    )
    assert str(report).splitlines() == [
        "15 fused, 5 refused",
        "module            count  pattern  activation",
        "layers.0…11.mlp   12     gated    silu",
        "mlp               1      gated    silu",
        "layers.3.fc1      1      gated    silu",
        "layers.3.fc2      1      gated    silu",
        "0…1.experts.8…10  3      gated    silu        no",
        "1.mlp             1      gated    silu        no",
        "2.mlp             1      gated    silu        neither",
    ]
    assert str(surgery.Report(rows("", "0", "1"))).splitlines()[2:] == [
        "(the model)  1      gated    silu",
        "0…1          2      gated    silu",
    ]


def test_a_prelu_of_channels_is_none_of_ours():
    """torch's channels are the second axis, ours the last."""
    report = fuse(Gated(nn.PReLU(12)))
    assert (report.fused, report.refused) == ([], [])


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
    assert trial._difference(torch.tensor(actual), torch.tensor(expected)) == difference


def test_half_a_block_is_better_than_none():
    """With the residual inside it is no MLP, but a linear layer with an activation it still has."""
    (row,) = fuse(Residual()).fused
    assert row.pattern == "linear + activation"


def test_an_mlp_over_another_axis():
    module, x = Mixer().double(), torch.randn(2, 8, 8, dtype=torch.float64)
    expected = module(x)
    (row,) = fuse(module).fused
    assert row.pattern == "linear + activation"
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_of_zeros_hides_nothing():
    module = Scaled()
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
    assert [row.pattern for row in report.fused] == ["linear + activation"]
    assert not report.refused
