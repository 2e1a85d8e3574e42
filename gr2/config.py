"""Configuration: one TOML file, one table a stage, one frozen dataclass a table."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gr2.errors import ConfigError

__all__ = [
    "INCIDENTAL",
    "LATER",
    "MOST_THREADS",
    "apply_overrides",
    "build",
    "deciding",
    "load_toml",
    "refuse_below",
    "to_json",
]

T = TypeVar("T")
# The metadata of a field that decides how a stage works and not what comes of it.
INCIDENTAL = {"incidental": True}
# That of a field which came later, and whose default is what was done before: what was made before stays current.
LATER = {"later": True}
# Of one process, in any stage.
MOST_THREADS = 1024


def load_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError with the file and line if it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def apply_overrides(tables: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`tables` with `table.key=value` overrides applied; a value is read as TOML, else as a plain string."""
    result = {name: dict(table) if isinstance(table, Mapping) else table for name, table in tables.items()}
    for override in overrides:
        target, separator, text = override.partition("=")
        table, dot, key = target.strip().partition(".")
        if not separator or not dot or not table or not key:
            raise ConfigError(f"override {override!r}: expected table.key=value, for example prerank.epochs=20")
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        if not isinstance(result.setdefault(table, {}), dict):
            raise ConfigError(f"[{table}] must be a table, got {type(result[table]).__name__}")
        result[table][key] = value
    return result


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from one TOML table.

    An unknown key names the nearest known one; a value of the wrong type says which type was expected.
    Whatever `cls.__post_init__` raises as ValueError becomes a ConfigError that names `where`.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"[{where}] must be a table, got {type(table).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"[{where}] has no key {key!r}{hint}")
        values[key] = _coerce(value, hints[key], f"[{where}] {key}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"[{where}] needs the key {name!r}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"[{where}] {error}") from error


def refuse_below(config: Any, least: int, *names: str) -> None:
    """Raise ValueError, for `build` to say where, if one of these keys of a configuration is less than `least`."""
    wanted = f"be at least {least}" if least else "not be negative"
    for name in names:
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"{name} must {wanted}, got {value}")


def to_json(config: Any) -> dict[str, Any]:
    """The configuration dataclass as JSON-ready values."""
    return dataclasses.asdict(config)


def deciding(config: Any) -> dict[str, Any]:
    """`to_json` without the fields that are `INCIDENTAL`, and those that are `LATER` and have their default."""
    values = to_json(config)

    def decides(field: dataclasses.Field[Any]) -> bool:
        if field.metadata.get("later", False) and values[field.name] == field.default:
            return False
        return not field.metadata.get("incidental", False)

    return {field.name: values[field.name] for field in dataclasses.fields(config) if decides(field)}


def _coerce(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for argument in arguments:
            if argument is type(None):
                continue
            try:
                return _coerce(value, argument, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where} must be {hint}, got {value!r}")
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        return tuple(_coerce(entry, arguments[0], where) for entry in value)
    if origin is dict:
        hint = dict
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = _finite(value, where)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be {hint.__name__}, got {value!r}")
    if hint is int and value.bit_length() > 63:
        raise ConfigError(f"{where} must fit in 64 bits, got {value}")
    return _finite(value, where) if hint is float else value


def _finite(value: float, where: str) -> float:
    try:
        if math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise ConfigError(f"{where} must be a finite number, got {value!r}")
