"""Whether a fused module computes what the module does: tried on a copy in float64, in training and evaluation, with small and large
numbers.

The copy's weights are drawn anew, so that a layer initialised to zero hides nothing, and so are its dropouts' probabilities.
"""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .plain import is_linear

SETTINGS = tuple(itertools.product((False, True), (1.0, 50.0)))
"""(training, scale of the inputs, and thus about of the pre-activations): where a module clamps, large numbers tell."""
TOLERANCE = 1e-9
"""Of float64 results relative to the largest: other orders of summation, and constants that a library rounds to ten digits."""


class Untried(Exception):
    """The module could not be called alone; the message says why."""


class Trial:
    """A module's copy and what it computes."""

    def __init__(
        self, module: nn.Module, widths: Iterable[int], *, block: bool = False, small: bool = False, stubs: int = 0, meta: bool = False
    ) -> None:  # fmt: skip
        """widths: of the inputs to try, [..., width]. block: they are all that may be given to it. small: the linear layers get fewer
        features, in proportion, which a module that knows its sizes by heart does not survive. stubs: children that have children (an
        attention) only hand on their input, in a tuple of that length where it is more than 1. meta: without numbers.
        Untried where it cannot be called."""
        sizes = _small_sizes(module) if small else {}
        self.device = _device(module, sizes, meta)
        self.module = _copied(module, sizes, self.device)
        if stubs:
            _stub(self.module, stubs)
        self.arguments = self._arguments([sizes.get(width, width) for width in widths], block)

    @functools.cached_property
    def expected(self) -> list[list[Tensor]]:
        """What the module computes; Untried where it cannot in training, say, or with large numbers."""
        try:
            return [self._results(*setting) for setting in SETTINGS]
        except Exception as error:  # as in _arguments
            raise Untried(f"it cannot be called: {type(error).__name__}: {error}") from error

    def _results(self, training: bool, scale: float) -> list[Tensor]:
        return _outputs(self.module, self.arguments, scale, training, self.device)

    def error(self, change: Callable[[nn.Module], Callable[[], None]]) -> float:
        """The largest relative difference that a change makes, which returns what takes it back; inf where the module then cannot run."""
        wanted, worst = self.expected, 0.0
        undo = change(self.module)
        try:
            for setting, expected in zip(SETTINGS, wanted, strict=True):
                actual = self._results(*setting)
                if [t.shape for t in actual] != [t.shape for t in expected]:
                    return float("inf")
                worst = max([worst, *(_difference(a, b) for a, b in zip(actual, expected, strict=True))])
                if not worst <= TOLERANCE:
                    return worst
        except Exception:  # a wrong guess may fail in any way
            return float("inf")
        finally:
            undo()
        return worst

    def _arguments(self, widths: list[int], block: bool) -> list[Any]:
        """The first form of input that the module takes: x of three, two or four axes, images with the channels first among them, and for
        what else it asks for None, or x again."""
        parameters = inspect.signature(self.module.forward).parameters.values()
        asked = sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        if block and asked != 1:
            raise Untried(f"its forward takes {asked} arguments, not hidden states alone")
        # A block must take rows of features in any number; what takes images alone may turn their axes.
        first_error: Exception | None = None
        for n, again in itertools.product(widths, (False, True)[: 1 + (asked > 1)]):
            for shape in ((2, 4, n), (8, n), (1, 4, 4, n), (1, n, 4, 4))[: 2 if block else 4]:
                x = _random(shape, self.device, _generator(self.device, 1))
                args = [x, *([x if again else None] * max(0, asked - 1))]
                try:
                    _outputs(self.module, args, 1.0, False, self.device)
                except Exception as error:  # as above
                    first_error = first_error or error
                else:
                    return args
        message = str(first_error).strip().partition("\n")[0]
        raise Untried(f"it does not take hidden states alone: {type(first_error).__name__}: {message}")


