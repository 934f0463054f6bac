"""How the processes of a graph find each other."""

from __future__ import annotations

import time

import msgspec
from std_msgs.msg import Bool

from ros_nodes import qos
from ros_nodes.middleware import PROFILES, discovery_s, domain_id, middleware_environment
from tests.ros_nodes.peers import Peer


def test_the_user_has_the_last_word_on_the_middleware() -> None:
    assert middleware_environment(7, {})["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    chosen = middleware_environment(7, {"ROS_DOMAIN_ID": "3", "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"})
    assert (chosen["ROS_DOMAIN_ID"], chosen["ROS_AUTOMATIC_DISCOVERY_RANGE"]) == ("3", "SUBNET")


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
    assert users[PROFILES] == "mine.xml"
    assert discovery_s(users) > 3 > discovery_s(ours)
