// The pointwise kernels, beside products that cuBLAS computes: y = act(z) forward, dz = dy * act'(z) backward.
//
// source.py puts the definitions for one activation and dtype in front of this file:
//   HALF, BFLOAT16, SINGLE or DOUBLE   the dtype of the arrays; WIDE: z, up and saved are in the kernels' arithmetic instead
//   GATED or PAIR                      y = value(z) * up, or y = value(z, up); neither: y = value(z)
//   BACKWARD                           the derivative kernel
//   LEARNED                            the number of parameters that are arrays, whose gradients it computes
//   REALS, PARAMETERS                  the activation's parameters in a formula's declaration and in a kernel's
//   LOAD_PARAMETERS, VALUES            load the parameters that are arrays, for a group of columns; the values of all in column `i` of it
// Behind this file it puts the formulas: `value`, and in backward `grad`, `grad_up` (for a pair) and `grad_param` (LEARNED), by the number of the array.
//
// A thread takes WIDTH neighbouring columns of every n-th row: a byte of signs, two draws of Philox, 16-byte vectors in every dtype.
// Absent operands are null pointers. No atomics are needed: each thread writes its column sums to a row of its own, and the caller adds the
// rows up.

typedef long long offset;
#ifdef DOUBLE
typedef double real;
#define MATH(name) name
#else
typedef float real;
#define MATH(name) name##f
#endif
#if defined(HALF) || defined(BFLOAT16)
typedef unsigned short T;
#else
typedef real T;
#endif
#ifdef WIDE
typedef real Z;
#else
typedef T Z;
#endif

#define INLINE __device__ __forceinline__
#define WIDTH 8
#define PACK(E) (16 / (int)sizeof(E))
#define EACH_ARRAY _Pragma("unroll") for (int which = 0; which < LEARNED; which++)
#define EACH_COLUMN _Pragma("unroll") for (int i = 0; i < WIDTH; i++)

// The primitives of vocabulary.py, and those of approximations.py, which makes fast ones of them for results in 16 bits.

INLINE real absolute_(real x) { return MATH(fabs)(x); }
INLINE real cos_(real x) { return MATH(cos)(x); }
INLINE real erf_(real x) { return MATH(erf)(x); }
INLINE real exp_(real x) { return MATH(exp)(x); }
INLINE real expm1_(real x) { return MATH(expm1)(x); }
INLINE real log_(real x) { return MATH(log)(x); }
INLINE real log1p_(real x) { return MATH(log1p)(x); }
INLINE real maximum_(real a, real b) { return a > b || a != a ? a : b; }  // fmax would drop a NaN
INLINE real minimum_(real a, real b) { return a < b || a != a ? a : b; }
INLINE real normal_cdf_(real x) { return (real)0.5 * MATH(erfc)(x * (real)-0.7071067811865476); }
INLINE real reciprocal_(real x) { return (real)1 / x; }
INLINE real rsqrt_(real x) { return MATH(rsqrt)(x); }
INLINE real sigmoid_(real x) { return (real)1 / ((real)1 + MATH(exp)(-x)); }
INLINE real sin_(real x) { return MATH(sin)(x); }
INLINE real softplus_(real x) { return maximum_(x, (real)0) + MATH(log1p)(MATH(exp)(-MATH(fabs)(x))); }
INLINE real sqrt_(real x) { return MATH(sqrt)(x); }
INLINE real tanh_(real x) { return MATH(tanh)(x); }

