"""The robot contract with other cameras, or other picture sizes, than its file names."""

from __future__ import annotations

from contracts import PolicyContract, RobotContract, load_robot
from contracts.feature import IMAGE_PREFIX

ROBOT = "metaworld_sawyer"
"""The project's contract of Meta-World's arm."""


def with_cameras(
    robot: RobotContract,
    cameras: tuple[str, ...] | None = None,
    image_size: tuple[int, int] | None = None,
) -> RobotContract:
    """The contract with `cameras` in place of its own, in every observation set that sees any, at `image_size`.

    A camera that the contract does not name takes the rate, time-out and size of its first one.

    Args:
        robot: the contract to start from.
        cameras: names, in order; None keeps the contract's.
        image_size: (height, width) of every picture; None keeps the contract's.

    Raises:
        ContractError: an impossible size or a name twice.
    """
    if cameras is None and image_size is None:
        return robot
    data = robot.to_dict()
    known = {camera["name"]: camera for camera in data["cameras"]}
    first = data["cameras"][0]
    chosen = tuple(known) if cameras is None else cameras
    data["cameras"] = [known.get(name, _named(first, name)) for name in chosen]
    if image_size is not None:
        for camera in data["cameras"]:
            camera["height"], camera["width"] = image_size
    for features in data["observation_sets"].values():
        seen = [key for key in features if key.startswith(IMAGE_PREFIX)]
        for key in seen:
            del features[key]
        if seen:
            features |= {IMAGE_PREFIX + name: [name] for name in chosen}
    return RobotContract.from_dict(data, source=f"robot {robot.name!r} with cameras {list(chosen)}")


def fitting_robot(policy: PolicyContract) -> RobotContract:
    """The project's simulated arm with the cameras that `policy` looks at, in their sizes: a simulator has them all."""
    images = [o.feature for o in policy.observations if o.feature.is_image]
    if not images:
        return load_robot(ROBOT)
    height, width, _ = images[0].shape
    return with_cameras(load_robot(ROBOT), tuple(f.camera for f in images), (height, width))


def _named(camera: dict[str, object], name: str) -> dict[str, object]:
    return camera | {"name": name, "topic": f"cameras/{name}/image_raw", "frame": name}
