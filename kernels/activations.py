"""The catalogue: one block per activation, with its formula, its derivative and its record.

A formula is straight-line arithmetic over the vocabulary: float literals, `+ - * /`, comparisons inside `where`, calls of primitives.
What one trace of it records runs in NumPy, Triton and CUDA C. Derivatives have names of their own (`silu_grad`). At a kink they take
torch's side.

Where torch gives NaN for an infinite input (`silu(-inf)` is `-inf · 0`), these formulas do too. The table lists every exception at
infinities and NaN, and those at ±1e20, where an intermediate leaves float32. "ours" are the reference and the kernels; a layer of CPU
tensors runs torch's own code. "or" separates torch's scalar code, which is used for few elements, from its vector code.

    activation    at     torch's     ours      its gradient    ours
    hardtanh      nan    nan         nan       1 or 0          1
    softsign      inf    nan         nan       nan             0
    softsign      -inf   nan         nan       nan             0
    relu6         nan    nan         nan       1 or 0          1
    elu           nan    nan         nan       1 or nan        nan
    selu          nan    nan         nan       1.0507 or nan   nan
    celu          nan    nan         nan       1 or nan        nan
    gelu          inf    inf or nan  inf       nan             nan
    gelu_10       inf    10 or nan   10        nan             0
    gelu_tanh     1e20   1e20        1e20      nan             1
    gelu_tanh     -1e20  -0          -0        nan             0
    hardswish     nan    nan         nan       1 or nan        1
    sqrtsoftplus  -inf   0           0         nan             0
    sqrtsoftplus  -1e20  0           0         nan             0
    softshrink    nan    nan         nan       1 or 0          1
    hardshrink    nan    nan         nan       1 or 0          1
    xielu         -inf   nan         inf       nan             -0.3

In float16 the backward kernels take an infinite z as 65504. Compiled by Inductor, torch's softshrink(nan) is 0.
"""

import math

from .catalogue import exact_in_half
from .registration import activation, derivative_of, pair
from .vocabulary import (
    absolute,
    exp,
    expm1,
    log1p,
    maximum,
    minimum,
    normal_cdf,
    reciprocal,
    sigmoid,
    sqrt,
    tanh,
    where,
)


@activation(oracle=lambda F, x: x, aliases=("linear", "none"))
def identity(x):
    """x. The gated variant is the bilinear layer."""
    return x


@derivative_of(identity)
def identity_grad(x):
    return 1.0


@derivative_of(identity, output=True)
def identity_grad_output(y):
    return 1.0


@activation(oracle=lambda F, x: F.relu(x.sign()), aliases=("heaviside",), kinks=(0.0,))
def step(x):
    """1 for x > 0, else 0 (NaN gives 0). The threshold unit of McCulloch and Pitts 1943; its derivative is 0 everywhere."""
    return where(x > 0.0, 1.0, 0.0)


@derivative_of(step)
def step_grad(x):
    return 0.0


@derivative_of(step, output=True, sign=True)
def step_grad_output(y):
    return 0.0


@activation(oracle=lambda F, x: x.sign(), kinks=(0.0,))
def sign(x):
    """1 for x > 0, -1 for x < 0, 0 at 0 and at NaN (torch.sign). Its derivative is 0 everywhere."""
    return where(x > 0.0, 1.0, where(x < 0.0, -1.0, 0.0))


@derivative_of(sign)
def sign_grad(x):
    return 0.0


@derivative_of(sign, output=True, sign=True)
def sign_grad_output(y):
    return 0.0


@activation(oracle=lambda F, x: F.sigmoid(x), gated="glu")
def sigmoid_(x):
    """σ(x) = 1 / (1 + e⁻ˣ). Its gated variant is GLU: Dauphin et al. 2016, arXiv:1612.08083."""
    return sigmoid(x)


@derivative_of(sigmoid_)
def sigmoid_grad(x):
    """σ(x) σ(-x), which is even in x. Both factors come from the smaller one, which keeps its relative accuracy."""
    s = sigmoid(-absolute(x))
    return s * (1.0 - s)


@derivative_of(sigmoid_, output=True, torchs=True)
def sigmoid_grad_output(y):
    return y * (1.0 - y)


@activation(oracle=lambda F, x: F.hardsigmoid(x), kinks=(-3.0, 3.0))
def hardsigmoid(x):
    """min(max(x + 3, 0), 6) / 6.  torch.nn.Hardsigmoid; Howard et al. 2019, arXiv:1905.02244."""
    return minimum(maximum(x + 3.0, 0.0), 6.0) / 6.0


