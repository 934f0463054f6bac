"""How the processes of a graph reach each other: variables of ROS 2 and Fast DDS that they share. Imports no ROS."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping
from pathlib import Path

from contracts import RobotContract

TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
PROFILES = "FASTDDS_DEFAULT_PROFILES_FILE"
TRANSPORT_VARIABLES = {
    # Fast DDS's defaults lose every 640x480 best-effort picture; this carries them, p50 0.9 ms.
    TRANSPORTS: "LARGE_DATA?max_msg_size=4MB&sockets_size=4MB&non_blocking=true",
    # A participant announces itself every 0.5 s instead of 3.
    PROFILES: str(Path(__file__).with_name("fastdds.xml")),
}

DISCOVERY_PORT, PORTS_A_DOMAIN, FIRST_UNICAST_PORT = 7400, 250, 10  # DDSI-RTPS 2.2, 9.6.1.1
DEFAULT_DOMAIN_ID = 0  # in which a real robot's drivers are, unless told otherwise
HIGHEST_SAFE_DOMAIN = 101  # above, on Linux, the ports of a domain meet the ephemeral ones


def middleware_environment(domain_id: int, user: Mapping[str, str]) -> dict[str, str]:
    """Variables that all processes of one graph share; what the user has set stays.

    ROS_AUTOMATIC_DISCOVERY_RANGE is LOCALHOST unless set: a robot in a laboratory does not obey the neighbour's desk.
    """
    domain = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": str(domain_id)}
    return {name: user.get(name, value) for name, value in (TRANSPORT_VARIABLES | domain).items()}


def discovery_s(environment: Mapping[str, str]) -> float:
    """Seconds after which processes that are up have found each other; topics are not connected before.

    Of two participants that do not start at the same time, the first announcements are lost: the next one of either
    finds the other, and what it says of its topics may take another.
    """
    return 1.5 if environment.get(PROFILES) == TRANSPORT_VARIABLES[PROFILES] else 3.5


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
