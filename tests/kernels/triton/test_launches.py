"""The launchers' own calls, compiled for a GPU that is not there: what Triton makes of the arguments that they really pass.

The interpreter binds arguments in a way of its own, and the offline compiler is told their types; only this walks the launch path.
"""

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import epilogue
from epilogue.operands import Dropout, Operands
from epilogue.triton import dact, linear, operands, pointwise
from epilogue.triton.chips import CHIPS
from epilogue.triton.dropout import dropout_mask


class AbsentGPU:
    """A driver that knows its target and nothing else: enough to compile, not to launch."""

    def __init__(self, capability):
        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)
        # Triton keeps what it compiled by device: none may be that of another test, or one that is here.
        self.get_current_device = lambda: -capability
        self.get_current_stream = lambda device: 0


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def launched(request, monkeypatch):
    """Names of the kernels that were launched, which were compiled instead."""
    names = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        assert kernel.metadata.target.arch == request.param
        assert kernel.metadata.enable_fp_fusion
        names.append(self.__name__)

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # what Triton 3.10 makes the default
    monkeypatch.setattr(driver, "_active", AbsentGPU(request.param))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    chip = CHIPS["H100" if request.param >= 90 else "A100"]
    for module in (dact, linear, operands, pointwise):
        monkeypatch.setattr(module, "machine", lambda x: chip)
    return names


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("name", "values"),
    [("silu", ()), ("leaky_relu", (0.1,)), ("prelu", ("channel",))],
)
@pytest.mark.parametrize("shape", [(256, 512, 128), (37, 29, 19)], ids=["aligned", "odd"])
def test_launch(launched, shape, name, values, gated, request):
    (m, n, k), act = shape, epilogue.ACTIVATIONS[name]
    values = tuple(torch.ones(n) if v == "channel" else v for v in values)
    x, dy, weight, bias = (torch.zeros(s) for s in ((m, k), (m, n), ((1 + gated) * n, k), ((1 + gated) * n,)))
    layer = Operands(x.bfloat16(), weight.bfloat16(), None, bias.bfloat16(), None, act, values, gated)
    _, z = linear.linear_fwd(layer, "input")
    kept = "input" if gated else act.saves(values)
    pointwise.act_bwd(dy.bfloat16(), z, kept, act, values, gated, None, (True, False, True, bool(act.learnable)))
    dropped = layer._replace(dropout=Dropout(0.25, torch.zeros(1, dtype=torch.int64)))
    keep = "input" if gated or not act.sign_suffices(values) else "sign"
    _, kept = linear.linear_fwd(dropped, keep)
    down, needs = torch.zeros(k, n).bfloat16(), (keep == "input", True, bool(act.learnable))
    dropout = dropped.dropout if gated else None
    dact.linear_dact(x.bfloat16(), down, kept, keep, act, values, gated, dropout, needs)
    dropout_mask(dropped.dropout, m, n)
    tma = "_tma" if "sm_90" in request.node.name and "aligned" in request.node.name else ""
    forward, backward = f"linear_fwd{tma}_kernel", f"linear_dact{tma}_kernel"
    assert launched == [forward, "act_bwd_kernel", forward, backward, "dropout_mask_kernel"]


@pytest.mark.parametrize("gated", [False, True])
def test_launch_unfused(launched, gated):
    (m, n, k), act = (37, 29, 19), epilogue.ACTIVATIONS["silu" if gated else "relu"]
    x, weight = torch.zeros(m, k).bfloat16(), torch.zeros((1 + gated) * n, k).bfloat16()
    keep, dropout = "input" if gated else "sign", Dropout(0.25, torch.zeros(1, dtype=torch.int64))
    layer = Operands(x, weight, None, None, None, act, (), gated, dropout)
    _, kept = linear.linear_fwd(layer, keep, "unfused")
    dact.linear_dact(
        x, torch.zeros(k, n).bfloat16(), kept, keep, act, (), gated, dropout, (gated, True, False), "unfused"
    )
    assert launched == ["act_fwd_kernel", "act_bwd_kernel"]
