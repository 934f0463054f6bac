"""How the processes of a graph find each other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from std_msgs.msg import Bool

from ros_nodes import middleware as module
from ros_nodes import qos
from ros_nodes.middleware import (
    BUFFER,
    BUFFER_LIMIT,
    IMPLEMENTATION,
    LOCAL,
    NETWORK,
    PROFILES,
    RANGE,
    TRANSPORTS,
    buffer_warning,
    discovery_s,
    domain_id,
    free_domain_id,
    middleware_environment,
    transport_environment,
)
from tests.ros_nodes.far_process import RATE_HZ
from tests.ros_nodes.peers import Peer

ROOT = Path(__file__).resolve().parents[2]


def test_the_user_has_the_last_word_on_the_middleware() -> None:
    assert middleware_environment(7, {})["ROS_DOMAIN_ID"] == "7"
    assert middleware_environment(7, {})[PROFILES] == LOCAL
    chosen = middleware_environment(7, {"ROS_DOMAIN_ID": "3", RANGE: "SUBNET"})
    assert (chosen["ROS_DOMAIN_ID"], chosen[RANGE], chosen[PROFILES]) == ("3", "SUBNET", NETWORK)
    assert transport_environment({}, "SUBNET")[PROFILES] == NETWORK
    assert transport_environment({RANGE: "LOCALHOST"}, "SUBNET")[PROFILES] == LOCAL


@pytest.mark.parametrize("own", [{TRANSPORTS: "UDPv4"}, {PROFILES: "mine.xml"}, {IMPLEMENTATION: "rmw_cyclonedds_cpp"}])
def test_whoever_has_settings_of_the_middleware_keeps_them_and_meets_this_computer_only_all_the_same(own) -> None:
    assert middleware_environment(7, own) == {"ROS_DOMAIN_ID": "7", RANGE: "LOCALHOST", **own}


@pytest.mark.skipif(
    not BUFFER_LIMIT.exists() or int(BUFFER_LIMIT.read_text()) < BUFFER,
    reason="the kernel allows no receive buffers of 4 MB (net.core.rmem_max)",
)
@pytest.mark.parametrize(
    ("graph", "driver"),
    [
        (middleware_environment(0, {}), {}),
        (middleware_environment(0, {}), {RANGE: "LOCALHOST"}),
        (transport_environment({}, "SUBNET"), {}),
    ],
    ids=["run", "run, a driver for this computer only", "launch"],
)
def test_a_driver_without_settings_of_its_own_is_met_and_its_large_pictures_arrive(
    graph, driver, tmp_path, wait_for
) -> None:
    """Regression: of 640 x 480 hardly any arrived in a run; under `ros2 launch` such drivers were not met at all."""
    domain, logs = str(free_domain_id()), [tmp_path / "driver", tmp_path / "listener"]
    bare = {name: value for name, value in os.environ.items() if name not in (PROFILES, TRANSPORTS, RANGE)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ros_nodes.far_process", log.name, domain],
            cwd=ROOT, env=bare | settings, stdout=log.open("w"),
        )
        for log, settings in zip(logs, (driver, graph | {"ROS_DOMAIN_ID": domain}), strict=True)
    ]  # fmt: skip
    try:
        wait_for(lambda: logs[0].read_text() == "go\n", what="what the driver is told")
        wait_for(lambda: logs[1].read_text().count("\n") > 20, what="pictures")
    finally:
        for process in started:
            process.kill()
            process.wait()
    came = [float(line) for line in logs[1].read_text().split("\n")[:-1]]
    assert len(came) > 0.7 * RATE_HZ * (came[-1] - came[0]), "lost"


def test_pictures_that_the_kernel_has_no_room_for_are_told_of(robot, tmp_path, monkeypatch) -> None:
    limit = tmp_path / "rmem_max"
    monkeypatch.setattr(module, "BUFFER_LIMIT", limit)
    small = robot.cameras[0]
    vga, huge = (
        msgspec.structs.replace(small, name=name, topic=name, height=height, width=width)
        for name, height, width in (("vga", 480, 640), ("huge", 2160, 3840))
    )
    robot = msgspec.structs.replace(robot, cameras=(small, vga, huge))
    assert buffer_warning(robot, ["huge"]) == "", "not Linux"
    limit.write_text("212992\n")
    assert buffer_warning(robot, [small.name]) == buffer_warning(robot, []) == ""
    assert "sysctl -w net.core.rmem_max=4194304" in buffer_warning(robot, [small.name, "vga"])
    limit.write_text("4194304\n")
    assert buffer_warning(robot, ["huge"]) == "", "larger buffers are not asked for"


def test_a_simulated_robot_has_a_domain_of_its_own_and_a_real_one_that_of_its_drivers(robot) -> None:
    assert 1 <= domain_id(robot) <= 101
    assert domain_id(msgspec.structs.replace(robot, body="external")) == 0


def test_who_starts_later_is_found_within_the_time_that_a_run_waits(robot, middleware, wait_for) -> None:
    found_s = []
    for _ in range(4):
        first = Peer(robot, middleware, "first")
        publisher = first.publisher("success", Bool, qos.STATUS)
        time.sleep(0.8)  # the announcements of its start are over
        second = Peer(robot, middleware, "second")
        second.listen("success", Bool, qos.STATUS)
        start = time.monotonic()
        wait_for(publisher.get_subscription_count, what="discovery")
        found_s.append(time.monotonic() - start)
        second.close()
        first.close()
    assert max(found_s) < discovery_s(middleware), found_s


def test_with_the_users_own_profiles_a_run_waits_for_the_middlewares_own_announcements() -> None:
    ours, users = middleware_environment(7, {}), middleware_environment(7, {PROFILES: "mine.xml"})
    assert discovery_s(users) > 3 > discovery_s(ours)
