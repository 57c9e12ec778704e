"""Whether a fused module computes what the module does: tried on a copy in float64, in training and evaluation, with small and large
numbers.

The copy's weights are drawn anew, so that a layer initialised to zero hides nothing, and so are its dropouts' probabilities.
"""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .plain import is_linear

SCALES = (1.0, 50.0)
"""Of the inputs, and thus about of the pre-activations: where a module clamps, large numbers tell."""
TOLERANCE = 1e-9
"""Of float64 results relative to the largest: other orders of summation, and constants that a library rounds to ten digits."""


class Untried(Exception):
    """The module could not be called alone; the message says why."""


class Trial:
    """A module's copy and what it computes."""

    def __init__(self, module: nn.Module, features: int, block: bool = False, small: bool = False) -> None:
        """features: of the inputs to try, [..., features]. block: they are all that may be given to it. small: the linear layers get fewer
        features, in proportion, which a module that knows its sizes by heart does not survive. Untried where it cannot be called."""
        sizes = _small_sizes(module) if small else {}
        self.module = _copied(module, sizes)
        self.device = next(self.module.parameters()).device
        self.arguments = self._arguments(sizes.get(features, features), block)
        self.expected = self.results()

    def results(self) -> list[list[Tensor]]:
        return [_outputs(self.module, args, scale, training, self.device) for training, scale, args in self._settings()]

    def _settings(self) -> Iterator[tuple[bool, float, list[Any]]]:
        for training in (False, True):
            for scale in SCALES:
                yield training, scale, self.arguments

    def error(self, change: Callable[[nn.Module], Callable[[], None]]) -> float:
        """The largest relative difference that a change makes, which returns what takes it back; inf where the module then cannot run."""
        undo = change(self.module)
        try:
            worst = 0.0
            for (training, scale, args), expected in zip(self._settings(), self.expected, strict=True):
                actual = _outputs(self.module, args, scale, training, self.device)
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

    def _arguments(self, features: int, block: bool) -> list[Any]:
        """The first form of input that the module takes: x of three, two or four axes, and for what else it asks for None, or x again."""
        parameters = inspect.signature(self.module.forward).parameters.values()
        asked = sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        if block and asked != 1:
            raise Untried(f"its forward takes {asked} arguments, not hidden states alone")
        first_error = None
        for others in (None, "x")[: 1 if asked < 2 else 2]:
            for shape in ((2, 3, features), (3, features), (1, 3, 3, features)):
                x = torch.randn(
                    shape,
                    generator=torch.Generator(self.device).manual_seed(1),
                    dtype=torch.float64,
                    device=self.device,
                )
                args = [x, *([x if others else None] * max(0, asked - 1))]
                try:
                    _outputs(self.module, args, 1.0, False, self.device)
                except Exception as error:  # as above
                    first_error = first_error or error
                else:
                    return args
        message = str(first_error).strip().splitlines()
        raise Untried(
            f"it does not take hidden states alone: {type(first_error).__name__}: {message[0] if message else ''}"
        )


def _small_sizes(module: nn.Module) -> dict[int, int]:
    """Number of features -> a small one, for all of the module's linear layers; what was twice another stays so."""
    found: dict[int, int] = {}
    fresh = itertools.count(10, 2)
    layers = [child for child in module.children() if is_linear(child)]
    for size in sorted({size for layer in layers for size in layer.weight.shape}):  # type: ignore[union-attr]
        half = found.get(size // 2) if size % 2 == 0 else None
        found[size] = next(n for n in fresh if n not in found.values()) if half is None else 2 * half
    return found


def _copied(module: nn.Module, sizes: dict[int, int]) -> nn.Module:
    memo: dict[int, Any] = {}
    for child in module.children() if sizes else ():
        if is_linear(child):
            for parameter in child.parameters(recurse=False):
                memo[id(parameter)] = nn.Parameter(torch.empty([sizes[size] for size in parameter.shape], device="cpu"))
    try:
        other = copy.deepcopy(module, memo)
    except Exception as error:  # whatever a user's object raises
        raise Untried(f"it cannot be copied: {error}") from error
    devices = {parameter.device for parameter in other.parameters()}
    device = torch.device("cpu") if sizes or len(devices) > 1 or torch.device("meta") in devices else devices.pop()
    generator = torch.Generator(device).manual_seed(0)
    probabilities = itertools.cycle((0.5, 0.3, 0.4, 0.2))  # different ones, which tells the places apart
    for child in other.modules():
        for tensors in (child._parameters, child._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = _drawn(tensor, device, generator)  # type: ignore[assignment]
        if type(child) is nn.Dropout:
            child.p = next(probabilities)
        child.__dict__.pop("forward", None)
        for hooks in (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks, child._backward_pre_hooks):
            hooks.clear()  # a user's, who expects them to be called in a user's calls
    return other


def _drawn(tensor: Tensor, device: torch.device, generator: torch.Generator) -> Tensor:
    """Of the same shape, float64; matrices keep the scale of what they multiply, vectors are about 1."""
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    shape = tensor.shape
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64, device=device).sub_(0.5).mul_(3.4)  # variance 1
    drawn = drawn / shape[-1] ** 0.5 if tensor.ndim > 1 else 1.0 + drawn / 4
    return nn.Parameter(drawn, requires_grad=False) if isinstance(tensor, nn.Parameter) else drawn


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
    """Relative to the largest value; nan where one of them is."""
    if not expected.numel():
        return 0.0
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


def calls(trial: Trial, layers: list[str], acts: list[str]) -> list[tuple[str, str]]:
    """(layer, activation) wherever in a call of the copy the activation gets the very tensor that the layer returned, each called once."""
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
        if len(outputs) == len(inputs) == 1 and outputs[0] is inputs[0]
    ]
