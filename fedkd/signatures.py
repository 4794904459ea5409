"""What the factories on offer take, read from their source text: no plug-in is imported for it.

The names that stand in annotations are followed through the assignments and imports of the file,
so that `Positive` is known to be a number above 0 before torch, on which its module stands, is
loaded. What cannot be told from the text is left open: it is checked when the config is assembled.
"""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from fedkd import offers
from fedkd.offers import Kind

TAKEN: Mapping[str, int] = {
    "model": 2,
    "partition": 3,
    "mechanism": 2,
}  # positionals that a config does not give
_DEEPEST = 20  # names that stand for names
_SLIP = 10**6
_KNOWN: Mapping[str, object] = {
    "Annotated": Annotated, "Any": Any, "Field": Field, "Literal": Literal, "Mapping": Mapping,
    "Sequence": Sequence, "bool": bool, "dict": dict, "float": float, "int": int, "list": list,
    "str": str, "tuple": tuple,
}  # fmt: skip
_ADMITTED = (
    ast.Expression, ast.Name, ast.Load, ast.Subscript, ast.Tuple, ast.List, ast.Constant, ast.BinOp,
    ast.BitOr, ast.Pow, ast.UnaryOp, ast.USub, ast.Call, ast.keyword,
)  # fmt: skip
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most",
           "min_length": "of length at least", "max_length": "of length at most"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter that a config may give; `default` as written, None where it is required."""

    name: str
    hint: ast.expr | None  # the annotation with aliases spelled out
    default: ast.expr | None

    def __str__(self) -> str:
        """As one would declare it, with the plain type: `temperature: float = 0.2, above 0`."""
        text = self.name
        if self.hint is not None:
            text += f": {ast.unparse(_Plain().visit(copy.deepcopy(self.hint)))}"
        if self.default is not None:
            text += f" = {ast.unparse(self.default)}"
        return ", ".join(dict.fromkeys([text, *_bounds(self.hint)]))

    def schema(self) -> dict[str, Any]:  # Any: JSON
        """Its JSON Schema; empty, which admits anything, where the text does not tell the type."""
        found = dict(_schema_of(self.hint))
        if self.default is not None:
            try:
                value = json.loads(json.dumps(ast.literal_eval(self.default)))  # tuples are lists
            except (ValueError, TypeError):  # a name, a call, a set
                return found
            found |= {"default": value} if value is not None else {}
        return found


@dataclass(frozen=True, slots=True)
class Signature:
    """A factory on offer: what its source says of it, and what a config may give it."""

    offer: offers.Offer
    heading: str  # first line of the file's docstring
    text: str  # the factory's docstring
    parameters: tuple[Parameter, ...]
    open: bool  # takes whatever is given, or cannot be read

    @property
    def required(self) -> list[str]:
        return [p.name for p in self.parameters if p.default is None]


def signatures(kind: Kind, search: Sequence[str] = ()) -> list[Signature]:
    """All factories of a kind, in alphabetical order, as their source has them."""
    known = (_signature(found, kind) for found in offers.candidates(kind, search))
    return sorted((s for s in known if s), key=lambda s: (s.offer.name, s.offer.origin))


def _signature(found: offers.Found, kind: Kind) -> Signature | None:
    offer = offers.describe(found)
    if offer is None:
        return None
    tree = _tree(found.file) if found.file else None
    wanted = found.target.partition(":")[2]
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef) and node.name == wanted:
            assert tree and found.file
            heading = (ast.get_docstring(tree) or "").partition("\n")[0]
            return Signature(
                offer,
                heading,
                ast.get_docstring(node) or "",
                tuple(_parameters(node.args, TAKEN.get(kind, 0), tree)),
                node.args.kwarg is not None,
            )
    return Signature(offer, "", "", (), True)


def _parameters(arguments: ast.arguments, taken: int, tree: ast.Module) -> Iterator[Parameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for argument, default in [
        *list(zip(positional, [*missing, *arguments.defaults], strict=True))[taken:],
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]:
        hint = argument.annotation
        yield Parameter(argument.arg, _spelled_out(hint, tree) if hint else None, default)


@lru_cache(maxsize=256)
def _tree(file: Path) -> ast.Module | None:
    tree = offers.parsed(file)
    return tree if isinstance(tree, ast.Module) else None


def _spelled_out(hint: ast.expr, tree: ast.Module, depth: int = 0) -> ast.expr:
    """The annotation with each name replaced by what the file, or where it comes from, says."""
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str) and not depth:
        try:
            hint = ast.parse(hint.value, mode="eval").body
        except SyntaxError:
            return hint
    replaced: ast.expr = _Aliases(tree, depth).visit(copy.deepcopy(hint))
    return replaced


class _Aliases(ast.NodeTransformer):
    def __init__(self, tree: ast.Module, depth: int) -> None:
        self._tree, self._depth = tree, depth

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if self._depth > _DEEPEST or node.id in _KNOWN:
            return node
        for line in self._tree.body:
            match line:
                case ast.Assign(targets=[ast.Name(id=node.id)], value=value):
                    return _spelled_out(value, self._tree, self._depth + 1)
                case ast.ImportFrom(module=str(module), names=names, level=0):
                    for alias in names:
                        if (alias.asname or alias.name) == node.id:
                            return self._imported(module, alias.name) or node
        return node

    def _imported(self, module: str, name: str) -> ast.expr | None:
        file = offers.source_of(module)
        tree = _tree(file) if file else None
        there = ast.Name(name, ast.Load())
        return _spelled_out(there, tree, self._depth + 1) if tree else None


class _Plain(ast.NodeTransformer):
    """Leaves of `Annotated[type, …]` the type."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        match node:
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[plain, *_])):
                inner: ast.AST = self.visit(plain)
                return inner
        return self.generic_visit(node)


def _bounds(hint: ast.expr | None) -> Iterator[str]:
    """The bounds in words; those that only a slip can meet are left out."""
    for node in ast.walk(hint) if hint is not None else ():
        match node:
            case ast.keyword(arg=str(name), value=ast.Constant(value=int() | float() as bound)):
                if name in _BOUNDS and bound < _SLIP:
                    yield f"{_BOUNDS[name]} {bound:,}"


def _schema_of(hint: ast.expr | None) -> dict[str, Any]:  # Any: JSON
    """Evaluated only where it is made of the names that are known here and calls nothing else."""
    if hint is None or not all(map(_harmless, ast.walk(hint))):
        return {}
    code = compile(ast.fix_missing_locations(ast.Expression(hint)), "annotation", "eval")
    try:
        return TypeAdapter(eval(code, {"__builtins__": {}}, dict(_KNOWN))).json_schema()
    except Exception:  # no type that can be checked; whoever gives the parameter is told why
        return {}


def _harmless(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _KNOWN
        case ast.Call(func=function):
            return isinstance(function, ast.Name) and function.id == "Field"
        case ast.BinOp(op=ast.Pow(), left=base, right=power):  # 2 ** 53, not a tower of powers
            return all(
                isinstance(n, ast.Constant) and isinstance(n.value, int) and 0 <= n.value <= 100
                for n in (base, power)
            )
    return isinstance(node, _ADMITTED)