@derivative_of(hardsigmoid)
def hardsigmoid_grad(x):
    return where(absolute(x) < 3.0, 1.0 / 6.0, 0.0)


@activation(oracle=lambda F, x: F.logsigmoid(x), aliases=("log_sigmoid",))
def logsigmoid(x):
    """log σ(x) = min(x, 0) - log(1 + e^-|x|).  torch.nn.LogSigmoid."""
    return minimum(x, 0.0) - log1p(exp(-absolute(x)))


@derivative_of(logsigmoid)
def logsigmoid_grad(x):
    return sigmoid(-x)


@derivative_of(logsigmoid, output=True)
def logsigmoid_grad_output(y):
    return -expm1(y)


@activation(oracle=lambda F, x: F.tanh(x))
def tanh_(x):
    """tanh(x) = (eˣ - e⁻ˣ) / (eˣ + e⁻ˣ)."""
    return tanh(x)


@derivative_of(tanh_)
def tanh_grad(x):
    """1 - tanh², as 4 σ(2x) σ(-2x): no cancellation in the tails."""
    s = sigmoid(-2.0 * absolute(x))
    return 4.0 * s * (1.0 - s)


@derivative_of(tanh_, output=True, torchs=True)
def tanh_grad_output(y):
    return 1.0 - y * y


@activation(
    oracle=lambda F, x, min_val, max_val: F.hardtanh(x, min_val, max_val),
    kinks=lambda min_val, max_val: (min_val, max_val),
    requires=(lambda min_val, max_val: min_val <= max_val, "min_val <= max_val"),
)
def hardtanh(x, min_val=-1.0, max_val=1.0):
    """min(max(x, min_val), max_val).  torch.nn.Hardtanh."""
    return minimum(maximum(x, min_val), max_val)


@derivative_of(hardtanh)
def hardtanh_grad(x, min_val, max_val):
    return where(x <= min_val, 0.0, where(x >= max_val, 0.0, 1.0))


@derivative_of(hardtanh, output=lambda min_val, max_val: exact_in_half(min_val) and exact_in_half(max_val))
def hardtanh_grad_output(y, min_val, max_val):
    return where(y <= min_val, 0.0, where(y >= max_val, 0.0, 1.0))


@activation(oracle=lambda F, x: F.tanhshrink(x))
def tanhshrink(x):
    """x - tanh(x).  torch.nn.Tanhshrink."""
    return x - tanh(x)


@derivative_of(tanhshrink)
def tanhshrink_grad(x):
    t = tanh(x)
    return t * t


@activation(oracle=lambda F, x: F.softsign(x))
def softsign(x):
    """x / (1 + |x|).  torch.nn.Softsign."""
    return x / (1.0 + absolute(x))


@derivative_of(softsign)
def softsign_grad(x):
    """1 / (1 + |x|)². At ±inf it is 0, its limit, where torch's composite gives NaN."""
    r = reciprocal(1.0 + absolute(x))
    return r * r


@activation(oracle=lambda F, x: F.relu(x), gated="reglu", kinks=(0.0,))
def relu(x):
    """max(x, 0).  Nair & Hinton 2010. Gated: ReGLU, Shazeer 2020, arXiv:2002.05202."""
    return maximum(x, 0.0)


@derivative_of(relu)
def relu_grad(x):
    return where(x <= 0.0, 0.0, 1.0)


@derivative_of(relu, output=True, sign=True, torchs=True)
def relu_grad_output(y):
    return where(y <= 0.0, 0.0, 1.0)


@activation(oracle=lambda F, x: F.relu6(x), kinks=(0.0, 6.0))
def relu6(x):
    """min(max(x, 0), 6).  Krizhevsky 2010; torch.nn.ReLU6."""
    return minimum(maximum(x, 0.0), 6.0)


@derivative_of(relu6)
def relu6_grad(x):
    return where(x <= 0.0, 0.0, where(x >= 6.0, 0.0, 1.0))


@derivative_of(relu6, output=True)
def relu6_grad_output(y):
    return where(y <= 0.0, 0.0, where(y >= 6.0, 0.0, 1.0))


@activation(oracle=lambda F, x: F.relu(x).square(), aliases=("relu2", "squared_relu"))
def relu_squared(x):
    """max(x, 0)².  So et al. 2021 (Primer), arXiv:2109.08668."""
    r = maximum(x, 0.0)
    return r * r


