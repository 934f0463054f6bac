"""From separate, late, differently fast sensors to what a policy looks at."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts import Feature, PolicyContract, RobotContract
from contracts.feature import IMAGE_PREFIX

NANOSECONDS = 1_000_000_000


class NotReady(Exception):
    """There is no complete, fresh observation now; `reason` says what is missing or stale."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Observation:
    """What a policy sees at `stamp_ns`: key -> [history, *feature.shape], newest last."""

    stamp_ns: int
    values: dict[str, NDArray[Any]]


class _Samples:
    """The latest samples of one source, in the order of their stamps, as far back as anyone looks."""

    def __init__(self, what: str, timeout_s: float, reach_s: float) -> None:
        self.what = what
        self.timeout_ns = round(timeout_s * NANOSECONDS)
        self._reach_ns = round(reach_s * NANOSECONDS)
        self._samples: deque[tuple[int, NDArray[Any]]] = deque()

    def push(self, stamp_ns: int, value: NDArray[Any]) -> bool:
        if self._samples and stamp_ns <= self._samples[-1][0]:
            return False
        self._samples.append((stamp_ns, value))
        while len(self._samples) > 1 and self._samples[1][0] <= stamp_ns - self._reach_ns:
            self._samples.popleft()
        return True

    def newest_ns(self, now_ns: int) -> int:
        if not self._samples:
            raise NotReady(f"{self.what} has not come yet")
        stamp_ns = self._samples[-1][0]
        if now_ns - stamp_ns > self.timeout_ns:
            age, limit = (now_ns - stamp_ns) / 1e6, self.timeout_ns / 1e6
            raise NotReady(f"{self.what} is stale: {age:.1f} ms old, at most {limit:.1f} ms are allowed")
        return stamp_ns

    def nearest(self, stamp_ns: int) -> NDArray[Any]:
        """The sample nearest in time; of two equally near, the older."""
        best, best_distance = self._samples[-1][1], abs(self._samples[-1][0] - stamp_ns)
        for sample_ns, value in reversed(self._samples):
            distance = abs(sample_ns - stamp_ns)
            if distance > best_distance:
                break
            best, best_distance = value, distance
        return best

    def in_force(self, stamp_ns: int) -> NDArray[Any] | None:
        """The newest sample at `stamp_ns` or before; None where that is older than the time-out, or there is none."""
        for sample_ns, value in reversed(self._samples):
            if sample_ns <= stamp_ns:
                return value if stamp_ns - sample_ns <= self.timeout_ns else None
        return None

    def clear(self) -> None:
        self._samples.clear()


