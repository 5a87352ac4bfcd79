"""Strict settings: a TOML file, the environment and the command line, read once into frozen values.

A program describes its settings as frozen dataclasses, one per table; `read_settings` fills them. The
command line wins over the environment, the environment over the file, the file over the dataclass defaults.
Every key `cache.max_size` has an environment twin `TIDEGATE_CACHE__MAX_SIZE` (lists as JSON or comma
separated, arrays of tables as JSON or by index, `TIDEGATE_REGISTRY__0__NAME`). Nothing unknown is ever
ignored: each complaint is a `UsageError` that names where the value came from, its key, and the accepted
form or the nearest known key.

The environment is passed in; this module reads one file and nothing else of the machine. It knows no key.
"""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from tidegate_core.errors import UsageError

PREFIX = "TIDEGATE_"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one kind of value is written, for use in `Annotated[X, Form(...)]`.

    `accepted` completes "must be ...". `read` takes what TOML gave (or text, from the environment) and raises
    ValueError; `show` gives back what TOML would hold. `discreet` where a mistake may be a password in the
    wrong place: complaints then do not repeat what was written.
    """

    accepted: str
    read: Callable[[object], object]
    show: Callable[[Any], object] = str  # Any: each form shows its own kind of value
    discreet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """One value as it was written, with where it was: nothing is interpreted yet."""

    value: object
    origin: str
    is_text: bool  # from the environment or the command line: everything arrives as text there


_Node = Union["_Given", "_Table", list["_Table"]]
_Table = dict[str, _Node]


def read_settings(
    shape: type[T],
    *,
    file: Path | None,
    environment: Mapping[str, str],
    command_line: Mapping[str, str],
    reserved: Sequence[str] = (),
) -> T:
    """The settings of `shape` from all their sources; UsageError for the first thing that is wrong.

    `file` is read when given and must exist then. `command_line` maps dotted keys to text. `reserved` names
    variables with our prefix that are no settings (such as TIDEGATE_CONFIG).
    """
    tree: _Table = {} if file is None else read_toml(file)
    known = {PREFIX + "__".join(path).upper(): path for path in _paths(shape)}
    named = (name for name in environment if name.startswith(PREFIX) and name not in reserved)
    twins = {_environment_path(name, known): name for name in named}
    for path in sorted(twins, key=lambda path: [part.zfill(9) for part in path]):  # [2] before [10]
        origin = f"environment variable {twins[path]}"
        given = _Given(value=environment[twins[path]], origin=origin, is_text=True)
        _overlay(shape, tree, path, given)
    for key, text in command_line.items():
        path = tuple(key.replace("[", ".").replace("]", "").split("."))
        given = _Given(value=text, origin="command line", is_text=True)
        if not path[-1] or not _is_known(path, known):
            raise UsageError(
                f"command line: unknown key `{key}`", next_step=_nearest_key(path[-1], key, shape)
            )
        _overlay(shape, tree, path, given)
    return _read_table(shape, tree, (), str(file) if file else "configuration")


def read_toml(file: Path) -> _Table:
    """A TOML file as a tree of values that remember their file; UsageError when it is unreadable."""
    try:
        document = tomllib.loads(file.read_bytes().decode())
    except FileNotFoundError as error:
        raise UsageError(f"{file} does not exist", next_step="check the path") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    return {key: _node(value, str(file)) for key, value in document.items()}


def show_settings(value: object) -> str:
    """A settings value as TOML that reads back as the same value; keys without a value are left out."""
    return "\n".join(_shown_table(value, "")).strip() + "\n"


def environment_names(shape: type) -> tuple[str, ...]:
    """The environment twin of every key of `shape`."""
    return tuple(PREFIX + "__".join(path).upper() for path in _paths(shape))


def listed(value: object) -> object:
    """A list written as text (JSON, or comma separated) as a list; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return None
    return [part.strip() for part in value.split(",") if part.strip()]


# The shape: what a frozen dataclass says about its keys.


def _hints(shape: type) -> dict[str, Any]:  # Any: type expressions have no common type
    return get_type_hints(shape, include_extras=True)


def _plain(hint: Any) -> Any:
    """The hint without `| None`: TOML has no null, None only ever means "not set"."""
    if get_origin(hint) in (Union, UnionType):
        rest = [argument for argument in get_args(hint) if argument is not NoneType]
        if len(rest) == 1:
            return rest[0]
    return hint


