"""How the processes of a graph reach each other: variables of ROS 2 and Fast DDS that they share. Imports no ROS."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from contracts import RobotContract

PROFILES = "FASTDDS_DEFAULT_PROFILES_FILE"
TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
IMPLEMENTATION, FAST_DDS = "RMW_IMPLEMENTATION", "rmw_fastrtps_cpp"
BUFFER = 4 * 2**20  # of a socket, as the two profiles ask for
BUFFER_LIMIT = Path("/proc/sys/net/core/rmem_max")  # what the kernel allows
LOCAL, NETWORK = (str(Path(__file__).with_name(f"fastdds_{reach}.xml")) for reach in ("local", "network"))

DISCOVERY_PORT, PORTS_A_DOMAIN, FIRST_UNICAST_PORT = 7400, 250, 10  # DDSI-RTPS 2.2, 9.6.1.1
DEFAULT_DOMAIN_ID = 0  # in which a real robot's drivers are, unless told otherwise
HIGHEST_SAFE_DOMAIN = 101  # above, on Linux, the ports of a domain meet the ephemeral ones


def middleware_environment(domain_id: int, user: Mapping[str, str]) -> dict[str, str]:
    """Variables that all processes of one graph share; what the user has set stays.

    They meet who is on this computer, unless ROS_AUTOMATIC_DISCOVERY_RANGE is set: a robot in a laboratory does not
    obey the neighbour's desk.
    """
    return {"ROS_DOMAIN_ID": user.get("ROS_DOMAIN_ID", str(domain_id))} | transport_environment(user, "LOCALHOST")


def transport_environment(user: Mapping[str, str], reach: str) -> dict[str, str]:
    """Variables that let large pictures arrive, and processes be found soon.

    Args:
        user: the environment; its own settings of Fast DDS, or another middleware, stay as they are.
        reach: the ROS_AUTOMATIC_DISCOVERY_RANGE if the user has set none.
    """
    reach = user.get(RANGE, reach)
    if PROFILES in user or TRANSPORTS in user or user.get(IMPLEMENTATION, FAST_DDS) != FAST_DDS:
        return {RANGE: reach, **{name: user[name] for name in (PROFILES, TRANSPORTS, IMPLEMENTATION) if name in user}}
    if reach == "LOCALHOST":  # the profile sees to it, and is one of Fast DDS: no other middleware may read this
        return {RANGE: "SYSTEM_DEFAULT", PROFILES: LOCAL, IMPLEMENTATION: FAST_DDS}
    return {RANGE: reach, PROFILES: NETWORK, IMPLEMENTATION: FAST_DDS}


def buffer_warning(robot: RobotContract, cameras: Iterable[str]) -> str:
    """That pictures of these cameras may be lost on this computer, and what helps; empty if they fit."""
    shown = [robot.camera(name) for name in cameras]
    picture_bytes = max((3 * camera.height * camera.width for camera in shown), default=0)
    allowed = int(BUFFER_LIMIT.read_text()) if BUFFER_LIMIT.exists() else BUFFER
    if allowed >= min(picture_bytes, BUFFER):
        return ""
    return (
        f"pictures of {picture_bytes} bytes may be lost: the kernel allows receive buffers of {allowed}"
        f" (sudo sysctl -w net.core.rmem_max={BUFFER})"
    )


def discovery_s(environment: Mapping[str, str]) -> float:
    """Seconds after which processes that are up have found each other; topics are not connected before.

    Of two participants that do not start at the same time, the first announcements are lost: the next one of either
    finds the other, and what it says of its topics may take another.
    """
    return 1.5 if environment.get(PROFILES) in (LOCAL, NETWORK) else 3.5


def domain_id(robot: RobotContract) -> int:
    """Where a robot is met: a real one where its drivers are, a simulated one where it moves nobody else."""
    return DEFAULT_DOMAIN_ID if robot.body == "external" else free_domain_id()


def free_domain_id() -> int:
    """A random ROS domain in which no participant of this machine is up."""
    candidates = list(range(1, HIGHEST_SAFE_DOMAIN + 1))
    random.SystemRandom().shuffle(candidates)
    return next((d for d in candidates if _is_free(d)), candidates[0])


def _is_free(domain_id: int) -> bool:
    """True when the first participant's discovery port of the domain can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", DISCOVERY_PORT + PORTS_A_DOMAIN * domain_id + FIRST_UNICAST_PORT))
        except OSError:
            return False
    return True
