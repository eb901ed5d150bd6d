"""Views as text and back, such as "crop(4), flip, mixup(0.2)"; a run's settings keep them so."""

import ast
import dataclasses
from typing import Any

from retinue.data.views.base import View, registered
from retinue.data.views.compose import Compose
from retinue.errors import ArgumentError, unknown

EXAMPLE = 'Write views as in "crop(4), flip, color_jitter(0.4, 0.4, 0.4, 0.1)".'


def parse(text: str) -> Compose:
    """Read views from text: names with arguments, in order; nothing in it is ever executed.

    >>> parse("crop(4), flip, mixup(0.2)")
    crop(4), flip(), mixup()

    Args:
        text: names as the views' own texts have them ("color_jitter") or as their classes are called ("ColorJitter"); arguments by place
            or by name: numbers, strings, None, lists, and views within views.

    Raises:
        ArgumentError: if it cannot be read, a view or an argument does not exist (the near misses are named), or a value cannot work.
    """
    try:
        tree = ast.parse(f"[{text}\n]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArgumentError(f'views: "{text}" cannot be read ({getattr(error, "msg", error)}). {EXAMPLE}') from None
    if not isinstance(tree, ast.List):
        raise ArgumentError(f'views: "{text}" is more than one list of views. {EXAMPLE}')
    return Compose([_view(node, text) for node in tree.elts])


def _view(node: ast.expr, text: str) -> View:
    call = node if isinstance(node, ast.Call) else None
    head = call.func if call else node
    if not isinstance(head, ast.Name):
        raise ArgumentError(f'views: "{ast.unparse(node)}" in "{text}" is not a view. {EXAMPLE}')
    names = {name.replace("_", ""): kind for name, kind in registered.items()}
    plain = head.id.replace("_", "").lower()
    if plain not in names:
        raise unknown("views", "view", head.id, registered)
    kind = names[plain]
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given = call.args if call else []
    if len(given) > len(fields):
        raise ArgumentError(f"views: {kind.name} takes {len(fields)} arguments at most, got {len(given)}. They are {', '.join(fields)}.")
    values = dict(zip(fields, (_value(argument, text) for argument in given)))
    for keyword in call.keywords if call else []:
        if keyword.arg not in fields:
            raise unknown(f"views: {kind.name}", "argument", keyword.arg or "**", fields)
        if keyword.arg in values:
            raise ArgumentError(f'views: {kind.name} in "{text}" is given `{keyword.arg}` twice. Leave one out.')
        values[keyword.arg] = _value(keyword.value, text)
    missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.name not in values]  # type: ignore[arg-type]
    if missing:
        raise ArgumentError(f'views: {kind.name} in "{text}" needs `{missing[0]}`. Its arguments are {", ".join(fields)}.')
    return kind(**values)


def _value(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(left=ast.Constant(value=int() | float() as above), op=ast.Div(), right=ast.Constant(value=int() | float() as below)):
            if below:
                return above / below
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_value(element, text) for element in elements)
        case ast.Call() | ast.Name():
            return _view(node, text)
    raise ArgumentError(f'views: the value "{ast.unparse(node)}" in "{text}" cannot be read. Write a number, a string, a list or a view.')
