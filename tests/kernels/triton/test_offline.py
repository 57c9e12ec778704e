"""Every shipped kernel x config compiles for sm_80, sm_90 and sm_100, without a GPU, and keeps to the chip's limits."""

import pytest

from epilogue.benchmarks.offline import SHARED_BYTES, Case, compile_case, shipped
from epilogue.catalogue import ACTIVATIONS

# Triton 3.9 announces that a default will change in 3.10; which one it takes is the user's choice.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

CASES = [pytest.param(case, arch, id=f"{arch}-{case}") for arch in SHARED_BYTES for case in shipped(arch)]


@pytest.mark.parametrize(("case", "arch"), CASES)
def test_shipped(case, arch):
    resources = compile_case(case, arch)
    assert resources.shared <= SHARED_BYTES[arch]
    assert (resources.spills, resources.stack) == (0, 0)
    if arch == "sm_90" and case.kernel == "linear_fwd_tma":
        assert "HGMMA" in resources.sass, "the product is not on the tensor cores' fast path"
        assert "UTMALDG" in resources.sass, "the operands are not loaded by TMA"
        assert "UTMASTG" in resources.sass, "the results are not stored by TMA"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name):
    """Each activation's derivative kernel (which holds its value too, when gated) compiles; numbers are runtime arguments."""
    import torch

    for gated in (False, True) if ACTIVATIONS[name].arity == 1 else (True,):
        resources = compile_case(Case("linear_bwd", None, torch.bfloat16, name, gated), "sm_90")
        assert (resources.spills, resources.stack) == (0, 0)
