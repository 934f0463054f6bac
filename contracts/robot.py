"""What a robot promises: what it senses, what it obeys, how fast, within which limits, and what it does alone."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Literal

from contracts.feature import Feature, image, vector
from contracts.serialization import Contract, ContractError, require, require_finite, require_unique

JOINT_STATE = "sensor_msgs/msg/JointState"
POSE = "geometry_msgs/msg/PoseStamped"
IMU = "sensor_msgs/msg/Imu"
TWIST = "geometry_msgs/msg/Twist"
VELOCITY = ".velocity"
"""What a JointState's field ends with that is a joint's velocity; the bare name is its position."""
FIELDS = {
    POSE: ("x", "y", "z"),
    TWIST: ("linear x", "linear y", "angular z"),
    IMU: (
        "orientation x", "orientation y", "orientation z", "orientation w", "angular velocity x",
        "angular velocity y", "angular velocity z", "linear acceleration x", "linear acceleration y",
        "linear acceleration z",
    ),
}  # fmt: skip
"""What each of a sensor's fields is, where its message does not name them."""


class Sensor(Contract, frozen=True, kw_only=True):
    """One topic of measured scalars, or of what somebody asks for.

    Attributes:
        name: how the rest of the contract refers to it.
        topic: ROS topic, relative to the robot's namespace.
        type: message type. JointState carries `fields` by name (so order on the wire does not matter): `<joint>` is a
            position, `<joint>.velocity` that joint's velocity. PoseStamped carries a position as the three `fields`,
            in `frame`; Imu carries as its ten `fields`, whatever their names, orientation x y z w (REP-145: of `frame`
            in the world, z up), angular velocity x y z and linear acceleration x y z (gravity with it: upward at
            rest), both in `frame`. Twist is no measurement but what the robot is asked for, see `is_request`: its
            three `fields` are linear x, linear y and angular z, along and about the robot's own axes (REP-103).
        fields: names of the scalars it measures, unique in the whole robot.
        units: one a field (SI; "1" where it has none).
        rate_hz: how often it is published.
        timeout_s: older than this is stale, and nothing may be decided from it; a request that is older is none.
        privileged: True where no real robot could measure it (object poses of a simulator).
        frame: header.frame_id (REP-105).
    """

    name: str
    topic: str
    type: Literal[
        "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped", "sensor_msgs/msg/Imu", "geometry_msgs/msg/Twist"
    ]
    fields: tuple[str, ...]
    units: tuple[str, ...]
    rate_hz: float
    timeout_s: float
    frame: str = "base"
    privileged: bool = False

    def __post_init__(self) -> None:
        _check_timing(self.name, self.rate_hz, self.timeout_s)
        require(len(self.fields) == len(self.units), f"sensor {self.name!r}: one unit a field, please")
        require(bool(self.fields), f"sensor {self.name!r} measures nothing")
        if self.type in FIELDS:
            given, kind = FIELDS[self.type], self.type.rpartition("/")[2]
            right = f"sensor {self.name!r}: of {kind} come {len(given)} fields: {', '.join(given)}"
            require(len(self.fields) == len(given), right)
        elif self.velocities and self.positions:  # a message has as many velocities as positions, or none
            require(
                set(self.positions) == set(self.velocities),
                f"sensor {self.name!r}: give the velocity of each joint or of none",
            )

    @property
    def is_request(self) -> bool:
        """True of what somebody else (a person, a planner) asks of the robot, instead of what the robot measures.

        It carries no stamp: the time of its receipt counts. It is never waited for, and when it is silent for longer
        than `timeout_s`, all its fields are 0.
        """
        return self.type == TWIST

    @property
    def positions(self) -> tuple[str, ...]:
        """Of a JointState: the joints whose position is a field, in order."""
        return tuple(f for f in self.fields if not f.endswith(VELOCITY))

    @property
    def velocities(self) -> tuple[str, ...]:
        """Of a JointState: the joints whose velocity is a field, in order."""
        return tuple(f.removesuffix(VELOCITY) for f in self.fields if f.endswith(VELOCITY))


class Camera(Contract, frozen=True, kw_only=True):
    """One camera: sensor_msgs/msg/Image, rgb8, `height` x `width` pixels, stamped when the picture was taken."""

    name: str
    topic: str
    height: int
    width: int
    rate_hz: float
    timeout_s: float
    frame: str
    encoding: Literal["rgb8"] = "rgb8"

    def __post_init__(self) -> None:
        _check_timing(self.name, self.rate_hz, self.timeout_s)
        require(0 < self.height <= 4096 and 0 < self.width <= 4096, f"camera {self.name!r}: impossible size")