#ifdef __CUDACC__
INLINE float exp2_approx_(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

INLINE float log2_approx_(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

INLINE float reciprocal_approx_(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

INLINE real value(real REALS);
#ifdef BACKWARD
INLINE real grad(real REALS);
#ifdef PAIR
INLINE real grad_up(real REALS);
#endif
#ifdef LEARNED
INLINE real grad_param(int which, real REALS);
#endif
#endif

// Conversions to and from storage; both dtypes round to nearest even. float16 uses the instructions that every chip has, because its header
// is not always where NVRTC looks. bfloat16 has an instruction from sm_80 on, and is converted by its bits before.

#ifdef __CUDACC__
INLINE float half_to_float(unsigned short x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

INLINE unsigned short float_to_half(float x) {
  unsigned short y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif

INLINE real widened(real x) { return x; }

INLINE real widened(unsigned short x) {
#ifdef HALF
  return half_to_float(x);
#else
  return __uint_as_float((unsigned)x << 16);
#endif
}

INLINE T rounded(real x) {
#if defined(HALF)
  return float_to_half(x);
#elif defined(BFLOAT16) && __CUDA_ARCH__ >= 800
  T y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
#elif defined(BFLOAT16)
  const unsigned bits = __float_as_uint(x);
  return x != x ? 0x7FFF : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
#else
  return x;
#endif
}

// Load WIDTH elements from p on. Only `count` of them exist; the others are 0. vector: p is a multiple of 16 bytes.
template <class E>
INLINE void load(const E* p, int count, bool vector, real* x) {
  if (vector && count == WIDTH) {
#pragma unroll
    for (int i = 0; i < WIDTH; i += PACK(E)) {
      alignas(16) E items[PACK(E)];
      *(uint4*)items = *(const uint4*)(p + i);
#pragma unroll
      for (int j = 0; j < PACK(E); j++) x[i + j] = widened(items[j]);
    }
  } else {
    EACH_COLUMN x[i] = i < count ? widened(p[i]) : (real)0;
  }
}

INLINE void store(T* p, int count, bool vector, const real* x) {
  if (vector && count == WIDTH) {
#pragma unroll
    for (int i = 0; i < WIDTH; i += PACK(T)) {
      alignas(16) T items[PACK(T)];
#pragma unroll
      for (int j = 0; j < PACK(T); j++) items[j] = rounded(x[i + j]);
      *(uint4*)(p + i) = *(const uint4*)items;
    }
  } else {
    EACH_COLUMN if (i < count) p[i] = rounded(x[i]);
  }
}

// In a kept z, float16's infinity becomes its largest number: z may have overflowed in its rounding where y, computed from the unrounded z,
// did not, and a gradient of inf * 0 would be NaN.
INLINE void saturate(real* z) {
#if defined(HALF) && !defined(WIDE)
  EACH_COLUMN z[i] = minimum_(maximum_(z[i], (real)-65504), (real)65504);
#endif
}

// Load a parameter that is an array, of one element (stride 0) or one per column, for the WIDTH columns from col on.
INLINE void load_parameter(const real* array, offset stride, offset col, int count, real* x) {
  EACH_COLUMN x[i] = i < count ? array[(col + i) * stride] : (real)0;
}

// z += bias, where there is one.
INLINE void add_bias(const real* bias, real* z) { EACH_COLUMN z[i] += bias[i]; }

// Draw dropout's mask for WIDTH columns, one bit each: 1 where the element stays. It stays where its 32 random bits, as a signed number,
// reach the threshold. They come from Philox4x32-7 (Salmon et al. 2011, doi:10.1145/2063384.2063405) with the counter (column / 4, row), as
// in triton/dropout.py, so backward draws forward's mask.
INLINE unsigned drawn(const offset* seed, offset threshold, offset row, offset group) {
  unsigned kept = 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    unsigned c[4] = {(unsigned)(2 * group + half), (unsigned)row, 0, 0};
    unsigned k0 = (unsigned)*seed, k1 = (unsigned)((unsigned long long)*seed >> 32);
#pragma unroll
    for (int round = 0; round < 7; round++) {
      const unsigned long long a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
      c[0] = (unsigned)(b >> 32) ^ c[1] ^ k0;
      c[1] = (unsigned)b;
      c[2] = (unsigned)(a >> 32) ^ c[3] ^ k1;
      c[3] = (unsigned)a;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) kept |= (unsigned)((int)c[i] >= (int)threshold) << (4 * half + i);
  }
  return kept;
}

INLINE void drop(unsigned kept, real scale, real* x) { EACH_COLUMN x[i] = kept >> i & 1 ? x[i] * scale : (real)0; }

// The formulas with gating, in column `i` of the thread's group.
#if defined(PAIR)
#define ACTIVATED(z, up) value(z, up VALUES)
#define DZ(dy, z, up) (dy * grad(z, up VALUES))
#define DUP(dy, z, up) (dy * grad_up(z, up VALUES))
#define DPARAM(which, dy, z, up) (dy * grad_param(which, z, up VALUES))
#elif defined(GATED)
#define ACTIVATED(z, up) (value(z VALUES) * up)
#define DZ(dy, z, up) (dy * up * grad(z VALUES))
#define DUP(dy, z, up) (dy * value(z VALUES))
#define DPARAM(which, dy, z, up) (dy * up * grad_param(which, z VALUES))
#else
#define ACTIVATED(z, up) value(z VALUES)
#define DZ(dy, z, up) (dy * grad(z VALUES))
#define DPARAM(which, dy, z, up) (dy * grad_param(which, z VALUES))
#endif

// The rows and groups of columns of this thread.
#define FIRST_ROW (blockIdx.x * (offset)blockDim.y + threadIdx.y)
#define ROW_STEP (gridDim.x * (offset)blockDim.y)
#define EACH_GROUP \
  for (offset group = blockIdx.y * (offset)blockDim.x + threadIdx.x; group * WIDTH < N; group += gridDim.y * (offset)blockDim.x)
#define COLUMNS_LEFT (N - col < WIDTH ? (int)(N - col) : WIDTH)

#ifndef BACKWARD

// y [M, N] = dropout(act(z + bias)), signs = act(...) > 0, eight columns to a byte. y may be z. In a gated layer z is gate, beside up.
extern "C" __global__ void act_fwd(
    const Z* z_ptr, const Z* up_ptr, const T* bias_ptr, const T* up_bias_ptr, T* y_ptr, unsigned char* signs_ptr, const offset* seed,
    offset threshold, real scale, offset M, offset N, offset stride_z, offset stride_y, offset vector PARAMETERS) {
  EACH_GROUP {
    const offset col = group * WIDTH;
    const int count = COLUMNS_LEFT;
    real bias[WIDTH] = {}, up_bias[WIDTH] = {};
    if (bias_ptr) load(bias_ptr + col, count, false, bias);
    if (up_bias_ptr) load(up_bias_ptr + col, count, false, up_bias);
    LOAD_PARAMETERS
    for (offset row = FIRST_ROW; row < M; row += ROW_STEP) {
      real z[WIDTH], up[WIDTH], y[WIDTH];
      load(z_ptr + row * stride_z + col, count, vector, z);
      add_bias(bias, z);
      if (up_ptr) load(up_ptr + row * stride_z + col, count, vector, up);
      if (up_ptr) add_bias(up_bias, up);
      EACH_COLUMN y[i] = ACTIVATED(z[i], up[i]);
      if (signs_ptr) {
        unsigned bits = 0;
        EACH_COLUMN bits |= (unsigned)(i < count && y[i] > (real)0) << i;
        signs_ptr[row * ((N + WIDTH - 1) / WIDTH) + group] = (unsigned char)bits;
      }
      if (seed) drop(drawn(seed, threshold, row, group), scale, y);
      store(y_ptr + row * stride_y + col, count, vector, y);
    }
  }
}

// The factors by which dropout multiplies [M, N].
extern "C" __global__ void dropout_mask(real* mask, const offset* seed, offset threshold, real scale, offset M, offset N) {
  EACH_GROUP {
    const offset col = group * WIDTH;
    const int count = COLUMNS_LEFT;
    for (offset row = FIRST_ROW; row < M; row += ROW_STEP) {
      const unsigned kept = drawn(seed, threshold, row, group);
      EACH_COLUMN if (i < count) mask[row * N + col + i] = kept >> i & 1 ? scale : (real)0;
    }
  }
}

#else

// dz [M, N] = dropout(dy) * act'(saved + bias), with `up` also dup, and h [M, N] = dropout(act(saved + bias)). Signs in place of saved
// stand for 1 and 0. dz may be dy. Sums over this thread's rows go to its row of [threads along rows, ...]: dbias and dup_bias have row
// stride stride_sum, dparam is [..., LEARNED, N].
extern "C" __global__ void act_bwd(
    const T* dy_ptr, const Z* saved_ptr, const Z* up_ptr, const T* bias_ptr, const T* up_bias_ptr, const unsigned char* signs_ptr,
    T* dz_ptr, T* dup_ptr, T* h_ptr, real* dbias_ptr, real* dup_bias_ptr, real* dparam_ptr, const offset* seed, offset threshold,
    real scale, offset M, offset N, offset stride_dy, offset stride_saved, offset stride_dz, offset stride_sum, offset vector PARAMETERS) {
  EACH_GROUP {
    const offset col = group * WIDTH;
    const int count = COLUMNS_LEFT;
    real bias[WIDTH] = {}, up_bias[WIDTH] = {}, sum_z[WIDTH] = {}, sum_up[WIDTH] = {};
#ifdef LEARNED
    real sum_params[LEARNED][WIDTH] = {};
#endif
    if (bias_ptr) load(bias_ptr + col, count, false, bias);
    if (up_bias_ptr) load(up_bias_ptr + col, count, false, up_bias);
    LOAD_PARAMETERS
    for (offset row = FIRST_ROW; row < M; row += ROW_STEP) {
      real dy[WIDTH], saved[WIDTH], up[WIDTH], result[WIDTH];
      const unsigned kept = seed ? drawn(seed, threshold, row, group) : 0;
      load(dy_ptr + row * stride_dy + col, count, vector, dy);
      if (seed) drop(kept, scale, dy);
      if (signs_ptr) {
        const unsigned bits = signs_ptr[row * ((N + WIDTH - 1) / WIDTH) + group];
        EACH_COLUMN saved[i] = (real)(bits >> i & 1);
      } else {
        load(saved_ptr + row * stride_saved + col, count, vector, saved);
        saturate(saved);
        add_bias(bias, saved);
      }
      if (up_ptr) load(up_ptr + row * stride_saved + col, count, vector, up);
      if (up_ptr) saturate(up);
      if (up_ptr) add_bias(up_bias, up);
      if (h_ptr) {
        EACH_COLUMN result[i] = ACTIVATED(saved[i], up[i]);
        if (seed) drop(kept, scale, result);
        store(h_ptr + row * N + col, count, vector, result);
      }
#ifdef LEARNED
      EACH_ARRAY EACH_COLUMN sum_params[which][i] += DPARAM(which, dy[i], saved[i], up[i]);
#endif
#ifdef DUP
      EACH_COLUMN result[i] = DUP(dy[i], saved[i], up[i]);
      EACH_COLUMN sum_up[i] += result[i];
      if (dup_ptr) store(dup_ptr + row * stride_dz + col, count, vector, result);
#endif
      EACH_COLUMN result[i] = DZ(dy[i], saved[i], up[i]);
      EACH_COLUMN sum_z[i] += result[i];
      if (dz_ptr) store(dz_ptr + row * stride_dz + col, count, vector, result);
    }
    EACH_COLUMN if (dbias_ptr && i < count) dbias_ptr[FIRST_ROW * stride_sum + col + i] = sum_z[i];
    EACH_COLUMN if (dup_bias_ptr && i < count) dup_bias_ptr[FIRST_ROW * stride_sum + col + i] = sum_up[i];
#ifdef LEARNED
    EACH_ARRAY EACH_COLUMN if (dparam_ptr && i < count) dparam_ptr[(FIRST_ROW * LEARNED + which) * N + col + i] = sum_params[which][i];
#endif
  }
}

#endif