class ObservationAssembler:
    """Collects what sensors, cameras or a simulator give, and makes observations with histories of it.

    What is asked of the robot (`Sensor.is_request`) is not waited for: its fields are what is in force at each time,
    and 0 where nothing is.

    Not thread-safe. All stamps and `now_ns` are on one clock of the caller's.
    """

    def __init__(self, robot: RobotContract, policy: PolicyContract) -> None:
        """
        Args:
            robot: what is measured.
            policy: what is looked at; its observations must all be in the robot's observation set of that name.

        Raises:
            ValueError: the robot does not offer one of the policy's observations, or the policy measures nothing.
        """
        self._policy = policy
        self._period_ns = round(policy.action_period_s * NANOSECONDS)
        self._observed = {o.feature.key: o.feature for o in policy.observations}
        offered = robot.observation_sets.get(policy.observation_set, {})
        missing = [key for key in self._observed if key not in offered]
        if missing:
            raise ValueError(f"robot {robot.name!r} does not offer {missing} in its set {policy.observation_set!r}")
        sensor_of = {field: sensor for sensor in robot.sensors for field in sensor.fields}
        longest_s = max([s.timeout_s for s in robot.sensors] + [c.timeout_s for c in robot.cameras])
        reach_s = longest_s + policy.action_period_s * (max(o.history for o in policy.observations) + 1)
        self.sensors = tuple(
            sensor
            for sensor in robot.sensors
            if any(set(f.names) & set(sensor.fields) for f in self._observed.values() if not f.is_image)
        )
        self.cameras = tuple(robot.camera(f.camera) for f in self._observed.values() if f.is_image)
        self._fields = {s.name: s.fields for s in self.sensors}
        self._from_sensors = {s.name: _Samples(f"sensor {s.name!r}", s.timeout_s, reach_s) for s in self.sensors}
        self._requests = {id(self._from_sensors[s.name]) for s in self.sensors if s.is_request}
        if all(s.is_request for s in self.sensors) and not self.cameras:
            raise ValueError("the policy looks at nothing that is measured")
        self._from_features: dict[str, _Samples] = {}
        self._parts: dict[str, list[tuple[_Samples, int]]] = {}  # of a vector: where each element comes from
        for key, feature in self._observed.items():
            if feature.is_image:
                timeout_s = robot.camera(feature.camera).timeout_s
                what = f"camera {feature.camera!r}"
            else:
                sources = [sensor_of[name] for name in feature.names]
                timeout_s = min(s.timeout_s for s in sources)
                what = key
                self._parts[key] = [
                    (self._from_sensors[s.name], s.fields.index(n)) for s, n in zip(sources, feature.names, strict=True)
                ]
            self._from_features[key] = _Samples(what, timeout_s, reach_s)
        self._whole: set[str] = {key for key, feature in self._observed.items() if feature.is_image}

    def push_fields(self, sensor: str, stamp_ns: int, names: Sequence[str], values: Sequence[float]) -> bool:
        """Take one measurement of a sensor; fields are found by name, others are ignored.

        Returns:
            False if it was dropped: not newer than the last one, or nothing that the policy looks at.

        Raises:
            ValueError: a field is missing or not finite.
        """
        fields = self._fields.get(sensor)
        if fields is None:
            return False
        given = dict(zip(names, values, strict=True))
        missing = [field for field in fields if field not in given]
        if missing:
            raise ValueError(f"sensor {sensor!r}: {missing} missing; there are {list(given)}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            value = np.array([given[field] for field in fields], dtype=np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f"sensor {sensor!r}: not finite: {dict(zip(fields, value.tolist(), strict=True))}")
        return self._from_sensors[sensor].push(stamp_ns, value)

    def push_image(self, camera: str, stamp_ns: int, image: NDArray[np.uint8]) -> bool:
        """Take one picture, uint8 [height, width, 3]. Returns and raises as `push_feature`."""
        return self.push_feature(IMAGE_PREFIX + camera, stamp_ns, image)

    def push_feature(self, key: str, stamp_ns: int, value: NDArray[Any]) -> bool:
        """Take one whole feature as a simulator gives it; from then on the sensors do not count for it.

        Returns:
            False if it was dropped: not newer than the last one, or nothing that the policy looks at.

        Raises:
            ValueError: wrong shape, wrong dtype of an image, or not finite.
        """
        feature = self._observed.get(key)
        if feature is None:
            return False
        accepted = self._from_features[key].push(stamp_ns, _checked(feature, value))
        self._whole.add(key)
        return accepted

    def stamp_ns(self, now_ns: int) -> int:
        """Stamp of the observation that `window` would give: the newest instant for which every feature is known.

        Raises:
            NotReady: a feature is missing or stale.
        """
        stamps = []
        for key in self._observed:
            sources = [self._from_features[key]] if key in self._whole else [samples for samples, _ in self._parts[key]]
            stamps += [samples.newest_ns(now_ns) for samples in sources if id(samples) not in self._requests]
        return min(stamps)

    def window(self, now_ns: int) -> Observation:
        """The observation at `stamp_ns(now_ns)`, each feature with its history, `action_period_s` apart.

        A history value is the sample nearest in time; before the first sample of an episode, the first is repeated. Of
        a request it is the newest that had been received by then.

        Raises:
            NotReady: a feature is missing or stale.
        """
        stamp_ns = self.stamp_ns(now_ns)
        values = {}
        for observation in self._policy.observations:
            times = [stamp_ns - i * self._period_ns for i in range(observation.history - 1, -1, -1)]
            values[observation.feature.key] = np.stack([self._value(observation.feature, t) for t in times])
        return Observation(stamp_ns, values)

    def reset(self) -> None:
        """Forget everything: a new episode begins."""
        for samples in (*self._from_sensors.values(), *self._from_features.values()):
            samples.clear()

    def _value(self, feature: Feature, stamp_ns: int) -> NDArray[Any]:
        if feature.key in self._whole:
            return self._from_features[feature.key].nearest(stamp_ns)
        parts = self._parts[feature.key]
        values = {id(samples): self._at(samples, stamp_ns) for samples, _ in parts}
        return np.array([0.0 if (v := values[id(samples)]) is None else v[i] for samples, i in parts], dtype=np.float32)

    def _at(self, samples: _Samples, stamp_ns: int) -> NDArray[Any] | None:
        return samples.in_force(stamp_ns) if id(samples) in self._requests else samples.nearest(stamp_ns)


def _checked(feature: Feature, value: NDArray[Any]) -> NDArray[Any]:
    """A private copy in the feature's own dtype."""
    value = np.asarray(value)
    if value.shape != feature.shape:
        raise ValueError(f"{feature.key}: shape {value.shape}; the contract says {feature.shape}")
    if feature.is_image:
        if value.dtype != np.uint8:
            raise ValueError(f"{feature.key}: dtype {value.dtype}; an image is uint8")
        return value.copy()
    with np.errstate(over="ignore"):
        value = np.array(value, dtype=np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f"{feature.key}: not finite: {value.tolist()}")
    return value
