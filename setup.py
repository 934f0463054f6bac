"""The same tree as a ROS 2 package (ament_python): what colcon installs beside the packages of pyproject.toml."""

from pathlib import Path

from setuptools import setup


def _files(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path().glob(pattern))


setup(
    # colcon, or the setuptools of a ROS distribution, cannot read these from pyproject.toml; all else stands there.
    name="visuomotor",
    python_requires=">=3.11,<3.14",
    license="Apache-2.0",
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/visuomotor"]),
        ("share/visuomotor", ["package.xml"]),
        ("share/visuomotor/launch", _files("launch/*.launch.py")),
        ("share/visuomotor/robots", _files("robots/*.yaml")),
    ],
)
