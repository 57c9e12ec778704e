"""The functions that the autograd operations need of a backend, on the CuPy kernels. Products are torch's own, or cuBLASLt's with an
epilogue.

Kernels take torch tensors by pointer. DLPack would make CuPy arrays of them first, and CuPy has bfloat16 only with ml_dtypes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..applied import Applied, Needs
from ..catalogue import Activation, Keep
from ..operands import Dropout, Layer, halves, tensor_refusal
from ..unfused import unfused_dact, unfused_fwd
from . import epilogues, launch
from . import missing as _missing


@torch.compiler.assume_constant_result
def missing() -> str | None:
    """The reason why no kernel can run here, or None."""
    return _missing()


def refusal(x: Tensor, weight: Any) -> str | None:
    """The reason why the kernels do not serve x with this weight (or pair of weights), or None where they do."""
    if x.device.type != "cuda":
        return f"{x.device.type} tensors run plain torch operations"
    return missing() or tensor_refusal(x, weight)


@contextmanager
def _on_device(x: Tensor) -> Iterator[None]:
    """Make the device of x and torch's stream CuPy's current ones, on which it launches."""
    import cupy

    stream = _Stream(torch.cuda.current_stream(x.device).cuda_stream)
    with torch.cuda.device_of(x), cupy.cuda.Device(x.device.index), cupy.cuda.Stream.from_external(stream):
        yield


class _Stream:
    """A stream that follows CUDA's protocol, as torch's own do from 2.12 on."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _empty(like: Tensor, shape: tuple[int, ...], real: bool) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32 if real else like.dtype)


TORCH = launch.Library(
    pointer=Tensor.data_ptr,
    strides=lambda x: x.stride(),
    dense_rows=lambda x: x if x.stride(1) == 1 else x.contiguous(),
    real=lambda array, like: array.resolve_neg().float().contiguous(),
    empty=_empty,
    on_device=_on_device,
)


def linear_fwd(layer: Layer, applied: Applied, keep: Keep) -> tuple[Tensor, Tensor | None]:
    """(y [..., N], the tensor to keep for backward beside y), as Triton's linear_fwd."""
    return _fwd_by_epilogue(layer, applied, keep) or unfused_fwd(layer, applied, keep, act_fwd)


def _fwd_by_epilogue(layer: Layer, applied: Applied, keep: Keep) -> tuple[Tensor, Tensor | None] | None:
    """The results of linear_fwd where cuBLASLt serves, else None."""
    x, weight, _, bias, *_ = layer.in_rows(False)
    act, n, keeps_z = applied.act, weight.shape[0], keep == "input"
    if applied.gated or applied.dropout or keep == "sign" or (keeps_z and not _keeps_z(x, act, n)):
        return None
    found = epilogues.forward(TORCH, x, weight, bias, act, keeps_z)
    return (found[0].view(*layer.x.shape[:-1], n), found[1]) if found else None


def _keeps_z(like: Tensor, act: Activation, n: int) -> bool:
    """True if cuBLASLt keeps z alone and can derive by it. In float16 it cannot: z may have overflowed, and the derivative would be NaN."""
    return like.dtype != torch.float16 and epilogues.keeps_z(act, n)


def linear_dact(
    dy: Tensor, weight: Tensor, saved: Tensor, keep: Keep, applied: Applied, needs: Needs
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """(dz [M, F], h [M, F], dbias float32 [F], dparam float32 [P, F]) for dy [M, N] and the down weight [N, F], as Triton's linear_dact."""
    act, _, gated, dropout = applied
    if not (gated or dropout) and saved.is_contiguous() and _keeps_z(dy, act, saved.shape[1]):
        found = epilogues.backward(TORCH, dy, weight, saved, act, needs.dbias)
        if found:
            dz, dbias = found
            h = torch.empty_like(saved) if needs.h else None
            if h is not None:
                act_fwd(saved, h, None, applied)
            return dz, h, dbias if dbias is None else dbias.float(), None
    return unfused_dact(dy, weight, saved, keep, applied, needs, act_bwd)


def act_fwd(z: Tensor, y: Tensor, signs: Tensor | None, applied: Applied) -> None:
    """Write dropout(act(z)) to y [M, N] and act(z) > 0 to signs, as the Triton kernels do."""
    launch.forward(TORCH, launch.Matrices(*halves(z, y.shape[1], applied.gated)), y, signs, applied)


def act_bwd(
    dy: Tensor, saved: Tensor, keep: Keep, applied: Applied, needs: Needs, dz: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """(dz, h, dbias float32, dparam float32) for dy [M, N] and saved z ("input"), y ("output") or signs ("sign"), as Triton's act_bwd."""
    (m, n), gated = dy.shape, applied.gated
    saved = saved.contiguous()  # a user's hooks may give back another layout
    if dz is None and needs.dz:
        dz = dy.new_empty(m, 2 * n if gated else n)
    matrix, signs = (None, saved) if keep == "sign" else (saved, None)
    into = launch.Gradients(*halves(dz, n, gated), h=dy.new_empty(m, n) if needs.h else None)
    z = launch.Matrices(*halves(matrix, n, gated))
    found = launch.backward(TORCH, dy, z, signs, keep, applied, into, needs)
    return dz, found.h, found.dbias, found.dparam


def dropout_mask(dropout: Dropout, m: int, n: int) -> Tensor:
    """The factors that the kernels multiply h [m, n] by, float32."""
    factors = torch.empty(m, n, device=dropout.seed.device)
    launch.mask(TORCH, factors, dropout)
    return factors