class Stub(nn.Module):
    """In place of a child that matters not: hands on the first tensor that it is given."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return x if self.length == 1 else (x, *[None] * (self.length - 1))


def _stub(module: nn.Module, length: int) -> None:
    for name, child in module.named_children():
        if next(child.children(), None) is not None:
            module._modules[name] = Stub(length)


def _small_sizes(module: nn.Module) -> dict[int, int]:
    """Number of features -> a small one, for all of the module's linear layers; what was twice another stays so."""
    found: dict[int, int] = {}
    fresh = itertools.count(10, 2)
    layers = [child for child in module.children() if is_linear(child)]
    for size in sorted({size for layer in layers for size in layer.weight.shape}):  # type: ignore[union-attr]
        half = found.get(size // 2) if size % 2 == 0 else None
        found[size] = next(n for n in fresh if n not in found.values()) if half is None else 2 * half
    return found


def _device(module: nn.Module, sizes: dict[int, int], meta: bool) -> torch.device:
    """Where to try: where the module is, on the CPU if that is nowhere, or if its layers are small."""
    found = {parameter.device for parameter in module.parameters()}
    if meta:
        return torch.device("meta")
    return torch.device("cpu") if sizes or len(found) != 1 or torch.device("meta") in found else found.pop()


def _copied(module: nn.Module, sizes: dict[int, int], device: torch.device) -> nn.Module:
    small = (
        {id(parameter) for child in module.children() if is_linear(child) for parameter in child.parameters()}
        if sizes
        else set()
    )
    generator, memo = _generator(device, 0), {}
    for child in module.modules():
        for tensor in (*child.parameters(recurse=False), *child.buffers(recurse=False)):
            shape = [sizes[size] for size in tensor.shape] if id(tensor) in small else tensor.shape
            memo[id(tensor)] = _drawn(tensor, shape, device, generator)
    try:
        other = copy.deepcopy(module, memo)
    except Exception as error:  # whatever a user's object raises
        raise Untried(f"it cannot be copied: {error}") from error
    probabilities = itertools.cycle((0.5, 0.3, 0.4, 0.2))  # different ones, which tells the places apart
    for child in other.modules():
        if type(child) is nn.Dropout:
            child.p = next(probabilities)
        child.__dict__.pop("forward", None)
        for hooks in (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks, child._backward_pre_hooks):
            hooks.clear()  # a user's, who expects them to be called in a user's calls
    return other


def _drawn(tensor: Tensor, shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """In the place of the tensor; matrices keep the scale of what they multiply, vectors are about 1."""
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device, copy=True)
    drawn = _random(shape, device, generator)
    drawn = drawn / shape[-1] ** 0.5 if len(shape) > 1 else 1.0 + drawn / 4
    return nn.Parameter(drawn, requires_grad=False) if isinstance(tensor, nn.Parameter) else drawn


def _generator(device: torch.device, seed: int) -> torch.Generator | None:
    return None if device.type == "meta" else torch.Generator(device).manual_seed(seed)


def _random(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """float64 of variance 1; uniform, which is quick."""
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=device).sub_(0.5).mul_(3.4)


def _outputs(module: nn.Module, args: list[Any], scale: float, training: bool, device: torch.device) -> list[Tensor]:
    module.train(training)
    scaled = [arg * scale if isinstance(arg, Tensor) else arg for arg in args]
    with torch.no_grad(), _seeded(device):
        found = module(*scaled)
    tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError("no tensor comes back")
    return tensors


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Dropouts draw the same, and the user's generators are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Relative to the largest finite value; inf where one of them alone is not finite."""
    actual, expected = actual.double(), expected.double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if same.all():
        return 0.0
    off = torch.where(same, 0.0, actual - expected).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return (off.max() / expected.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp_min(1e-300)).item()


def calls(trial: Trial, layers: list[str], acts: list[str]) -> list[tuple[str, str]]:
    """(layer, activation) wherever in a call of the copy the activation gets the very tensor that the layer returned."""
    module = trial.module
    made: dict[str, list[Any]] = {name: [] for name in layers}
    given: dict[str, list[Any]] = {name: [] for name in acts}
    handles, functions = [], {}

    def returned(name: str, _module: nn.Module, _args: Any, y: Any) -> None:
        made[name].append(y)

    def called(name: str, _module: nn.Module, args: tuple) -> None:
        given[name].append(args[0] if args else None)

    def seen(name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        called(name, module, args)
        return function(*args, **kwargs)

    for name in layers:
        handles.append(module.get_submodule(name).register_forward_hook(functools.partial(returned, name)))
    for name in acts:
        held = getattr(module, name)
        if isinstance(held, nn.Module):
            handles.append(held.register_forward_pre_hook(functools.partial(called, name)))
        else:
            functions[name] = held
            module.__dict__[name] = functools.partial(seen, name, held)
    try:
        _outputs(module, trial.arguments, 1.0, False, trial.device)
    finally:
        for handle in handles:
            handle.remove()
        module.__dict__.update(functions)
    return [
        (layer, act)
        for layer, outputs in made.items()
        for act, inputs in given.items()
        if any(x is y for x in inputs for y in outputs)
    ]
