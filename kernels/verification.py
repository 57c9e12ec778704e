"""The check that an activation is one function everywhere: its formula, its derivatives and its oracle against each other, in float64."""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .catalogue import ACTIVATIONS, Activation

TOLERANCE = 1e-6
"""The largest error that passes, relative to 1 + |expected|: formulas may have constants of seven digits."""

POINTS = np.random.default_rng(0).uniform(-8.0, 8.0, 200)
"""Where functions are compared. No kink of a reasonable activation is within a difference's step of one of them."""

STEPS = (1e-3, 1e-6)
"""The steps of differences: a second, short one for points beside a kink. For a parameter also as shares of its value, so that a small one,
such as the epsilon in a square root, keeps its sign.
"""

_STAND_INS = (0.75, 2.5, -0.75, 10.0, -10.0)
"""Values of a parameter that has no default: the first for which what it `requires` holds."""


class Claim(NamedTuple):
    """A comparison of two functions, at the point where they differ most, relative to 1 + |expected|."""

    what: str
    error: float
    at: dict[str, float]
    """The operands and parameters there."""
    got: float
    expected: float

    def __str__(self) -> str:
        point = ", ".join(f"{name} = {x:.6g}" for name, x in self.at.items())
        return f"{self.what}: {self.got:.9g}, expected {self.expected:.9g} at {point}"


class Report(NamedTuple):
    """What `check` found. It is true if every claim holds, so that a test can assert it."""

    activation: str
    claims: tuple[Claim, ...]

    @property
    def failed(self) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims if not claim.error <= TOLERANCE)

    def __bool__(self) -> bool:
        return not self.failed

    def __str__(self) -> str:
        lines = [f"{self.activation}: {'consistent' if self else 'inconsistent'}"]
        lines += [f"  {'ok   ' if claim.error <= TOLERANCE else 'WRONG'} {claim}" for claim in self.claims]
        return "\n".join(lines)

    def __repr__(self) -> str:  # which pytest shows of an assertion
        return str(self)


def check_first(name: str) -> None:
    """Check a user's activation before its first use: once without torch, and again when torch is there or a derivative has been given.
    ValueError where it is wrong.
    """
    act = ACTIVATIONS[name]
    state = "torch" in sys.modules, *act.derivatives.values(), *act.from_output
    if _checked.get(act) == state:
        return
    settings = _defaults(act)
    if act.requires and not settings:
        raise ValueError(f"{name} cannot be checked: give its parameters defaults for which {act.requires[1]} holds")
    _raise_unless(act, settings)
    _checked[act] = state
    _checked_values[act] = {*settings}


def check_values(name: str, values: tuple) -> None:
    """Check a user's activation for the numbers of a call, after check_first: against the oracle and torch's autograd, since at unusual
    values a difference quotient may be no measure. Only the first few of each activation, so that a schedule costs nothing.
    """
    act = ACTIVATIONS[name]
    known = _checked_values[act]
    if values in known or len(known) >= VALUES or "torch" not in sys.modules:
        return
    _raise_unless(act, [values], differences=False)
    known.add(values)


VALUES = 16
"""Combinations of an activation's parameters that are checked."""


def _raise_unless(act: Activation, settings: list[tuple[float, ...]], differences: bool = True) -> None:
    """ValueError where the report is false."""
    from concurrent.futures import ThreadPoolExecutor  # not for an import of the package, which it would slow

    with ThreadPoolExecutor(1) as pool:  # torch's modes, which may be on in this thread, are not in another
        report = pool.submit(report_of, act, settings, differences).result()
    if report:
        return
    wrong = "; ".join(map(str, report.failed))
    hint = ""
    if any(np.isnan([claim.got, claim.expected]).any() for claim in report.failed):
        hint = (
            " nan comes from a part that has no derivative there, also where the formula drops that part: "
            "in where(x > 0, sqrt(x), 0) write sqrt(where(x > 0, x, 1))."
        )
    raise ValueError(
        f"the activation {act.name!r} is inconsistent. {wrong}. Mend its formula, derivative or oracle; "
        f"print(epilogue.check({act.name!r})) shows every comparison.{hint}"
    )


_checked: dict[Activation, tuple] = {}
_checked_values: dict[Activation, set[tuple[float, ...]]] = {}
# As torch.compiler.assume_constant_result would set it, which imports the compiler: Dynamo calls the function as it traces.
check_first._dynamo_marked_constant = True  # type: ignore[attr-defined]


def numbers_of(act: Activation, values: tuple) -> tuple[float, ...]:
    """The parameters' values as numbers: an array's default stands for it."""
    defaults = [_STAND_INS[0] if isinstance(default, type) else float(default) for default in act.params.values()]
    return tuple(v if isinstance(v, float) else default for v, default in zip(values, defaults, strict=True))


