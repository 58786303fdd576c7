"""The changes that `mutate` makes to a source file, one at a time.

Not changed: strings, annotations, decorators, and the texts of errors.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

COMPARED: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
COMPUTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitOr,
}
NAMES: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes from `start` to `end` of a file become `text`."""

    path: str
    lines: tuple[int, int]  # from the start of the statement to the end of what is changed
    line: int
    column: int
    owner: str  # the qualified name of the outermost function around it, or ""
    what: str
    start: int
    end: int
    text: str
    whole: bytes  # the file, unchanged

    @property
    def key(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.what}"

    @property
    def shown(self) -> str:
        """For people, and independent of where it stands in the file."""
        line = self.whole.splitlines()[self.line - 1].decode().strip()
        return self.what if line.startswith(self.what.partition(" → ")[0]) else f"{line} | {self.what}"

    def source(self) -> bytes:
        return self.whole[: self.start] + self.text.encode() + self.whole[self.end :]


def _with(node: ast.AST, **fields: object) -> Any:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """What may stand in the place of this expression."""
    match node:
        case ast.Compare():
            for at, operator in enumerate(node.ops):
                for other in COMPARED[type(operator)]:
                    yield _with(node, ops=[*node.ops[:at], other(), *node.ops[at + 1 :]])
        case ast.BinOp() if type(node.op) in COMPUTED:
            yield _with(node, op=COMPUTED[type(node.op)]())
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield _with(node, func=ast.Name(NAMES[name]))


def _conditions(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield test
        case ast.comprehension(ifs=tests):
            yield from tests


def _statements(node: ast.AST, bound: set[str]) -> Iterator[str]:
    """What may stand in the place of this statement. `bound` are the names that have a value without it."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Name(id="assert_never"))):
            return  # for the type checker
        case ast.Return(value=value) if not (
            isinstance(value, ast.Constant | None) and (value is None or value.value is None)
        ):
            yield "return None"
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.Delete():
            yield "pass"
        case ast.Assign(targets=[ast.Name(id=name)]) if name in bound:
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"
        case ast.AugAssign():
            yield "pass"
            if type(node.op) in COMPUTED:
                yield ast.unparse(_with(node, op=COMPUTED[type(node.op)]()))
        case ast.Break():
            yield "continue"
        case ast.Continue():
            yield "break"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def mutants(root: Path, path: str) -> list[Mutant]:
    """Every mutant of one file, in the order of the file."""
    source = (root / path).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []

    def add(node: Any, first: int, owner: str, text: str) -> None:
        short = [" ".join(one.split()) for one in (ast.unparse(node), text)]
        what = " → ".join(one if len(one) < 90 else f"{one[:60]}…{one[-28:]}" for one in short)
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        last = node.lineno if isinstance(node, ast.stmt) else node.end_lineno
        found.append(
            Mutant(path, (first, last), node.lineno, node.col_offset, owner, what, start, end, text, source)
        )

    def visit(node: ast.AST, first: int, owner: str, scope: str, bound: set[str]) -> None:
        if isinstance(node, ast.stmt):
            first = node.lineno
            for text in _statements(node, bound):
                add(node, first, owner, text)
            if isinstance(node, ast.Assign | ast.For):
                target = node.target if isinstance(node, ast.For) else node.targets[0]
                bound |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
        for other in _expressions(node) if owner or not isinstance(node, ast.BinOp) else ():  # A | B: a type
            add(node, first, owner, f"({ast.unparse(other)})")
        for test in _conditions(node):
            if (
                not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp)
                and ast.unparse(test) != "TYPE_CHECKING"
            ):
                add(test, first, owner, f"(not {ast.unparse(test)})")
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope = f"{scope}{node.name}."
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            if name == "exc" and isinstance(value, ast.Call):  # the texts of an error
                continue
            inner = owner or (scope[:-1] if is_function and name == "body" else "")
            names = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)} if is_function else bound
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_text(child):
                    visit(child, first, inner, scope, names)

    visit(ast.parse(source), 1, "", "", set())
    return found