def _form(hint: Any) -> Form | None:
    return next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Form)), None)


def _item(hint: Any) -> Any | None:
    """X of `tuple[X, ...]`, None for any other hint."""
    return get_args(hint)[0] if get_origin(hint) is tuple else None


def _table_of(hint: Any) -> type | None:
    """The dataclass behind a table or an array of tables, None for a plain value."""
    inner = _item(hint) or hint
    return inner if is_dataclass(inner) and isinstance(inner, type) else None


def _paths(shape: type, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, hint in _hints(shape).items():
        table = _table_of(_plain(hint))
        if table is None or _item(_plain(hint)) is not None:
            yield (*before, name)
        if table is not None:
            index = ("0",) if _item(_plain(hint)) is not None else ()
            yield from _paths(table, (*before, name, *index))


def _is_known(path: tuple[str, ...], known: Mapping[str, tuple[str, ...]]) -> bool:
    return tuple("0" if part.isdecimal() else part for part in path) in known.values()


# Laying one source over another, before anything is interpreted.


def _node(value: object, origin: str) -> _Node:
    if isinstance(value, dict):
        return {str(key): _node(item, origin) for key, item in value.items()}
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [{str(key): _node(inner, origin) for key, inner in item.items()} for item in value]
    return _Given(value=value, origin=origin, is_text=False)


def _environment_path(name: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    if name != name.upper() or not _is_known(path, known):
        nearest = get_close_matches(name.upper(), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}? Otherwise unset it" if nearest else "unset it"
        raise UsageError(f"environment variable {name} is not a setting", next_step=hint)
    return path


def _overlay(shape: type, tree: _Table, path: tuple[str, ...], given: _Given) -> None:
    """Puts one value into the tree, over what was there; `path` is known to fit `shape`."""
    name, *rest = path
    hint = _plain(_hints(shape)[name])
    table = _table_of(hint)
    if not rest or table is None:
        is_array = table is not None and not rest
        tree[name] = _parsed_tables(given, name) if is_array else given
    elif _item(hint) is not None:
        rows = tree.setdefault(name, [])
        rows = rows if isinstance(rows, list) else []
        index = int(rest[0])
        if index > len(rows):
            raise UsageError(f"{given.origin}: there is no {name}[{len(rows)}] before it")
        if index == len(rows):
            rows.append({})
        tree[name] = rows
        _overlay(table, rows[index], tuple(rest[1:]), given)
    else:
        inner = tree.get(name)
        inner = inner if isinstance(inner, dict) else {}
        tree[name] = inner
        _overlay(table, inner, tuple(rest), given)


def _parsed_tables(given: _Given, name: str) -> _Node:
    try:
        value = json.loads(str(given.value))
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _wrong((name,), given, "a JSON list of objects", discreet=True)
    return [{key: _node(inner, given.origin) for key, inner in item.items()} for item in value]


# From the tree to values.


def _read_table(shape: type[T], tree: _Table, path: tuple[str, ...], origin: str) -> T:
    hints = _hints(shape)
    for name, node in tree.items():
        if name not in hints:
            key = _key((*path, name))
            step = _nearest_key(name, key, shape, path)
            raise UsageError(f"{_origin(node, origin)}: unknown key `{key}`", next_step=step)
    values = {name: _read(_plain(hints[name]), node, (*path, name), origin) for name, node in tree.items()}
    for field in fields(shape):  # type: ignore[arg-type]  # every shape is a dataclass; the type system cannot say so
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(
                f"{origin}: `{_key(path)}` has no `{field.name}`", next_step=f"add {field.name} = ..."
            )
    return shape(**values)


def _read(hint: Any, node: _Node, path: tuple[str, ...], origin: str) -> object:
    table, item = _table_of(hint), _item(hint)
    if table is not None and item is not None:
        if isinstance(node, _Given) and node.value == []:
            return ()
        if not isinstance(node, list):
            raise _wrong(path, node, f"an array of tables: [[{_key(path)}]]", origin, discreet=True)
        rows = enumerate(node)
        return tuple(_read_table(table, row, (*path, str(at)), _origin(row, origin)) for at, row in rows)
    if table is not None:
        if not isinstance(node, dict):
            raise _wrong(path, node, f"a table: [{_key(path)}]", origin, discreet=True)
        return _read_table(table, node, path, origin)
    if not isinstance(node, _Given):
        raise _wrong(path, node, _accepted(hint), origin)
    form = _form(hint)
    if item is not None and form is None:
        values = listed(node.value) if node.is_text else node.value
        if not isinstance(values, list) or not values:  # to say "nothing", one leaves the key out
            raise _wrong(path, node, _accepted(hint))
        given = (_Given(value=value, origin=node.origin, is_text=False) for value in values)
        return tuple(_read(item, value, (*path, str(at)), origin) for at, value in enumerate(given))
    try:
        if form is not None:
            return form.read(node.value)
        value = _typed(hint, str(node.value)) if node.is_text else node.value
        return msgspec.convert(value, hint, strict=True)
    except ValueError as error:  # msgspec's ValidationError is one; it speaks of types, we of accepted forms
        discreet = form is not None and form.discreet
        raise _wrong(path, node, _accepted(hint), reason=str(error) if form else "", discreet=discreet) from (
            None if discreet else error
        )


def _typed(hint: Any, text: str) -> object:
    """Text as TOML would have typed it, for kinds of values that are not text."""
    if hint is bool:
        return {"true": True, "false": False}.get(text, text)
    return int(text) if hint is int else text


# Complaints.


def _key(path: Sequence[str]) -> str:
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path).removeprefix(".")


def _origin(node: _Node, otherwise: str) -> str:
    while not isinstance(node, _Given):
        inner = node if isinstance(node, list) else list(node.values())
        if not inner:
            return otherwise
        node = inner[0]
    return node.origin


def _wrong(
    path: Sequence[str],
    node: _Node,
    accepted: str,
    origin: str = "",
    reason: str = "",
    *,
    discreet: bool = False,
) -> UsageError:
    written = f" = {json.dumps(node.value, default=str)}" if isinstance(node, _Given) and not discreet else ""
    told = f": {reason}" if reason and accepted not in reason else ""
    return UsageError(
        f"{_origin(node, origin)}: `{_key(path)}`{written} is not accepted{told}",
        next_step=f"`{_key(path)}` must be {accepted}",
    )


def _accepted(hint: Any) -> str:
    form = _form(hint)
    if form is not None:
        return form.accepted
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{value}"' for value in get_args(hint))
    if (item := _item(hint)) is not None:
        return f"a list, each item {_accepted(item)}"
    return {bool: "true or false", int: "a whole number", str: "text in quotes"}.get(hint, str(hint))


def _nearest_key(name: str, key: str, shape: type, path: Sequence[str] = ()) -> str:
    """Prefers a key of the same table; a key that exists in another table is the next best guess."""
    here = get_close_matches(name, _hints(shape), n=1)
    if here:
        return f"did you mean `{_key((*path, here[0]))}`?"
    everywhere = {_key(known): known for known in _paths(shape)} if not path else {}
    elsewhere = [full for full, known in everywhere.items() if known[-1] == name]
    elsewhere = elsewhere or get_close_matches(key, everywhere, n=1)
    if elsewhere:
        return f"did you mean `{elsewhere[0]}`?"
    return "known here: " + ", ".join(sorted(_hints(shape)))


# Back to TOML.


def _shown(hint: Any, value: object) -> object:
    form = _form(hint)
    if form is not None:
        return form.show(value)
    item = _item(hint)
    if item is not None and isinstance(value, tuple):
        return [_shown(item, inner) for inner in value]
    return value


def _shown_table(value: object, path: str) -> Iterator[str]:
    hints = {name: _plain(hint) for name, hint in _hints(type(value)).items()}
    present = {name: getattr(value, name) for name in hints if getattr(value, name) not in (None, ())}
    for name, inner in present.items():
        if _table_of(hints[name]) is None:
            # TOML writes strings, integers, booleans and arrays of these as JSON does, but for DEL.
            text = json.dumps(_shown(hints[name], inner), ensure_ascii=False)
            yield f"{name} = {text}".replace("\x7f", "\\u007f")
    for name, inner in present.items():
        full = f"{path}.{name}" if path else name
        if _table_of(hints[name]) is None:
            continue
        for row in inner if isinstance(inner, tuple) else (inner,):
            yield ""
            yield f"[[{full}]]" if isinstance(inner, tuple) else f"[{full}]"
            yield from _shown_table(row, full)
