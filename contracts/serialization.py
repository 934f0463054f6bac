"""Strict reading and writing of contracts: YAML and JSON, nothing that can run code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

T = TypeVar("T", bound="Contract")

MAX_CONTRACT_BYTES = 1_000_000  # a contract is a page of text; more is a mistake or an attack


class ContractError(ValueError):
    """A contract that cannot be used: says which file, which entry, and what would be right."""


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every contract: an immutable tree that reads and writes itself, and refuses what it does not know."""

    def to_dict(self) -> dict[str, Any]:
        """The whole tree as plain dicts, lists, numbers and strings."""
        return msgspec.to_builtins(self)

    def to_json(self) -> str:
        """The whole tree as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    @classmethod
    def from_dict(cls: type[T], data: Any, source: str = "contract") -> T:
        """Build and validate from plain data; `source` names the origin in errors.

        Raises:
            ContractError: the data does not fit, with the path of the first entry that does not.
        """
        try:
            return msgspec.convert(data, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise ContractError(f"{source}: {error}") from None

    @classmethod
    def from_json(cls: type[T], text: str | bytes, source: str = "contract") -> T:
        """Build and validate from JSON text. Raises ContractError like `from_dict`."""
        if len(text) > MAX_CONTRACT_BYTES:
            raise ContractError(f"{source}: {len(text)} bytes is more than a contract's {MAX_CONTRACT_BYTES}")
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ContractError(f"{source}: {error}") from None

    @classmethod
    def load(cls: type[T], path: Path | str) -> T:
        """Read a `.yaml`/`.yml` or `.json` file.

        Raises:
            ContractError: no such file, not text, not YAML, or not this contract.
        """
        path = Path(path)
        try:
            if path.stat().st_size > MAX_CONTRACT_BYTES:
                raise ContractError(f"{path}: larger than a contract's {MAX_CONTRACT_BYTES} bytes")
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                return cls.from_json(text, source=str(path))
            return cls.from_dict(yaml.safe_load(text), source=str(path))
        except OSError as error:
            raise ContractError(f"{path}: cannot be read ({error.strerror})") from None
        except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
            if isinstance(error, ContractError):
                raise
            raise ContractError(f"{path}: not valid YAML: {error}") from None


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition`: msgspec adds the path of the entry."""
    if not condition:
        raise ValueError(message)


def require_unique(what: str, names: tuple[str, ...]) -> None:
    """Raise ValueError naming the first name that stands twice."""
    for index, name in enumerate(names):
        require(name not in names[:index], f"{what} {name!r} stands twice")


def require_finite(what: str, *values: float) -> None:
    """Raise ValueError if a number is NaN or infinite."""
    for value in values:
        require(math.isfinite(value), f"{what} must be a finite number, not {value}")