@derivative_of(relu_squared)
def relu_squared_grad(x):
    return 2.0 * maximum(x, 0.0)


@activation(oracle=lambda F, x, negative_slope: F.leaky_relu(x, negative_slope), kinks=(0.0,))
def leaky_relu(x, negative_slope=0.01):
    """x for x > 0, else negative_slope · x.  Maas et al. 2013; torch.nn.LeakyReLU."""
    return where(x > 0.0, x, negative_slope * x)


@derivative_of(leaky_relu)
def leaky_relu_grad(x, negative_slope):
    return where(x > 0.0, 1.0, negative_slope)


@derivative_of(leaky_relu, output=lambda negative_slope: negative_slope >= 0.0, sign=True)
def leaky_relu_grad_output(y, negative_slope):
    """The sign of y is the sign of x while negative_slope ≥ 0."""
    return where(y > 0.0, 1.0, negative_slope)


@activation(oracle=lambda F, x, slope: x.where(x > 0, slope * x), kinks=(0.0,))
def prelu(x, slope=0.25):
    """x for x > 0, else slope · x. slope is a float or a learnable tensor, of one element or one per output channel (the last axis).

    He et al. 2015, arXiv:1502.01852; torch.nn.PReLU calls it `weight`.
    """
    return where(x > 0.0, x, slope * x)


@derivative_of(prelu)
def prelu_grad(x, slope):
    return where(x > 0.0, 1.0, slope)


@derivative_of(prelu, "slope")
def prelu_grad_slope(x, slope):
    return where(x > 0.0, 0.0, x)


@activation(oracle=lambda F, x, alpha: F.elu(x, alpha), kinks=(0.0,))
def elu(x, alpha=1.0):
    """x for x > 0, else alpha · (eˣ - 1).  Clevert et al. 2015, arXiv:1511.07289; torch.nn.ELU."""
    return where(x > 0.0, x, alpha * expm1(minimum(x, 0.0)))


@derivative_of(elu)
def elu_grad(x, alpha):
    """1 for x > 0, else alpha · eˣ. Written in y it would be y + alpha, which cancels where a rounded y is near -alpha."""
    return where(x > 0.0, 1.0, alpha * exp(minimum(x, 0.0)))


@activation(oracle=lambda F, x: F.selu(x), kinks=(0.0,))
def selu(x):
    """scale · (x for x > 0, else alpha · (eˣ - 1)).  Klambauer et al. 2017, arXiv:1706.02515; torch.nn.SELU has the constants."""
    return where(x > 0.0, 1.0507009873554805 * x, 1.7580993408473766 * expm1(minimum(x, 0.0)))


@derivative_of(selu)
def selu_grad(x):
    return where(x > 0.0, 1.0507009873554805, 1.7580993408473766 * exp(minimum(x, 0.0)))


@activation(oracle=lambda F, x, alpha: F.celu(x, alpha), requires=(lambda alpha: alpha != 0.0, "alpha other than 0"))
def celu(x, alpha=1.0):
    """max(x, 0) + min(0, alpha · (e^(x/alpha) - 1)).  Barron 2017, arXiv:1704.07483; torch.nn.CELU."""
    return where(x > 0.0, x, alpha * expm1(minimum(x, 0.0) * (1.0 / alpha)))


@derivative_of(celu)
def celu_grad(x, alpha):
    return where(x > 0.0, 1.0, exp(minimum(x, 0.0) * (1.0 / alpha)))


@activation(oracle=lambda F, x: F.gelu(x), aliases=("gelu_python",), gated="geglu")
def gelu(x):
    """x · Φ(x), Φ the normal distribution function (erf).  Hendrycks & Gimpel 2016, arXiv:1606.08415."""
    return x * normal_cdf(x)


@derivative_of(gelu)
def gelu_grad(x):
    """Φ(x) + x φ(x), with φ's factor 1/√2π inside its exponent."""
    return normal_cdf(x) + x * exp(-0.5 * x * x - 0.9189385332046727)


@activation(oracle=lambda F, x: F.gelu(x).clip(-10.0, 10.0), kinks=(10.0,))
def gelu_10(x):
    """min(gelu(x), 10): gelu clipped to [-10, 10], whose lower end it never reaches. Above 9 gelu is x.  arXiv:2004.09602."""
    return minimum(x * normal_cdf(x), 10.0)