class CommandChannel(Contract, frozen=True, kw_only=True):
    """One element of the command.

    Attributes:
        name: a joint's name, or a direction of the end effector's twist.
        unit: SI unit of the command ("1" where it has none).
        min, max: a command outside is never sent.
        max_rate: largest change a second, in unit/s; the filter slows a faster one down. None: any, which a position
            that holds may not have.
        measured_by: the sensor field that this channel moves; None where nothing measures it.
        position_min, position_max: limits of that field, in its own unit: a command that would leave them, or would go
            further out, is stopped. None: no limit.
        hold: the command of the *hold* fallback: `zero` (a velocity), `last` (a gripper keeps its grip), `measured` (a
            position stays where it was sent last, or measured when nothing was; one that is moved away takes that place
            along).
    """

    name: str
    unit: str
    min: float
    max: float
    max_rate: float | None = None
    measured_by: str | None = None
    position_min: float | None = None
    position_max: float | None = None
    hold: Literal["zero", "last", "measured"]

    def __post_init__(self) -> None:
        require_finite(f"channel {self.name!r}: a limit", self.min, self.max)
        require(self.min < self.max, f"channel {self.name!r}: min {self.min} is not below max {self.max}")
        if self.max_rate is not None:
            require_finite(f"channel {self.name!r}: max_rate", self.max_rate)
            require(self.max_rate > 0, f"channel {self.name!r}: max_rate must be positive")
        if self.hold == "zero":
            require(self.min <= 0 <= self.max, f"channel {self.name!r}: holds at zero, which is out of its limits")
        limits = (self.position_min, self.position_max)
        if limits != (None, None):
            require(None not in limits, f"channel {self.name!r}: give both position_min and position_max")
            require_finite(f"channel {self.name!r}: a position limit", *limits)  # type: ignore[arg-type]
            require(limits[0] < limits[1], f"channel {self.name!r}: position_min is not below position_max")  # type: ignore[operator]
            require(self.measured_by is not None, f"channel {self.name!r}: position limits need measured_by")
        require(
            self.hold != "measured" or self.measured_by is not None,
            f"channel {self.name!r}: hold: measured needs measured_by",
        )


class PositionControl(Contract, frozen=True, kw_only=True):
    """The spring and the damper at each joint: torque = kp (target - position) - kd velocity.

    Attributes:
        kp: N m/rad.
        kd: N m s/rad.
    """

    kp: float
    kd: float

    def __post_init__(self) -> None:
        require_finite("kp or kd", self.kp, self.kd)
        require(self.kp > 0 and self.kd >= 0, f"kp must be positive and kd not negative, not {self.kp} and {self.kd}")


class CommandInterface(Contract, frozen=True, kw_only=True):
    """What the robot obeys.

    Attributes:
        topic: of std_msgs/msg/Float64MultiArray, one number a channel, in this order (ros2_controllers'
            forward_command_controller).
        kind: `end_effector_twist` and `joint_velocity` integrate the command; `joint_position` goes there.
        channels: the elements of the command, in order.
        fallback: what the controller sends when it must not follow the policy. `hold` follows each channel's `hold`, at
            the place where that began; `damp` sends every time the positions that are measured right then, so that the
            springs of the position control are off and its dampers alone act: the robot sinks down slowly.
        timeout_s: the body stops by itself when no command came for this long.
        position_control: of the body, for a policy that was trained with it; None: not stated.
    """

    topic: str
    type: Literal["std_msgs/msg/Float64MultiArray"] = "std_msgs/msg/Float64MultiArray"
    kind: Literal["end_effector_twist", "joint_velocity", "joint_position"]
    channels: tuple[CommandChannel, ...]
    fallback: Literal["hold", "damp"] = "hold"
    timeout_s: float
    position_control: PositionControl | None = None

    def __post_init__(self) -> None:
        require(bool(self.channels), "a robot needs at least one command channel")
        require_unique("command channel", tuple(c.name for c in self.channels))
        _check_timing("command", 1.0, self.timeout_s)
        if self.fallback == "damp":
            require(self.kind == "joint_position", f"fallback damp is for joint_position, not for {self.kind}")
            stiff = [c.name for c in self.channels if c.hold != "measured"]
            require(not stiff, f"fallback damp: {stiff} must have hold: measured")
        held = [c.name for c in self.channels if c.hold == "measured"]
        require(
            not held or self.kind == "joint_position",
            f"kind {self.kind}: {held} with hold: measured would send a position as a velocity; hold: zero would be "
            "right, or kind: joint_position",
        )