def _defaults(act: Activation) -> list[tuple[float, ...]]:
    """The parameters' defaults, and values beside them: at its default a parameter may have no effect.

    Where one without a default must be another number than the usual one, it is searched for.
    """
    holds = act.requires[0] if act.requires else lambda *values: True
    choices = (_STAND_INS if isinstance(default, type) else (float(default),) for default in act.params.values())
    defaults = next((values for values in itertools.product(*choices) if holds(*values)), None)
    if defaults is None:
        return []
    beside = tuple(1.1 * value + 0.05 for value in defaults)
    return [values for values in dict.fromkeys((defaults, beside)) if holds(*values)]


def report_of(act: Activation, settings: list[tuple[float, ...]], differences: bool = True) -> Report:
    """The worst of each comparison over these values of the parameters, with or without difference quotients."""
    with np.errstate(all="ignore"):
        worst: dict[str, Claim] = {}
        for values in settings:
            for claim in _claims(act, values, differences):
                before = worst.setdefault(claim.what, claim)
                if not claim.error <= before.error:
                    worst[claim.what] = claim
    return Report(act.name, tuple(worst.values()))


def _claims(act: Activation, values: tuple[float, ...], differences: bool) -> Iterator[Claim]:
    operands = (POINTS, POINTS[::-1] * 0.6)[: act.arity]
    arguments = [*operands, *(np.full_like(POINTS, value) for value in values)]
    names = [*act.operands, *act.learnable]
    places = [[*act.operands, *act.params].index(name) for name in names]

    def claim(what: str, got: Any, *expected: Any, arguments: list[Any] = arguments) -> Claim:
        """got against the nearest of what is expected, each an array. Where that is not finite, nor need got be."""
        got, *wanted = (np.broadcast_to(found, POINTS.shape) for found in (got, *expected))
        distances = [np.where(np.isfinite(e), np.abs(got - e) / (1.0 + np.abs(e)), np.inf) for e in wanted]
        away = np.minimum.reduce(distances)
        error = np.where(np.isfinite(got) | np.isfinite(wanted[0]), np.nan_to_num(away, nan=np.inf, posinf=np.inf), 0.0)
        i = int(np.argmax(error))
        at = {name: float(argument[i]) for name, argument in zip((*act.operands, *act.params), arguments, strict=True)}
        nearest = wanted[int(np.argmin([distance[i] for distance in distances]))]
        return Claim(what, float(error[i]), at, float(got[i]), float(nearest[i]))

    y = act.value(*arguments)
    derivatives = [act.derivatives[name](*arguments) for name in names]
    for name, place, derivative in zip(names, places, derivatives, strict=True) if differences else ():
        small = [] if name in act.operands else [step * abs(arguments[place][0]) for step in STEPS]
        slopes = [_slope(act.value, arguments, place, step) for step in (*STEPS, *small)]
        yield claim(f"derivative by {name}, against central differences", derivative, *slopes)
    from_output = act.output_derivative(values)
    if from_output:
        kept = np.where(y > 0.0, 1.0, 0.0) if act.sign_suffices(values) else y
        yield claim("derivative written in y, against the one by x", from_output(kept, *arguments[1:]), derivatives[0])
    if "torch" in sys.modules:
        value, gradients = _on_torch(act, arguments, places)
        if act.own_oracle:
            yield claim("formula, against the oracle", y, value)
            zero = [*[np.zeros_like(POINTS)] * act.arity, *arguments[act.arity :]]
            at_zero = _on_torch(act, zero, places)[0]
            yield claim("formula at 0, against the oracle", act.value(*zero), at_zero, arguments=zero)
        for name, derivative, gradient in zip(names, derivatives, gradients, strict=True):
            yield claim(f"derivative by {name}, against torch's autograd", derivative, gradient)


def _slope(value: Callable, arguments: list, place: int, step: float) -> np.ndarray:
    """The difference quotient of fourth order by the argument at `place`."""

    def moved(by: float) -> Any:
        return value(*(argument + by if i == place else argument for i, argument in enumerate(arguments)))

    return (8.0 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12.0 * step)


def _on_torch(act: Activation, arguments: list, places: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(the oracle's values, its gradients by the arguments at `places`)."""
    import torch
    import torch.nn.functional as F

    given: list[Any] = [
        torch.tensor(argument, requires_grad=True) if i in places else float(argument[0])
        for i, argument in enumerate(arguments)
    ]
    # Copies, since an oracle may work in place, which a tensor that is given its gradient does not allow.
    y = act.oracle(F, *(value.clone() if isinstance(value, torch.Tensor) else value for value in given))
    by = [given[place] for place in places]
    gradients = torch.autograd.grad(y.sum(), by, allow_unused=True) if y.requires_grad else [None] * len(by)
    found = [np.zeros_like(POINTS) if g is None else g.numpy() for g in gradients]
    return y.detach().numpy(), found
