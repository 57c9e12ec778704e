"""Questions about syntax trees, and changed copies of them."""

import ast
from collections.abc import Mapping
from typing import Any

INPUT = "_epilogue_input"
"""The site's input, in place of a name whose dtype a condition asks for."""


def names(node: ast.AST) -> list[ast.Name]:
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]


def stored(statement: ast.AST) -> set[str]:
    """Return the names that a statement may bind or unbind."""
    found = {node.id for node in names(statement) if not isinstance(node.ctx, ast.Load)}
    for node in ast.walk(statement):
        match node:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                found.add(name)
            case ast.Import(aliases) | ast.ImportFrom(_, aliases):
                found |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
            case (
                ast.ExceptHandler(_, str(name))
                | ast.MatchAs(_, str(name))
                | ast.MatchStar(str(name))
                | ast.MatchMapping(_, _, str(name))
            ):
                found.add(name)
    return found


def loads(statement: ast.AST) -> list[ast.Name]:
    """Return the names that a statement reads, that of `name += …` among them."""
    augmented = {id(node.target) for node in ast.walk(statement) if isinstance(node, ast.AugAssign)}
    return [node for node in names(statement) if not isinstance(node.ctx, ast.Store) or id(node) in augmented]


def pure(node: ast.AST) -> bool:
    """Return whether the expression only looks something up: names, attributes, items by a constant or a name, numbers."""
    match node:
        case ast.Name() | ast.Constant():
            return True
        case ast.Attribute(value):
            return pure(value)
        case ast.Subscript(value, ast.Constant() | ast.Name()):
            return pure(value)
        case ast.UnaryOp(ast.USub(), ast.Constant()):
            return True
    return False


def asks(test: ast.expr, name: str) -> bool:
    """Return whether a condition reads only the dtype of a name, if it reads that name at all, and changes nothing."""
    dtypes = [node for node in ast.walk(test) if isinstance(node, ast.Attribute) and node.attr == "dtype"]
    allowed = sum(isinstance(node.value, ast.Name) and node.value.id == name for node in dtypes)
    called = [node.func for node in ast.walk(test) if isinstance(node, ast.Call)]
    odd = (ast.NamedExpr, ast.Await, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    return (
        sum(node.id == name for node in names(test)) == allowed
        and all(isinstance(callee, ast.Name) and callee.id == "isinstance" for callee in called)
        and not any(isinstance(node, odd) for node in ast.walk(test))
    )


def arguments(call: ast.Call) -> tuple[Any, list[ast.expr], list[ast.keyword]]:
    """Return (the input or None, the other arguments, the other keywords) of a call; the input may be given as `input=`."""
    if any(isinstance(arg, ast.Starred) for arg in call.args):
        return None, [], call.keywords
    if call.args:
        return call.args[0], call.args[1:], call.keywords
    given = next((keyword.value for keyword in call.keywords if keyword.arg == "input"), None)
    return given, [], [keyword for keyword in call.keywords if keyword.arg != "input"]


def takes_one(call: ast.Call) -> bool:
    """Return whether the call has an input and no other arguments."""
    given, args, keywords = arguments(call)
    return given is not None and not args and not keywords


def number(node: ast.expr) -> Any:
    """Return the value of a literal, or None if the node is something else."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def replaced(tree: Any, new: Mapping[Any, ast.AST]) -> Any:
    """Return a copy of the tree in which the nodes that are keys of `new` are replaced by its values."""
    if isinstance(tree, list):
        return [replaced(item, new) for item in tree]
    if not isinstance(tree, ast.AST):
        return tree
    if tree in new:
        return new[tree]
    return changed(tree, **{name: replaced(value, new) for name, value in ast.iter_fields(tree)})


def changed(node: Any, **fields: Any) -> Any:
    """Return a copy of the node with these fields changed."""
    return ast.copy_location(type(node)(**{**dict(ast.iter_fields(node)), **fields}), node)


def text(node: ast.AST) -> str:
    """Return the node's source, cut to 60 characters."""
    found = ast.unparse(node)
    return found if len(found) <= 60 else f"{found[:57]}..."
