"""Every shipped kernel x config compiles clean for sm_80, sm_90 and sm_100, without a GPU; on sm_90 every activation's largest too."""

import pytest
import torch

from epilogue.benchmarks.audit import every_activation, faults
from epilogue.benchmarks.offline import SHARED_BYTES, compile_case, shipped

# Triton 3.9 announces that a default will change in 3.10; which one it takes is the user's choice.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

SHIPPED = [(case, arch) for arch in SHARED_BYTES for case in shipped(arch)]
ACTIVATIONS = [(case, "sm_90") for case in every_activation(shipped("sm_90"))]
SPILLS = {"linear_fwd_tma-softplus-bfloat16-tf32-128x256x64": "softplus takes 46 instructions per element"}
CASES = [
    pytest.param(
        case,
        arch,
        id=f"{arch}-{case}",
        marks=pytest.mark.xfail(reason=SPILLS[str(case)]) if str(case) in SPILLS else (),
    )
    for case, arch in dict.fromkeys([*SHIPPED, *ACTIVATIONS])
]


@pytest.mark.parametrize(("case", "arch"), CASES)
def test_kernel_is_clean(case, arch):
    assert faults(case, arch, compile_case(case, arch)) == []


def test_a_graph_made_on_a_gpu_runs_on_the_cpu():
    """The operator has a plain implementation for CPU tensors; here Triton does not interpret."""

    from torch.nn.functional import linear, silu

    from epilogue.triton import autograd  # noqa: F401  registers it

    x, weight, bias = torch.randn(2, 3, 8), torch.randn(12, 8), torch.randn(12)
    y, z = torch.ops.epilogue.linear_fwd(x, weight, None, bias, None, None, "silu", [], -1, True, True)
    torch.testing.assert_close(z, linear(x, weight, bias).flatten(0, 1))
    torch.testing.assert_close(y.flatten(0, 1), silu(z[:, :6]) * z[:, 6:])
