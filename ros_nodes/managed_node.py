"""What the project's lifecycle nodes share: a transition that fails says why, and whatever was begun is let go of."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NameValidationException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger

WARN_EVERY_S = 1.0


class RefusedTransition(RuntimeError):
    """The node cannot do this now; the message is for the user."""


# Their message is enough for the user: a parameter, a contract, a file or an installation is not what it should be.
FORESEEN = (RefusedTransition, ValueError, OSError, ImportError, NameValidationException)


class ManagedNode(LifecycleNode):
    """A lifecycle node that is configured, activated, and closed; closed, it may be configured anew.

    A node says in `configure`, `activate`, `deactivate` and `close` what it does, and raises what keeps it from it.
    That is logged here, since rclpy swallows it without a word, and what failed half way is undone.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._entities: list[tuple[Callable[[Any], Any], Any]] = []  # how to destroy what was made, in order

    def configure(self) -> None:
        """Load and listen. What it raises leaves the node unconfigured and closed."""
        raise NotImplementedError

    def activate(self) -> None:
        """Begin to act. A foreseen error leaves the node inactive, after `deactivate`; another one closes it."""
        raise NotImplementedError

    def deactivate(self) -> None:
        """Stop acting, if it acts. What it raises leaves the node unconfigured and closed."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop acting and let go, from any state."""
        self._disconnect()

    # --- what rclpy calls

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """To inactive; or back to unconfigured."""
        if self.get_parameter("use_sim_time").value:
            self.get_logger().warning("use_sim_time: a simulator slower or faster than real time is not followed")
        return self._begin("configure", self.configure, self.close)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """To active; or back to inactive, after an error that was not foreseen to unconfigured."""
        return self._begin("activate", self.activate, self.deactivate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """To inactive."""
        return self._end("deactivate", self.deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        return self._end("let go", self.close)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """The end, from any state."""
        return self._end("let go", self.close)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After what was not foreseen, or when not even stopping went well: back to unconfigured."""
        return self._end("let go", self.close)

    def _begin(self, what: str, work: Callable[[], None], undo: Callable[[], None]) -> TransitionCallbackReturn:
        if self._done(what, work):
            return TransitionCallbackReturn.SUCCESS
        return TransitionCallbackReturn.FAILURE if self._done("undo that", undo) else TransitionCallbackReturn.ERROR

    def _end(self, what: str, work: Callable[[], None]) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS if self._done(what, work) else TransitionCallbackReturn.ERROR

    def _done(self, what: str, work: Callable[[], None]) -> bool:
        """Do it; False after a foreseen error. What else it raises goes on to rclpy, which then calls `on_error`."""
        try:
            work()
        except FORESEEN as error:
            self.get_logger().error(f"cannot {what}: {str(error) or repr(error)}")
            return False
        except Exception:
            self.get_logger().error(f"cannot {what}: {traceback.format_exc()}")
            raise
        return True

    def _warn_refused(self, what: str) -> None:
        """Say what was dropped, at most once a second: how often is counted."""
        self.get_logger().warning(f"refused: {what}", throttle_duration_sec=WARN_EVERY_S)

    # --- what is let go of in the end

    def _advertise(self, kind: type, topic: str, profile: QoSProfile) -> Publisher:
        publisher: Publisher = self.create_publisher(kind, topic, profile)
        self._entities.append((self.destroy_publisher, publisher))
        return publisher

    def _listen(
        self, kind: type, topic: str, heard: Callable[..., None], profile: QoSProfile, raw: bool = False
    ) -> None:
        subscription = self.create_subscription(kind, topic, heard, profile, raw=raw)
        self._entities.append((self.destroy_subscription, subscription))

    def _offer(self, name: str, answer: Callable[[Trigger.Request, Trigger.Response], Trigger.Response]) -> None:
        self._entities.append((self.destroy_service, self.create_service(Trigger, name, answer)))

    def _every(self, seconds: float, work: Callable[[], None]) -> None:
        """Call `work` again and again, by the steady clock."""
        timer = self.create_timer(seconds, work, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._entities.append((self.destroy_timer, timer))

    def _disconnect(self) -> None:
        """Destroy publishers, subscriptions, services and timers, the last one made first."""
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)
