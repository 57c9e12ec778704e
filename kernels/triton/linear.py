"""act(x Wᵀ + b), and with a second weight act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): forward kernels and backward's pointwise kernel.

Two forward kernels compute the same: one loads by tensor descriptors (TMA, sm_90 and newer), one by pointers (everything else).
No kernel argument may be called `params`: the function that Triton writes to bind a launch's arguments has a variable of that name.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..catalogue import Activation
from .configs import BWD_BLOCK, Config, choose, machine, precision
from .tiles import activate, add_bias, column_pieces, dot, load_params, rounded, tile_position
from .vocabulary import device_function


@triton.jit(do_not_specialize=["M"])
def linear_fwd_kernel(
    x_ptr, weight_ptr, up_ptr, bias_ptr, up_bias_ptr, y_ptr, z_ptr, z_up_ptr, act_params,
    M, N, K, stride_xm, stride_xk, stride_wn, stride_wk, stride_un, stride_uk, stride_zm,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y [M, N] = act(x [M, K] weight [N, K]ᵀ + bias [N]), and z (z_up) the pre-activations unless None. One tile per program."""
    tile_m, tile_n = tile_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask, col_mask = (rows < M)[:, None], (cols < N)[None, :]
    rows64, cols64, ks64 = rows.to(tl.int64)[:, None], cols.to(tl.int64)[None, :], ks.to(tl.int64)
    x_ptrs = x_ptr + rows64 * stride_xm + ks64[None, :] * stride_xk
    w_ptrs = weight_ptr + cols64 * stride_wn + ks64[:, None] * stride_wk
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = None
    if up_ptr is not None:
        u_ptrs = up_ptr + cols64 * stride_un + ks64[:, None] * stride_uk
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        k_mask = ks < K - k
        x = tl.load(x_ptrs, mask=row_mask & k_mask[None, :], other=0.0)
        w = tl.load(w_ptrs, mask=col_mask & k_mask[:, None], other=0.0)
        acc = dot(x, w, acc, PRECISION)
        if up_ptr is not None:
            u = tl.load(u_ptrs, mask=col_mask & k_mask[:, None], other=0.0)
            up = dot(x, u, up, PRECISION)
            u_ptrs += BLOCK_K * stride_uk
        x_ptrs += BLOCK_K * stride_xk
        w_ptrs += BLOCK_K * stride_wk
    z = add_bias(acc, bias_ptr, cols, N)
    mask = row_mask & col_mask
    if z_ptr is not None:
        tl.store(z_ptr + rows64 * stride_zm + cols64, rounded(z, z_ptr.dtype.element_ty), mask=mask)
    if up_ptr is not None:
        up = add_bias(up, up_bias_ptr, cols, N)
        if z_ptr is not None:
            tl.store(z_up_ptr + rows64 * stride_zm + cols64, rounded(up, z_ptr.dtype.element_ty), mask=mask)
    y = activate(z, up, load_params(act_params, cols, N, PARAM_STRIDES), value, GATED)
    tl.store(y_ptr + rows64 * N + cols64, rounded(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def linear_fwd_tma_kernel(
    x_desc, weight_desc, up_desc, bias_ptr, up_bias_ptr, y_desc, z_desc, z_up_desc, act_params,
    M, N, K,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PIECES: tl.constexpr, NUM_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """The same by tensor descriptors, persistent: a program walks over tiles, so the next tile's loads run under this one's epilogue."""
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, NUM_PROGRAMS, flatten=True):
        tile_m, tile_n = tile_position(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        row, col = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if up_desc is not None:
            up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            x = x_desc.load([row, k])
            acc = dot(x, weight_desc.load([col, k]).T, acc, PRECISION)
            if up_desc is not None:
                up = dot(x, up_desc.load([col, k]).T, up, PRECISION)
        z_pieces = column_pieces(acc, PIECES)
        if up_desc is not None:
            up_pieces = column_pieces(up, PIECES)
        for i in tl.static_range(PIECES):
            start = col + i * (BLOCK_N // PIECES)
            cols = start + tl.arange(0, BLOCK_N // PIECES)
            z = add_bias(z_pieces[i], bias_ptr, cols, N)
            if z_desc is not None:
                z_desc.store([row, start], rounded(z, z_desc.dtype))
            up_piece = None
            if up_desc is not None:
                up_piece = add_bias(up_pieces[i], up_bias_ptr, cols, N)
                if z_desc is not None:
                    z_up_desc.store([row, start], rounded(up_piece, z_desc.dtype))
            y = activate(z, up_piece, load_params(act_params, cols, N, PARAM_STRIDES), value, GATED)
            y_desc.store([row, start], rounded(y, y_desc.dtype))


@triton.jit(do_not_specialize=["M", "rows_per_program"])
def linear_bwd_kernel(
    dy_ptr, saved_ptr, up_ptr, dz_ptr, dup_ptr, dbias_ptr, dup_bias_ptr, dparam_ptr, act_params,
    M, N, stride_dym, stride_dyn, stride_sm, stride_dzm, rows_per_program,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_param: tl.constexpr,
    PARAM_STRIDES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dz [M, N] = dy ⊙ act'(saved), and per program the float32 column sums of dz and of the learnable parameter's gradient.

    With `up`, the gradients of both operands: of a pair by `grad` and `grad_up`, of a gated activation (grad_up None) by the product
    rule. Sums land in row program_id(0) of [programs, N] arrays of row stride stride_dzm (dparam's: N): no atomics.
    """
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols64 = cols.to(tl.int64)[None, :]
    col_mask = cols < N
    values = load_params(act_params, cols, N, PARAM_STRIDES)
    sum_z = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sum_up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sum_param = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    first = tl.program_id(0) * rows_per_program
    for start in range(first, min(first + rows_per_program, M), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        rows64 = rows.to(tl.int64)[:, None]
        mask = (rows < M)[:, None] & col_mask[None, :]
        dy = tl.load(dy_ptr + rows64 * stride_dym + cols64 * stride_dyn, mask=mask, other=0.0).to(tl.float32)
        saved = tl.load(saved_ptr + rows64 * stride_sm + cols64, mask=mask, other=0.0).to(tl.float32)
        if up_ptr is None:
            dz = dy * grad(saved, *values)
            if dparam_ptr is not None:
                sum_param += tl.where(mask, dy * grad_param(saved, *values), 0.0)
        else:
            up = tl.load(up_ptr + rows64 * stride_sm + cols64, mask=mask, other=0.0).to(tl.float32)
            if grad_up is None:
                dz = dy * up * grad(saved, *values)
                dup = dy * value(saved, *values)
                if dparam_ptr is not None:
                    sum_param += tl.where(mask, dy * up * grad_param(saved, *values), 0.0)
            else:
                dz = dy * grad(saved, up, *values)
                dup = dy * grad_up(saved, up, *values)
                if dparam_ptr is not None:
                    sum_param += tl.where(mask, dy * grad_param(saved, up, *values), 0.0)
            if dup_ptr is not None:
                tl.store(dup_ptr + rows64 * stride_dzm + cols64, rounded(dup, dup_ptr.dtype.element_ty), mask=mask)
            if dup_bias_ptr is not None:
                sum_up += tl.where(mask, dup, 0.0)
        if dz_ptr is not None:
            tl.store(dz_ptr + rows64 * stride_dzm + cols64, rounded(dz, dz_ptr.dtype.element_ty), mask=mask)
        if dbias_ptr is not None:
            sum_z += tl.where(mask, dz, 0.0)
    out = tl.program_id(0).to(tl.int64)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + out * stride_dzm + cols, tl.sum(sum_z, 0), mask=col_mask)
    if dup_bias_ptr is not None:
        tl.store(dup_bias_ptr + out * stride_dzm + cols, tl.sum(sum_up, 0), mask=col_mask)
    if dparam_ptr is not None:
        tl.store(dparam_ptr + out * N + cols, tl.sum(sum_param, 0), mask=col_mask)


class Operands(NamedTuple):
    """What the launchers need of a call: x [..., K], one or two weights with their biases, and the activation's parameters.

    `weight` is [N, K], or packed [2N, K] where `gated` says so; `values` are numbers and tensors in the formula's order.
    """

    x: Tensor
    weight: Tensor
    up_weight: Tensor | None
    bias: Tensor | None
    up_bias: Tensor | None
    act: Activation
    values: tuple
    gated: bool

    def halves(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """(weight, up weight, bias, up bias), the packed ones as views."""
        if not self.gated or self.up_weight is not None:
            return self.weight, self.up_weight, self.bias, self.up_bias
        n = self.weight.shape[0] // 2
        bias, up_bias = (None, None) if self.bias is None else (self.bias[:n], self.bias[n:])
        return self.weight[:n], self.weight[n:], bias, up_bias


def linear_fwd(operands: Operands, save: bool, config: Config | None = None) -> tuple[Tensor, Tensor | None]:
    """(y [..., N], z [M, N] or gate|up [M, 2N]; z is None unless `save`)."""
    x, act = rows_of(operands.x), operands.act
    weight, up, *biases = operands.halves()
    bias, up_bias = (None if b is None else b.contiguous() for b in biases)
    (m, k), n = x.shape, weight.shape[0]
    result = x.new_empty(*operands.x.shape[:-1], n)
    z = x.new_empty(m, 2 * n if operands.gated else n) if save else None
    if result.numel() == 0:
        return result, z
    y = rows_of(result)
    chip = machine(x)
    tma = chip.descriptors and precision(x) != "ieee" and _tma_fits(x, weight, up, y)
    config = config or choose(m, n, k, x.element_size(), operands.gated, tma, chip)
    z_gate, z_up = (z, None) if z is None or not operands.gated else (z[:, :n], z[:, n:])
    params, strides = param_arguments(operands.values)
    constants = {
        "value": device_function((act.gate or act).value, x.dtype), "GATED": act.arity == 1 or act.gate is not None,
        "PARAM_STRIDES": strides, "PRECISION": precision(x), **config.constants(),
    }  # fmt: skip
    tiles = triton.cdiv(m, config.BLOCK_M) * triton.cdiv(n, config.BLOCK_N)
    with on_device(x):
        if config.tma:
            programs = min(tiles, chip.processors)
            matrices = [
                None if t is None else TensorDescriptor.from_tensor(t, [rows, config.BLOCK_K])
                for t, rows in ((x, config.BLOCK_M), (weight, config.BLOCK_N), (up, config.BLOCK_N))
            ]
            results = [
                None
                if t is None
                else TensorDescriptor.from_tensor(t, [config.BLOCK_M, config.BLOCK_N // config.PIECES])
                for t in (y, z_gate, z_up)
            ]
            linear_fwd_tma_kernel[(programs,)](
                *matrices, bias, up_bias, *results, params, m, n, k, **constants, NUM_PROGRAMS=programs
            )
        else:
            up_strides = (0, 0) if up is None else up.stride()
            linear_fwd_kernel[(tiles,)](
                x, weight, up, bias, up_bias, y, z_gate, z_up, params, m, n, k, *x.stride(), *weight.stride(), *up_strides,
                0 if z is None else z.stride(0), **constants,
            )  # fmt: skip
    return result, z


def linear_bwd(
    dy: Tensor, saved: Tensor, act: Activation, values: tuple, gated: bool, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dz, dbias float32, dparam float32) for dy [M, N] and saved z or y; gated: saved and dz are gate|up [M, 2N], dbias [2N].

    needs: which of the three to compute. dparam is the learnable tensor's gradient, per column: [N].
    """
    m, n = dy.shape
    width = 2 * n if gated else n
    programs, rows_per_program = _row_programs(m, n, machine(dy).processors)
    dz = dy.new_empty(m, width) if needs[0] else None
    dbias = dy.new_empty(programs, width, dtype=torch.float32) if needs[1] else None
    dparam = dy.new_empty(programs, n, dtype=torch.float32) if needs[2] else None
    if dy.numel():
        gate, up = (saved[:, :n], saved[:, n:]) if gated else (saved, None)
        dz_gate, dz_up = (dz, None) if dz is None or not gated else (dz[:, :n], dz[:, n:])
        db_gate, db_up = (dbias, None) if dbias is None or not gated else (dbias[:, :n], dbias[:, n:])
        params, strides = param_arguments(values)
        with on_device(dy):
            linear_bwd_kernel[(programs, triton.cdiv(n, BWD_BLOCK["BLOCK_N"]))](
                dy, gate, up, dz_gate, dz_up, db_gate, db_up, dparam, params,
                m, n, *dy.stride(), saved.stride(0), width, rows_per_program,
                **gradients(act, values, gated, dy.dtype), PARAM_STRIDES=strides, **BWD_BLOCK,
            )  # fmt: skip
    return dz, None if dbias is None else dbias.sum(0), None if dparam is None else dparam.sum(0)


def gradients(act: Activation, values: tuple, gated: bool, dtype: torch.dtype) -> dict[str, Any]:
    """The derivative kernel's functions for this activation."""
    base = act.gate or act
    if base.arity == 2:
        grad, grad_up = base.derivatives["a"], base.derivatives["b"]
    else:
        from_output = None if gated else base.output_derivative(values)
        grad, grad_up = from_output or base.derivatives["x"], None
    learned = next((name for name, v in zip(base.params, values, strict=True) if isinstance(v, Tensor)), "")
    formulas = {"value": base.value, "grad": grad, "grad_up": grad_up, "grad_param": base.derivatives.get(learned)}
    return {name: formula and device_function(formula, dtype) for name, formula in formulas.items()}


def param_arguments(values: tuple) -> tuple[tuple, tuple]:
    """(kernel arguments, PARAM_STRIDES) of an activation's parameters."""
    strides = tuple((0 if v.numel() == 1 else 1) if isinstance(v, Tensor) else None for v in values)
    return tuple(v.contiguous() if isinstance(v, Tensor) else v for v in values), strides


def rows_of(x: Tensor) -> Tensor:
    """x [..., N] as a matrix [M, N], a view where its strides allow one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def on_device(x: Tensor) -> Any:
    """Triton launches on the current device; make it that of x."""
    return torch.cuda.device_of(x)


def _tma_fits(x: Tensor, weight: Tensor, up: Tensor | None, y: Tensor) -> bool:
    """Tensor descriptors want unit column strides, bases and row strides of 16 bytes, and no empty axis."""
    return all(
        t.shape[1] > 0 and t.stride(1) == 1 and t.stride(0) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0
        for t in (x, weight, up, y)
        if t is not None
    )


def _row_programs(m: int, n: int, processors: int) -> tuple[int, int]:
    """(programs along the rows, rows of each): enough to fill the chip, few enough that their partial sums stay small."""
    blocks = triton.cdiv(m, BWD_BLOCK["BLOCK_M"])
    wanted = max(1, 8 * processors // triton.cdiv(n, BWD_BLOCK["BLOCK_N"]) if n else 1)
    rows = triton.cdiv(blocks, min(blocks, wanted)) * BWD_BLOCK["BLOCK_M"] if blocks else BWD_BLOCK["BLOCK_M"]
    return triton.cdiv(m, rows), rows
