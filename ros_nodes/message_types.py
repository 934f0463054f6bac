"""ROS message classes by the name of their type."""

from __future__ import annotations

import importlib
from typing import Any


def message_class(type_name: str) -> Any:
    """The class of `package/msg/Name`; its package must be installed."""
    package, kind, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)