@derivative_of(gelu_10)
def gelu_10_grad(x):
    """gelu's derivative up to 10, then 0. At inf it is 0, its limit, where torch's composite gives NaN."""
    return where(x > 10.0, 0.0, normal_cdf(x) + x * exp(-0.5 * x * x - 0.9189385332046727))


@activation(
    oracle=lambda F, x: F.gelu(x, approximate="tanh"),
    aliases=("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"),
    gated="geglu_tanh",
    variant_of=("gelu", "approximate", "tanh"),
)
def gelu_tanh(x):
    """x/2 · (1 + tanh u) = x · σ(2u), u = √(2/π) (x + 0.044715 x³).  Hendrycks & Gimpel 2016, arXiv:1606.08415.

    The sigmoid form keeps the relative accuracy of the lower tail, which 1 + tanh would lose by cancellation.
    """
    return x * sigmoid(x * (1.5957691216057308 + 0.07135481627260025 * (x * x)))


@derivative_of(gelu_tanh)
def gelu_tanh_grad(x):
    """σ(2u) + x σ(2u) σ(-2u) 2u', with both σ computed from the smaller one.

    x² is capped where the second term is 0 anyway. Past 1e19 it would overflow and make that term 0 · inf.
    """
    v = x * (1.5957691216057308 + 0.07135481627260025 * (x * x))
    s = sigmoid(-absolute(v))
    q = minimum(x * x, 1e4)
    return where(v < 0.0, s, 1.0 - s) + x * (s * (1.0 - s) * (1.5957691216057308 + 0.21406444881780073 * q))


@activation(oracle=lambda F, x: x * F.sigmoid(1.702 * x))
def quick_gelu(x):
    """x · σ(1.702 x).  Hendrycks & Gimpel 2016, arXiv:1606.08415; CLIP's GELU."""
    return x * sigmoid(1.702 * x)


@derivative_of(quick_gelu)
def quick_gelu_grad(x):
    s = sigmoid(1.702 * x)
    return s + x * (1.702 * s * (1.0 - s))


@activation(oracle=lambda F, x: F.silu(x), gated="swiglu")
def silu(x):
    """x · σ(x).  Elfwing et al. 2017, arXiv:1702.03118. Gated: SwiGLU, Shazeer 2020, arXiv:2002.05202."""
    return x * sigmoid(x)


@derivative_of(silu)
def silu_grad(x):
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@activation(oracle=lambda F, x, beta: x * F.sigmoid(beta * x))
def swish(x, beta=1.0):
    """x · σ(beta · x).  Ramachandran et al. 2017, arXiv:1710.05941.

    beta is a float or a learnable tensor, of one element or one per output channel. With beta = 1 this is silu.
    """
    return x * sigmoid(beta * x)


@derivative_of(swish)
def swish_grad(x, beta):
    s = sigmoid(beta * x)
    return s + x * (beta * (s * (1.0 - s)))


@derivative_of(swish, "beta")
def swish_grad_beta(x, beta):
    s = sigmoid(-absolute(beta * x))
    return x * (x * (s * (1.0 - s)))


@activation(oracle=lambda F, x: F.mish(x))
def mish(x):
    """x · tanh(log(1 + eˣ)).  Misra 2019, arXiv:1908.08681; torch.nn.Mish.

    eˣ is written as m / k with max(m, k) = 1, so nothing overflows. The tanh is w / (w + 2 k²) with w = m (m + 2 k), so nothing cancels.
    """
    e = exp(-absolute(x))
    m = where(x > 0.0, 1.0, e)
    k = where(x > 0.0, e, 1.0)
    w = m * (m + 2.0 * k)
    return x * (w * reciprocal(w + 2.0 * k * k))


@derivative_of(mish)
def mish_grad(x):
    """t + x σ(x) (1 - t²) for t = tanh(log(1 + eˣ)). With mish's m, k, w and r = 1 / (w + 2 k²): w r + x m (m + k) (2 k r)²."""
    e = exp(-absolute(x))
    m = where(x > 0.0, 1.0, e)
    k = where(x > 0.0, e, 1.0)
    w = m * (m + 2.0 * k)
    r = reciprocal(w + 2.0 * k * k)
    h = 2.0 * k * r
    return w * r + x * (m * (m + k) * (h * h))


@activation(oracle=lambda F, x: F.hardswish(x), kinks=(-3.0, 3.0))
def hardswish(x):
    """x · min(max(x + 3, 0), 6) / 6.  Howard et al. 2019, arXiv:1905.02244; torch.nn.Hardswish."""
    return x * (minimum(maximum(x + 3.0, 0.0), 6.0) / 6.0)


