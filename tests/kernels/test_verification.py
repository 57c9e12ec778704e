"""An activation that is one thing on a CPU and another on a GPU does not pass its first use."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import epilogue
from checks import cases
from epilogue import nn, verification
from epilogue.verification import report_of
from epilogue.vocabulary import exp, log, maximum, sigmoid, sin, sqrt, tanh, where

pytestmark = pytest.mark.usefixtures("own_activations")

X, WEIGHT = torch.ones(2, 3), torch.ones(4, 3)


@pytest.fixture
def quick():
    """The issue's own: formula x·σ(1.702x), oracle x·σ(x)."""

    @epilogue.activation(oracle=lambda F, x: x * torch.sigmoid(x))
    def quick(x):
        return x * sigmoid(1.702 * x)

    return quick


USES = {
    "linear": lambda: epilogue.linear(X, WEIGHT, activation="quick"),
    "glu": lambda: epilogue.glu(X, WEIGHT, activation="gated_quick"),
    "NumPy": lambda: epilogue.linear(X.numpy(), WEIGHT.numpy(), activation="quick"),
    "backward": lambda: epilogue.linear_backward(np.ones((2, 4)), np.ones((2, 3)), np.ones((4, 3)), activation="quick"),
    "module": lambda: nn.FusedLinear(3, 4, activation="quick"),
    "gated module": lambda: nn.FusedGatedMLP(3, 4, activation="quick"),
    "explain": lambda: epilogue.explain("linear", 8, 8, 8, activation="quick", gpu="H100"),
    "compiled": lambda: compiled(USES["linear"]),
    "make_fx": lambda: make_fx(lambda x: epilogue.linear(x, WEIGHT, activation="quick"))(X),
    "vmap": lambda: torch.vmap(lambda x: epilogue.linear(x, WEIGHT, activation="quick"))(X[None]),
    "inference mode": torch.inference_mode(lambda: epilogue.linear(X, WEIGHT, activation="quick")),
    "default device": lambda: on_meta(lambda: epilogue.linear(X, WEIGHT, activation="quick")),
}


def compiled(call):
    torch._dynamo.reset()  # what other tests compiled of the same code counts, too
    return torch.compile(call, fullgraph=True, backend="eager")()


def on_meta(call):
    with torch.device("meta"):
        return call()


@pytest.mark.parametrize("use", USES)
def test_a_wrong_oracle_raises_wherever_it_is_first_used(use, quick):
    """And again at the next use: an error that is caught once does not make it right."""
    for _ in range(2):
        with pytest.raises(
            Exception,
            match=r"(?s)'quick' is inconsistent. formula, against the oracle: -?0\.\d+, expected",
        ):
            USES[use]()


@pytest.mark.parametrize("use", USES)
def test_a_right_one_passes_wherever_it_is_first_used(use):
    @epilogue.activation(oracle=lambda F, x: x * torch.sigmoid(1.702 * x))
    def quick(x):
        return x * sigmoid(1.702 * x)

    USES[use]()
    assert quick in verification._checked


def test_it_is_checked_once():
    calls = []

    @epilogue.activation(oracle=lambda F, x: calls.append(1) or x.tanh())
    def counted(x):
        return tanh(x)

    epilogue.linear(X, WEIGHT, activation=counted)
    of_check = len(calls) - 1
    epilogue.linear(X, WEIGHT, activation=counted)
    epilogue.glu(X, WEIGHT, activation=counted)
    assert (of_check, len(calls)) == (2, 5)


def wrong_derivative(entry, *wrt, **how):
    @epilogue.derivative_of(entry, *wrt, **how)
    def wrong(x, scale):
        return 0.5 * x

    return entry


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda entry: wrong_derivative(entry), "derivative by x, against central differences"),
        (lambda entry: wrong_derivative(entry, "scale"), "derivative by scale, against central differences"),
        (lambda entry: wrong_derivative(entry, output=True), "derivative written in y, against the one by x"),
    ],
)
@pytest.mark.parametrize("oracle", [None, lambda F, x, scale: torch.tanh(x * scale)])
def test_a_wrong_derivative_raises(spoil, says, oracle):
    @epilogue.activation(oracle=oracle)
    def scaled(x, scale=2.0):
        return tanh(scale * x)

    assert epilogue.check(scaled)
    spoil(scaled)
    assert says in {claim.what for claim in epilogue.check(scaled).failed}
    with pytest.raises(ValueError, match=says):
        epilogue.linear(X.numpy(), WEIGHT.numpy(), activation="scaled")


@pytest.mark.parametrize("output", [False, True])
def test_a_derivative_that_is_given_after_the_first_use_is_checked_too(output):
    """And the right one in its place is taken, as where a notebook's cell runs again."""

    @epilogue.activation
    def late(x):
        return tanh(2.0 * x)

    epilogue.linear(X, WEIGHT, activation="late")

    @epilogue.derivative_of(late, output=output)
    def wrong(x):
        return 1.0 - x * x

    with pytest.raises(ValueError, match="derivative"):
        epilogue.linear(X, WEIGHT, activation="late")

    @epilogue.derivative_of(late, output=output)
    def right(x):
        y = x if output else tanh(2.0 * x)
        return 2.0 * (1.0 - y * y)

    epilogue.linear(X, WEIGHT, activation="late")


