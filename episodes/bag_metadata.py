"""metadata.yaml: what makes a directory of MCAP files a rosbag2 bag (version 8: Iron and newer read it)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from episodes.files import write_atomic

NAME = "metadata.yaml"
VERSION = 8
NEWEST_VERSION = 9  # that is known to be read
QOS_TIMES = ("deadline", "lifespan", "liveliness_lease_duration")
NEVER_NS = 2**63 - 1  # rosbag2's starting time of a bag without a message
ROBOT_KEY = "visuomotor.robot"  # custom_data: the robot's contract as JSON
MAX_BYTES = 10_000_000


@dataclass
class FileSummary:
    """One file of the bag: its name, the time of its first and last message (ns), messages of each topic."""

    name: str
    start_ns: int = 0
    end_ns: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def message_count(self) -> int:
        """Messages of all topics."""
        return sum(self.counts.values())


def write_metadata(
    directory: Path, topics: Sequence[tuple[str, str, str]], files: Sequence[FileSummary], custom: dict[str, str]
) -> None:
    """Put metadata.yaml in place, all or nothing; `topics` are (name, type, qos yaml)."""
    text = yaml.safe_dump(metadata(topics, files, custom), sort_keys=False, width=1000)
    write_atomic(directory / NAME, text.encode())


def metadata(
    topics: Sequence[tuple[str, str, str]], files: Sequence[FileSummary], custom: dict[str, str]
) -> dict[str, Any]:
    """The content of metadata.yaml as plain data."""
    filled = [file for file in files if file.message_count]
    start = min((file.start_ns for file in filled), default=NEVER_NS)
    end = max((file.end_ns for file in filled), default=NEVER_NS)
    return {
        "rosbag2_bagfile_information": {
            "version": VERSION,
            "storage_identifier": "mcap",
            "duration": {"nanoseconds": end - start},
            "starting_time": {"nanoseconds_since_epoch": start},
            "message_count": sum(file.message_count for file in files),
            "topics_with_message_count": [
                {
                    "topic_metadata": {
                        "name": name,
                        "type": type_name,
                        "serialization_format": "cdr",
                        "offered_qos_profiles": qos,
                        "type_description_hash": "",
                    },
                    "message_count": sum(file.counts.get(name, 0) for file in files),
                }
                for name, type_name, qos in topics
            ],
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [file.name for file in files],
            "files": [
                {
                    "path": file.name,
                    "starting_time": {"nanoseconds_since_epoch": file.start_ns if file.message_count else NEVER_NS},
                    "duration": {"nanoseconds": file.end_ns - file.start_ns},
                    "message_count": file.message_count,
                }
                for file in files
            ],
            "custom_data": custom,
            "ros_distro": "",
        }
    }


def read_metadata(directory: Path) -> dict[str, Any] | None:
    """What stands in metadata.yaml, or None where it is missing or not readable: the files themselves know the rest."""
    try:
        if (directory / NAME).stat().st_size > MAX_BYTES:
            return None
        content = yaml.safe_load((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError):
        return None
    information = content.get("rosbag2_bagfile_information") if isinstance(content, dict) else None
    return content if isinstance(information, dict) else None


def usable_qos(text: str) -> str:
    """The text if rosbag2 can read it as quality of service, else nothing, which it takes for the default."""
    try:
        profiles = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return ""
    if not isinstance(profiles, list):
        return ""
    for profile in profiles:
        if not isinstance(profile, dict) or not set(QOS_TIMES) <= set(profile):
            return ""
        times = [profile[key] for key in QOS_TIMES]
        if not {"depth", "avoid_ros_namespace_conventions"} <= set(profile):
            return ""
        if not all(isinstance(time, dict) and {"sec", "nsec"} <= set(time) for time in times):
            return ""
    return text


def custom_data(content: dict[str, Any] | None) -> dict[str, str]:
    """The custom_data of what `read_metadata` gave; only text is kept."""
    found = (content or {}).get("rosbag2_bagfile_information", {}).get("custom_data")
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, str)}


def listed_topics(content: dict[str, Any] | None) -> dict[str, tuple[str, str]]:
    """Name -> (type, qos yaml) of the topics in what `read_metadata` gave; nothing where it is damaged."""
    try:
        return {
            str(name): (str(topic["type"]), usable_qos(topic["offered_qos_profiles"]))
            for name, topic in (_topics(content) if content else {}).items()
            if isinstance(topic["offered_qos_profiles"], str)
        }
    except (KeyError, TypeError, AttributeError):
        return {}


def agrees(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """True if a metadata.yaml, whichever program wrote it, says the same of the files as `wanted`."""
    try:
        return _said(found) == _said(wanted) and _qos_agrees(found, wanted)
    except (KeyError, TypeError, AttributeError, ValueError):
        return False  # an entry is missing or is not what it should be


def _topics(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    entries = content["rosbag2_bagfile_information"]["topics_with_message_count"]
    return {
        entry["topic_metadata"]["name"]: entry["topic_metadata"] | {"count": entry["message_count"]}
        for entry in entries
    }


def _said(content: dict[str, Any]) -> object:
    """What readers go by, in a form that is the same for every version of the format."""
    information = content["rosbag2_bagfile_information"]
    count, span = information["message_count"], (information["starting_time"], information["duration"])
    return (
        1 <= information["version"] <= NEWEST_VERSION,
        information["storage_identifier"],
        information.get("compression_mode", "").lower() in ("", "none"),
        [Path(name).name for name in information["relative_file_paths"]],
        {
            name: (topic["type"], topic["serialization_format"], topic["count"])
            for name, topic in _topics(content).items()
        },
        count,
        span if count else None,
    )


def _qos_agrees(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Up to version 8 the quality of service is text, the same as in the files; rosbags pairs the two by it."""
    known = _topics(wanted)
    for name, topic in _topics(found).items():
        profiles = topic.get("offered_qos_profiles", "")
        if isinstance(profiles, str) and (
            usable_qos(profiles) != profiles
            or yaml.safe_load(profiles) != yaml.safe_load(known[name]["offered_qos_profiles"])
        ):
            return False
    return True