@derivative_of(hardswish)
def hardswish_grad(x):
    return where(x <= -3.0, 0.0, where(x < 3.0, x / 3.0 + 0.5, 1.0))


@activation(
    oracle=lambda F, x, beta, threshold: F.softplus(x, beta, threshold),
    kinks=lambda beta, threshold: (threshold / beta,),
    requires=(lambda beta, threshold: beta != 0.0, "beta other than 0"),
)
def softplus(x, beta=1.0, threshold=20.0):
    """log(1 + e^(beta x)) / beta, and x itself where beta · x > threshold.  torch.nn.Softplus."""
    b = beta * x
    return where(b > threshold, x, (maximum(b, 0.0) + log1p(exp(-absolute(b)))) * (1.0 / beta))


@derivative_of(softplus)
def softplus_grad(x, beta, threshold):
    b = beta * x
    return where(b > threshold, 1.0, sigmoid(b))


@derivative_of(softplus, output=lambda beta, threshold: beta > 0.0 and threshold >= 20.0)
def softplus_grad_output(y, beta, threshold):
    """1 - e^(-beta y). Where beta · y ≥ 20 it is 1 to within float32, on both sides of the threshold."""
    return -expm1(-beta * y)


@activation(oracle=lambda F, x: F.softplus(x).sqrt())
def sqrtsoftplus(x):
    """√softplus(x), with softplus's threshold of 20. Below -40 it is e^(x/2).  DeepSeek's router; transformers' SqrtSoftplusActivation."""
    h = exp(-0.5 * absolute(x))
    s = where(x > 20.0, x, maximum(x, 0.0) + log1p(h * h))
    return where(x < -40.0, h, sqrt(s))


@derivative_of(sqrtsoftplus)
def sqrtsoftplus_grad(x):
    """σ(x) / (2 √softplus(x)). Where softplus underflows, it is e^(x/2) / 2; torch's composite gives NaN there."""
    h = exp(-0.5 * absolute(x))
    e = h * h
    s = where(x > 20.0, x, maximum(x, 0.0) + log1p(e))
    p = where(x > 20.0, 1.0, where(x < 0.0, e, 1.0) * reciprocal(1.0 + e))
    return 0.5 * where(x < -40.0, h, p * reciprocal(sqrt(s)))


@activation(
    oracle=lambda F, x, lambd: F.softshrink(x, lambd),
    kinks=lambda lambd: (-lambd, lambd),
    requires=(lambda lambd: lambd >= 0.0, "lambd >= 0"),
)
def softshrink(x, lambd=0.5):
    """x - lambd for x > lambd, x + lambd for x < -lambd, else 0.  torch.nn.Softshrink."""
    return where(x > lambd, x - lambd, where(x < -lambd, x + lambd, 0.0 * x))


@derivative_of(softshrink)
def softshrink_grad(x, lambd):
    return where(absolute(x) <= lambd, 0.0, 1.0)


@activation(oracle=lambda F, x, lambd: F.hardshrink(x, lambd), kinks=lambda lambd: (-lambd, lambd))
def hardshrink(x, lambd=0.5):
    """x for |x| > lambd, else 0.  torch.nn.Hardshrink."""
    return where(absolute(x) <= lambd, 0.0, x)


@derivative_of(hardshrink)
def hardshrink_grad(x, lambd):
    return where(absolute(x) <= lambd, 0.0, 1.0)


@activation(
    oracle=lambda F, x, threshold, value: F.threshold(x, threshold, value),
    kinks=lambda threshold, value: (threshold,),
)
def threshold(x, threshold, value):
    """x for x > threshold, else value.  torch.nn.Threshold."""
    return where(x <= threshold, value, x)


@derivative_of(threshold)
def threshold_grad(x, threshold, value):
    return where(x <= threshold, 0.0, 1.0)


@activation(
    oracle=lambda F, x, mu, sigma: 0.5 * (1.0 + ((x - mu) / (sigma * 2.0**0.5)).erf()),
    requires=(lambda mu, sigma: sigma > 0.0, "sigma > 0"),
)
def laplace(x, mu=0.707107, sigma=0.282095):
    """½ (1 + erf((x - mu) / (sigma √2))) = Φ((x - mu) / sigma).  Ma et al. 2022 (MEGA), arXiv:2209.10655."""
    return normal_cdf((x - mu) * (1.0 / sigma))