def test_a_parameter_is_moved_from_its_default():
    """At beta = 1 the two are the same."""

    @epilogue.activation(oracle=lambda F, x, beta: x * torch.sigmoid(beta * x))
    def forgot(x, beta=1.0):
        return x * sigmoid(x)

    with pytest.raises(ValueError, match="formula, against the oracle"):
        epilogue.linear(X, WEIGHT, activation="forgot")
    assert epilogue.check(forgot)
    assert not epilogue.check(forgot, beta=2.0)


def test_the_values_of_a_call_are_checked():
    """Up to a slope of 1 this derivative is right."""

    @epilogue.activation
    def peak(x, slope=0.2):
        return maximum(x, slope * x)

    @epilogue.derivative_of(peak)
    def by_x(x, slope):
        return where(x > 0.0, 1.0, slope)

    epilogue.linear(X, WEIGHT, activation="peak", slope=0.5)
    for use in (
        lambda: epilogue.linear(X, WEIGHT, activation="peak", slope=2.0),
        lambda: nn.FusedGLU(3, 4, activation="peak", slope=2.0),
        lambda: epilogue.linear(X.numpy(), WEIGHT.numpy(), activation="peak", slope=2.0),
    ):
        with pytest.raises(
            ValueError, match=r"'peak' is inconsistent\. derivative by x, against torch's autograd.*slope = 2"
        ):
            use()


def test_values_are_checked_without_quotients_and_a_few_times_alone(monkeypatch):
    """A schedule costs nothing, and a steep function, for which no step is small enough, is not refused."""
    reports = []
    monkeypatch.setattr(verification, "report_of", lambda *args: reports.append(args) or report_of(*args))

    @epilogue.activation
    def wave(x, pitch=1.0):
        return sin(pitch * x)

    for step in range(40):
        epilogue.linear(X, WEIGHT, activation="wave", pitch=1e6 + step)
    assert len(reports) == 1 + verification.VALUES - 2  # the default and the value beside it come first
    layer = nn.FusedLinear(3, 4, activation="wave", pitch=3.0)
    compiled(lambda: layer(X))


def test_a_parameter_keeps_to_what_it_requires():
    @epilogue.activation(
        oracle=lambda F, x, p: x * torch.tanh(torch.tensor(p)), requires=(lambda p: p <= 1.0, "p <= 1")
    )
    def bounded(x, p=1.0):
        return where(p > 1.0, 7.0, x * tanh(p))

    epilogue.linear(X, WEIGHT, activation="bounded")


def test_a_parameter_without_a_default_is_given_one_that_holds():
    @epilogue.activation(requires=(lambda p: p > 1.0, "p > 1"))
    def steep(x, p):
        return tanh(p * x)

    wrong_derivative(steep)
    with pytest.raises(ValueError, match="derivative by x, against central differences"):
        epilogue.linear(X, WEIGHT, activation="steep", p=2.0)


def test_what_cannot_be_checked_is_refused():
    @epilogue.activation(requires=(lambda p: p > 99.0, "p > 99"))
    def steepest(x, p):
        return tanh(p * x)

    with pytest.raises(ValueError, match="steepest cannot be checked: give its parameters defaults for which p > 99"):
        epilogue.linear(X, WEIGHT, activation="steepest", p=100.0)


@pytest.mark.parametrize("eps", [1e-5, 1e-8, 1e-12])
def test_a_small_parameter_keeps_its_sign(eps):
    """A step of 1e-3 or 1e-6 would take the root, or the logarithm, of a negative number."""

    @epilogue.activation
    def rooted(x, eps=eps):
        return sqrt(maximum(x, 0.0) + eps) + log(maximum(x, eps))

    assert epilogue.check(rooted)


def test_torchs_gradient_must_be_the_derivative():
    """Of the branch that `where` does not take, autograd multiplies an infinite slope by 0; a kernel does not compute it."""

    @epilogue.activation
    def root(x):
        return where(x > 0.0, sqrt(x), 0.0)

    with pytest.raises(ValueError, match="derivative by x, against torch's autograd: 0, expected nan"):
        epilogue.linear(X, WEIGHT, activation="root")


@pytest.mark.parametrize("sign", [False, True])
def test_a_derivative_from_the_sign_of_y_is_given_that_alone(sign):
    @epilogue.activation
    def square(x):
        return where(x > 0.0, x * x, 0.0)

    @epilogue.derivative_of(square, output=True, sign=sign)
    def square_grad(y):
        return 2.0 * sqrt(y)

    assert bool(epilogue.check(square)) == (not sign)


