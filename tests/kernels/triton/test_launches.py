"""The launchers' own calls, compiled for a GPU that is not there: what Triton makes of the arguments that they really pass.

The interpreter binds arguments in a way of its own, and the offline compiler is told their types; only this walks the launch path.
"""

import pytest
import torch

import epilogue
from epilogue.applied import Applied, Needs
from epilogue.benchmarks.offline.compiler import absent_gpu
from epilogue.operands import Dropout, Layer
from epilogue.triton import dact, linear, pointwise
from epilogue.triton.dropout import dropout_mask


@pytest.fixture(params=["sm_80", "sm_90"])
def launched(request, monkeypatch):
    """What the launchers compiled, and did not launch."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # what Triton 3.10 makes the default
    with absent_gpu(request.param) as compiled:
        yield compiled
    assert all(kernel.metadata.target.arch == int(request.param.removeprefix("sm_")) for kernel in compiled)
    assert all(kernel.metadata.enable_fp_fusion for kernel in compiled)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("name", "values"),
    [("leaky_relu", (0.1,)), ("prelu", ("channel",))],
)
@pytest.mark.parametrize("shape", [(256, 512, 128), (37, 29, 19)], ids=["aligned", "odd"])
def test_launch(launched, shape, name, values, gated, request):
    (m, n, k), act = shape, epilogue.ACTIVATIONS[name]
    values = tuple(torch.ones(n) if v == "channel" else v for v in values)
    x, dy, weight, bias = (torch.zeros(s) for s in ((m, k), (m, n), ((1 + gated) * n, k), ((1 + gated) * n,)))
    layer = Layer(x.bfloat16(), weight.bfloat16(), bias=bias.bfloat16())
    applied, needs = Applied(act, values, gated), Needs(dbias=True, dparam=bool(act.learnable))
    _, z = linear.linear_fwd(layer, applied, "input")
    pointwise.act_bwd(dy.bfloat16(), z, "input" if gated else act.saves(values), applied, needs)
    dropout = Dropout(0.25, torch.zeros(1, dtype=torch.int64))
    dropped = applied._replace(dropout=dropout)
    keep = "input" if gated or not act.sign_suffices(values) else "sign"
    _, kept = linear.linear_fwd(layer, dropped, keep)
    down, needs = torch.zeros(k, n).bfloat16(), needs._replace(h=keep == "input")
    dact.linear_dact(x.bfloat16(), down, kept, keep, dropped if gated else applied, needs)
    dropout_mask(dropout, m, n)
    tma = "_tma" if "sm_90" in request.node.name and "aligned" in request.node.name else ""
    forward, backward = f"linear_fwd{tma}_kernel", f"linear_dact{tma}_kernel"
    names = [forward, "act_bwd_kernel", forward, backward, "dropout_mask_kernel"]
    assert [kernel.metadata.name for kernel in launched] == names


@pytest.mark.parametrize("gated", [False, True])
def test_launch_unfused(launched, gated):
    (m, n, k), act = (37, 29, 19), epilogue.ACTIVATIONS["silu" if gated else "relu"]
    x, weight = torch.zeros(m, k).bfloat16(), torch.zeros((1 + gated) * n, k).bfloat16()
    keep, dropout = "input" if gated else "sign", Dropout(0.25, torch.zeros(1, dtype=torch.int64))
    applied, down = Applied(act, (), gated, dropout), torch.zeros(k, n).bfloat16()
    _, kept = linear.linear_fwd(Layer(x, weight), applied, keep, "unfused")
    dact.linear_dact(x, down, kept, keep, applied, Needs(h=gated, dbias=True), "unfused")
    assert [kernel.metadata.name for kernel in launched] == ["act_fwd_kernel", "act_bwd_kernel"]
