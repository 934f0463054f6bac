"""What the project's lifecycle nodes share: however they end, they let go of everything once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn


class ManagedNode(LifecycleNode):
    """A lifecycle node that is configured, activated, and closed; closed, it may be configured anew."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._entities: list[tuple[Callable[[Any], Any], Any]] = []  # how to destroy what was made, in order

    def close(self) -> None:
        """Stop acting and let go, from any state."""
        self._disconnect()

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """The end, from any state."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def _disconnect(self) -> None:
        """Destroy publishers, subscriptions, services and timers, the last one made first."""
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)