class TaskInterface(Contract, frozen=True, kw_only=True):
    """Time-outs of the policy's side.

    Attributes:
        heartbeat_timeout_s: without a sign of life of the policy for this long, the controller holds.
        chunk_timeout_s: an action chunk whose observation is older than this is never executed.
        recover_s: the controller may leave *hold* by itself when fresh data comes within this time; after it, only an
            explicit reset does.
        ramp_s: once it may act, the command goes over from where the robot rests to what the policy wants in this time.
        stand_up_s: before that, the joints are led from where they are to `home` over this time; 0: they are not.
        max_tilt_rad: a trunk that leans further from upright has fallen: the controller falls back at once, and only an
            explicit reset leads out. Needs an Imu; None: nobody watches.
    """

    heartbeat_timeout_s: float
    chunk_timeout_s: float
    recover_s: float
    ramp_s: float
    stand_up_s: float = 0.0
    max_tilt_rad: float | None = None

    def __post_init__(self) -> None:
        values = (self.heartbeat_timeout_s, self.chunk_timeout_s, self.recover_s, self.ramp_s, self.stand_up_s)
        require_finite("a time-out", *values)
        require(min(values[:2]) > 0 and min(values) >= 0, "time-outs must be positive")
        if self.max_tilt_rad is not None:
            require_finite("max_tilt_rad", self.max_tilt_rad)
            require(0 < self.max_tilt_rad < math.pi, f"max_tilt_rad {self.max_tilt_rad} is not within (0, pi)")