@derivative_of(laplace)
def laplace_grad(x, mu, sigma):
    t = (x - mu) * (1.0 / sigma)
    return exp(-0.5 * t * t - 0.9189385332046727) * (1.0 / sigma)


def _xielu(F, x, alpha_p, alpha_n, beta, eps):
    p, n = (
        max(a, 0.0) + math.log1p(math.exp(-abs(a))) if isinstance(a, float) else F.softplus(a)
        for a in (alpha_p, alpha_n)
    )
    return (p * x * x + beta * x).where(x > 0, (x.clip(max=eps).expm1() - x) * (beta + n) + beta * x)


@activation(oracle=_xielu, kinks=lambda alpha_p, alpha_n, beta, eps: (eps, 0.0))
def xielu(x, alpha_p=0.2033823208110246, alpha_n=-1.0502256128148468, beta=0.5, eps=-1e-6):
    """a x² + beta x for x > 0, else (beta + a) (e^min(x, eps) - 1 - x) + beta x, where a = softplus(alpha_p) or softplus(alpha_n).

    The second case is computed as (beta + a) (e^min(x, eps) - 1) - a x, where nothing cancels far from 0. At -inf it is inf, where torch's
    composite gives NaN. alpha_p and alpha_n are floats or learnable tensors; by default a = 0.8 and beta + a = 0.8.  Huang & Schlag 2024,
    arXiv:2411.13010; transformers' XIELUActivation.
    """
    p = maximum(alpha_p, 0.0) + log1p(exp(-absolute(alpha_p)))
    n = maximum(alpha_n, 0.0) + log1p(exp(-absolute(alpha_n)))
    return where(x > 0.0, p * x * x + beta * x, (beta + n) * expm1(minimum(x, eps)) - n * x)


@derivative_of(xielu)
def xielu_grad(x, alpha_p, alpha_n, beta, eps):
    """Between eps and 0 the exponential is a constant, as in torch. At -inf the result is its limit; torch's composite gives NaN there."""
    p = maximum(alpha_p, 0.0) + log1p(exp(-absolute(alpha_p)))
    n = maximum(alpha_n, 0.0) + log1p(exp(-absolute(alpha_n)))
    e = where(x > eps, 0.0, 1.0 + expm1(minimum(x, eps)))
    return where(x > 0.0, 2.0 * p * x + beta, (beta + n) * e - n)


@derivative_of(xielu, "alpha_p")
def xielu_grad_alpha_p(x, alpha_p, alpha_n, beta, eps):
    return where(x > 0.0, sigmoid(alpha_p) * x * x, 0.0)


@derivative_of(xielu, "alpha_n")
def xielu_grad_alpha_n(x, alpha_p, alpha_n, beta, eps):
    return where(x > 0.0, 0.0, sigmoid(alpha_n) * (expm1(minimum(x, eps)) - x))


@pair(oracle=lambda F, a, b: a * b)
def bilinear(a, b):
    """a · b: the gated layer without an activation.  Shazeer 2020, arXiv:2002.05202."""
    return a * b


@derivative_of(bilinear, "a")
def bilinear_grad_a(a, b):
    return b


@derivative_of(bilinear, "b")
def bilinear_grad_b(a, b):
    return a


@pair(oracle=lambda F, a, b: a.maximum(b))
def maxout(a, b):
    """max(a, b): maxout of two pieces.  Goodfellow et al. 2013, arXiv:1302.4389. A tie shares the gradient, as torch.maximum does."""
    return maximum(a, b)


@derivative_of(maxout, "a")
def maxout_grad_a(a, b):
    return where(a < b, 0.0, where(a == b, 0.5, 1.0))


@derivative_of(maxout, "b")
def maxout_grad_b(a, b):
    return where(b < a, 0.0, where(a == b, 0.5, 1.0))


@pair(oracle=lambda F, a, b: a * F.sigmoid(b))
def glu_gate_last(a, b):
    """a · σ(b): torch.nn.GLU, whose second half is the gate. Our `glu` is σ(a) · b.  Dauphin et al. 2016, arXiv:1612.08083."""
    return a * sigmoid(b)


@derivative_of(glu_gate_last, "a")
def glu_gate_last_grad_a(a, b):
    return sigmoid(b)


@derivative_of(glu_gate_last, "b")
def glu_gate_last_grad_b(a, b):
    s = sigmoid(-absolute(b))
    return a * (s * (1.0 - s))