def test_nan_from_a_dropped_part_is_explained():
    """Autograd multiplies its infinite derivative by 0."""

    @epilogue.activation
    def root(x):
        return where(x > 0.0, sqrt(x), 0.0)

    with pytest.raises(ValueError, match=r"nan comes from .*write sqrt\(where\(x > 0, x, 1\)\)"):
        epilogue.linear(X, WEIGHT, activation="root")

    @epilogue.activation
    def safe_root(x):
        return where(x > 0.0, sqrt(where(x > 0.0, x, 1.0)), 0.0)

    epilogue.linear(X, WEIGHT, activation="safe_root")


def test_an_oracle_may_work_in_place():
    @epilogue.activation(oracle=lambda F, x: F.relu_(x))
    def cut(x):
        return maximum(x, 0.0)

    epilogue.linear(X, WEIGHT, activation="cut")


def test_what_passes_is_shown_beside_what_it_passes_for():
    """The step that crosses the jump at 0 gives another number; the report shows that of the short one."""

    @epilogue.activation
    def jumps(x):
        return where(x > 0.0, x, 1.0) + tanh(x)

    (claim, *_) = epilogue.check(jumps).claims
    assert claim.got == pytest.approx(claim.expected, abs=1e-6)


def test_at_0_the_formula_is_the_oracle():
    """Where no random point is, and padding is."""

    @epilogue.activation(oracle=lambda F, x: torch.sinc(x / torch.pi))
    def sinc(x):
        return sin(x) / x

    with pytest.raises(ValueError, match="formula at 0, against the oracle: nan, expected 1 at x = 0"):
        epilogue.linear(X, WEIGHT, activation="sinc")


def test_a_kink_that_nobody_declared_is_none():
    """Wherever it lies."""
    rng = np.random.default_rng(1)
    for bend in rng.uniform(-7.0, 7.0, 40):

        def bent(x, bend=float(bend)):
            return where(x > bend, 2.0 * x, x + bend)

        bent.__name__ = f"bent_{bend:.6f}".replace(".", "_").replace("-", "m")
        assert epilogue.check(epilogue.activation(bent))


def test_a_function_of_positive_numbers_alone_passes():
    @epilogue.activation
    def root_of(x):
        return sqrt(x)

    assert epilogue.check(root_of)


@pytest.mark.parametrize(("entry", "values"), cases())
def test_the_catalogue_passes(entry, values):
    report = epilogue.check(entry, **dict(zip(entry.params, values, strict=True)))
    assert report
    kinds = [claim.what for claim in report.claims]
    assert len(kinds) == len(set(kinds)) >= 1 + 2 * entry.arity


def test_the_report():
    report = epilogue.check(torch.nn.GELU("tanh"))
    assert bool(report) is True
    assert (report.activation, report.failed) == ("gelu_tanh", ())
    assert [claim.what for claim in report.claims] == [
        "derivative by x, against central differences",
        "formula, against the oracle",
        "formula at 0, against the oracle",
        "derivative by x, against torch's autograd",
    ]
    assert str(report).startswith("gelu_tanh: consistent\n  ok    derivative by x, against central")
    with pytest.raises(ValueError, match="unknown activation 'gleu'"):
        epilogue.check("gleu")
    with pytest.raises(TypeError, match="gelu"):
        epilogue.check("gelu", slope=0.5)


def test_a_failing_report_shows_where(quick):
    report = epilogue.check("quick")
    assert bool(report) is False
    worst = report.failed[0]
    assert worst.what == "formula, against the oracle"
    x = worst.at["x"]
    assert worst.got == pytest.approx(x / (1.0 + np.exp(-1.702 * x)))
    assert worst.expected == pytest.approx(x / (1.0 + np.exp(-x)))
    assert repr(report).startswith("quick: inconsistent\n")
    assert "  WRONG formula, against the oracle: " in repr(report)


def test_without_torch_the_derivative_is_checked_and_torch_is_not_imported(tmp_path):
    """What torch's oracle says is checked as soon as torch is there."""
    code = """
        import sys
        import numpy as np
        import epilogue
        from epilogue.vocabulary import tanh

        @epilogue.activation(oracle=lambda F, x: F.tanh(x))
        def own(x):
            return 2.0 * tanh(x)

        x = np.ones((2, 3))
        epilogue.linear(x, x, activation="own")
        assert "torch" not in sys.modules
        epilogue.derivative_of(own)(lambda x: x)
        assert not epilogue.check("own")
        assert "torch" not in sys.modules
        import torch
        try:
            epilogue.linear(torch.ones(2, 3), torch.ones(2, 3), activation="own")
        except ValueError as error:
            assert "formula, against the oracle" in str(error)
        else:
            raise AssertionError
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_formula_of_two():
    @epilogue.pair
    def soft_or(a, b, sharpness=1.0):
        return (a * exp(sharpness * a) + b * exp(sharpness * b)) / (exp(sharpness * a) + exp(sharpness * b))

    assert epilogue.check(soft_or)
    args = X.requires_grad_(), WEIGHT
    y = epilogue.glu(*args, activation="soft_or")
    torch.testing.assert_close(y, X @ WEIGHT[:2].T)
