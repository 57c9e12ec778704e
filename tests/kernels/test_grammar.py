"""Formulas keep to the subset of Python that Triton takes as it is and that is already valid C when printed."""

import ast
import inspect
from collections import Counter

import pytest

from epilogue import ACTIVATIONS
from epilogue.approximations import APPROXIMATIONS, FAST
from epilogue.vocabulary import NUMPY, PRIMITIVES

FORMULAS = [
    formula
    for entry in ACTIVATIONS.values()
    for formula in (entry.value, *entry.derivatives.values(), *(formula for formula, *_ in entry.from_output))
]

FAST_FORMS = sorted({form for forms in FAST.values() for form in forms.values()}, key=lambda form: form.__name__)
CALLED = {*PRIMITIVES, *APPROXIMATIONS}


def check(source: str) -> None:
    """AssertionError where the function's source leaves the grammar."""
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.FunctionDef)
    args = tree.args
    assert not any((args.posonlyargs, args.kwonlyargs, args.vararg, args.kwarg)), "plain arguments alone"
    known = {arg.arg for arg in args.args}
    assert not known & CALLED, "an argument hides a primitive"
    body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    *assignments, last = body
    for statement in assignments:
        assert isinstance(statement, ast.Assign), ast.dump(statement)
        (target,) = statement.targets
        assert isinstance(target, ast.Name), ast.dump(target)
        check_expression(statement.value, known)
        assert target.id not in known | CALLED, f"{target.id} has a value already"
        known.add(target.id)
    assert isinstance(last, ast.Return), "the last statement returns"
    check_expression(last.value, known)


def check_expression(node: ast.expr | None, known: set[str]) -> None:
    match node:
        case ast.Name(id=name):
            assert name in known, f"{name} is neither an argument nor assigned above"
        case ast.Constant(value=value):
            assert type(value) is float, f"{value!r} is no float"
        case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right):
            check_expression(left, known)
            check_expression(right, known)
        case ast.UnaryOp(ast.USub(), operand):
            check_expression(operand, known)
        case ast.Call(ast.Name("where"), [ast.Compare(left, [_], [right]), yes, no], []):
            for operand in (left, right, yes, no):
                check_expression(operand, known)
        case ast.Call(ast.Name(name), operands, []):
            assert name in CALLED and name != "where", f"{name} is no primitive of values"  # noqa: PT018
            for operand in operands:
                check_expression(operand, known)
        case _:
            raise AssertionError(f"not in the grammar: {ast.dump(node) if node else node}")


@pytest.mark.parametrize("formula", [*FORMULAS, *FAST_FORMS], ids=lambda formula: formula.__name__)
def test_formula_keeps_to_the_grammar(formula):
    source = inspect.getsource(formula)
    check(source[source.index("def ") :])


@pytest.mark.parametrize(
    "body",
    [
        "return x ** 2.0",
        "return 2 * x",
        "return x if x > 0.0 else 0.0",
        "return where(x > 0.0 and x < 1.0, x, 0.0)",
        "return where(not x, x, 0.0)",
        "return where(0.0 < x < 1.0, x, 0.0)",
        "return where(x, 1.0, 0.0)",
        "return np.tanh(x)",
        "return erf(x)",
        "return sigmoid(x=x)",
        "return +x",
        "return x % 2.0",
        "return x, x",
        "return slope * x",
        "return True",
        "for i in x: pass\n    return x",
        "y, z = x, x\n    return y",
        "y = x\n    y += 1.0\n    return y",
        "x = 2.0 * x\n    return x",
        "tanh = x\n    return tanh",
        "y: float = x\n    return y",
        "y = x",
    ],
)
def test_the_grammar_refuses(body):
    with pytest.raises(AssertionError):
        check(f"def formula(x):\n    {body}\n")


def test_formulas_have_unique_names():
    """Triton merges device functions of one module and name: the second would silently be the first."""
    assert [
        name for name, count in Counter(formula.__name__ for formula in (*FORMULAS, *FAST_FORMS)).items() if count > 1
    ] == []


@pytest.mark.parametrize("entry", ACTIVATIONS.values(), ids=repr)
def test_record_is_complete(entry):
    takes = [*entry.operands, *entry.params]
    assert list(inspect.signature(entry.value).parameters) == takes
    assert set(entry.operands) <= set(entry.derivatives) <= set(takes)
    for formula in entry.derivatives.values():
        assert list(inspect.signature(formula).parameters) == takes
    for formula, *_ in entry.from_output:
        assert list(inspect.signature(formula).parameters) == ["y", *entry.params]
    assert inspect.getdoc(entry.value), "the formula and its source"


def test_the_vocabulary_is_complete():
    assert set(NUMPY) == set(PRIMITIVES)
    used = {name for formula in FORMULAS for name in formula.__code__.co_names}
    assert used <= set(PRIMITIVES)
    assert all(callable(primitive) for primitive in NUMPY.values())
    assert all(form.__code__.co_names and {*form.__code__.co_names} <= CALLED for form in FAST_FORMS)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_formula_computes_with_numpy_as_imported(formula):
    assert all(formula.__globals__[name] is NUMPY[name] for name in formula.__code__.co_names)