class RobotContract(Contract, frozen=True, kw_only=True):
    """A robot, simulated or real: the whole of what the rest of the stack may know of it.

    Attributes:
        name: of the robot, the same for all of its model; also its ROS namespace, unless it is given another.
        body: what simulates it (`metaworld`; `quadruped`: `sim.legged`), or `external` for a real one.
        control_rate_hz: commands a second.
        joint_names: in the order of the robot's own description (URDF or MJCF).
        home: joint positions of the safe starting pose, rad or m, one a joint.
        sensors, cameras: what it measures.
        observation_sets: named lists of what a policy may see: for each set, feature key -> sensor fields in order, or
            a camera's name for `observation.images.<camera>`.
        command: what it obeys.
        task: time-outs of the policy's side.
        source: where the figures come from.
    """

    name: str
    body: Literal["metaworld", "quadruped", "external"]
    control_rate_hz: float
    joint_names: tuple[str, ...]
    home: tuple[float, ...]
    sensors: tuple[Sensor, ...]
    cameras: tuple[Camera, ...] = ()
    observation_sets: dict[str, dict[str, tuple[str, ...]]]
    command: CommandInterface
    task: TaskInterface
    source: str

    def __post_init__(self) -> None:
        require(self.name.isidentifier(), f"robot name {self.name!r} is not a valid ROS name")
        require_finite("control_rate_hz", self.control_rate_hz)
        require(0 < self.control_rate_hz <= 2000, f"control_rate_hz {self.control_rate_hz} is not within (0, 2000]")
        require_unique("joint", self.joint_names)
        require(len(self.home) == len(self.joint_names), "home needs one position a joint")
        require_finite("a home position", *self.home)
        require_unique("sensor", tuple(s.name for s in self.sensors))
        require_unique("camera", tuple(c.name for c in self.cameras))
        require_unique("sensor field", tuple(f for s in self.sensors for f in s.fields))
        joints = [sensor for sensor in self.sensors if sensor.type == JOINT_STATE]  # these may share one topic
        others = [sensor for sensor in self.sensors if sensor.type != JOINT_STATE]
        topics: tuple[Sensor | Camera | CommandInterface, ...] = (*others, *self.cameras, self.command)
        require_unique("topic", (*{sensor.topic for sensor in joints}, *(t.topic for t in topics)))
        units = self.field_units
        for channel in self.command.channels:
            if channel.measured_by is not None:
                require(
                    channel.measured_by in units,
                    f"channel {channel.name!r}: no sensor has the field {channel.measured_by!r}",
                )
        if self.task.max_tilt_rad is not None:
            self.orientation_fields  # noqa: B018 - raises where there are none
        if self.task.stand_up_s:
            self.home_command  # noqa: B018 - raises where there is none
        for set_name in self.observation_sets:
            self.observation_features(set_name)

    @property
    def orientation_fields(self) -> tuple[str, ...]:
        """The fields x y z w of the trunk's orientation, of the robot's one Imu. Raises ContractError: it has none."""
        imus = [sensor for sensor in self.sensors if sensor.type == IMU]
        require(len(imus) == 1, f"max_tilt_rad needs one Imu; robot {self.name!r} has {len(imus)}")
        return imus[0].fields[:4]

    @property
    def home_command(self) -> tuple[float, ...]:
        """The command that leads to `home`, a position a channel; only of a robot whose channels are joint positions.

        Raises:
            ValueError: they are not, or `home` is out of a channel's range.
        """
        require(self.command.kind == "joint_position", f"{self.command.kind} commands lead to no pose")
        home = dict(zip(self.joint_names, self.home, strict=True))
        for channel in self.command.channels:
            joint = channel.measured_by or channel.name
            require(joint in home, f"channel {channel.name!r}: {joint!r} is no joint of the robot")
            low, high = channel.min, channel.max
            inside = low <= home[joint] <= high
            require(inside, f"channel {channel.name!r}: home {home[joint]} is not within [{low}, {high}]")
        return tuple(home[channel.measured_by or channel.name] for channel in self.command.channels)

    @property
    def control_period_s(self) -> float:
        """Seconds between two commands."""
        return 1.0 / self.control_rate_hz

    @property
    def field_units(self) -> dict[str, str]:
        """Unit of every sensor field."""
        return {f: u for s in self.sensors for f, u in zip(s.fields, s.units, strict=True)}

    @property
    def action_feature(self) -> Feature:
        """The command as the policy's `action`."""
        channels = self.command.channels
        return vector("action", tuple(c.name for c in channels), tuple(c.unit for c in channels))

    def camera(self, name: str) -> Camera:
        """The camera of that name. Raises ValueError naming those there are."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise ValueError(f"robot {self.name!r} has no camera {name!r}; it has {[c.name for c in self.cameras]}")

    def observation_features(self, set_name: str) -> tuple[Feature, ...]:
        """The features of one observation set, in order.

        Raises:
            ValueError: no such set, or it names a field or camera that the robot does not have.
        """
        if set_name not in self.observation_sets:
            raise ValueError(
                f"robot {self.name!r} has no observation set {set_name!r}; it has {sorted(self.observation_sets)}"
            )
        features = []
        units = self.field_units
        for key, fields in self.observation_sets[set_name].items():
            if key.startswith("observation.images."):
                require(len(fields) == 1, f"{set_name}.{key}: name one camera")
                require(
                    key == "observation.images." + fields[0],
                    f"{set_name}.{key}: shows camera {fields[0]!r}; the key must end with its name",
                )
                camera = self.camera(fields[0])
                features.append(image(camera.name, camera.height, camera.width))
                continue
            for field in fields:
                require(field in units, f"{set_name}.{key}: no sensor has the field {field!r}")
            features.append(vector(key, fields, tuple(units[f] for f in fields)))
        return tuple(features)


def available_robots() -> tuple[str, ...]:
    """Names of the contracts that come with the project."""
    return tuple(
        sorted(p.name.removesuffix(".yaml") for p in resources.files("robots").iterdir() if p.name.endswith(".yaml"))
    )


def load_robot(name_or_path: str | Path) -> RobotContract:
    """A robot's contract, by the name of one that comes with the project or by the path of a YAML file.

    Raises:
        ContractError: there is no such robot, or its contract is not valid.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml", ".json"}:
        return RobotContract.load(path)
    if str(name_or_path) not in available_robots():
        raise ContractError(
            f"no robot {str(name_or_path)!r}: there are {', '.join(available_robots())}; or give a .yaml file's path"
        )
    with resources.as_file(resources.files("robots") / f"{name_or_path}.yaml") as file:
        return RobotContract.load(file)


def _check_timing(what: str, rate_hz: float, timeout_s: float) -> None:
    require_finite(f"{what}: a rate or time-out", rate_hz, timeout_s)
    require(0 < rate_hz <= 10_000, f"{what}: rate_hz {rate_hz} is not within (0, 10000]")
    require(0 < timeout_s <= 60, f"{what}: timeout_s {timeout_s} is not within (0, 60]")
