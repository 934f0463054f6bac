"""A bundle's files: what must be there, and that nothing of it was damaged on the way to the robot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from contracts import PolicyContract, RobotContract
from contracts.serialization import MAX_CONTRACT_BYTES, Contract, ContractError, require
from policies.runtime.errors import BundleError
from policies.runtime.sampler import Sampler, sampler_from_json

MANIFEST_FILE = "manifest.json"
CONTRACT_FILE = "contract.json"
ROBOT_FILE = "robot.json"
SAMPLER_FILE = "sampler.json"
CARD_FILE = "README.md"  # the model card; not in the manifest, because people edit it
FORMAT = 1
MAX_MANIFEST_FILES = 100


class FileRecord(Contract, frozen=True, kw_only=True):
    """Size in bytes and SHA-256, in hexadecimal, of one file."""

    bytes: int
    sha256: str


class Manifest(Contract, frozen=True, kw_only=True):
    """`manifest.json`, written last.

    Attributes:
        format: version of the layout of bundles.
        files: name -> record of everything that the runtime reads.
    """

    format: int
    files: dict[str, FileRecord]

    def __post_init__(self) -> None:
        require(self.format == FORMAT, f"bundle format {self.format} is not known; this version reads {FORMAT}")
        require(len(self.files) <= MAX_MANIFEST_FILES, f"{len(self.files)} files are too many")
        for name in self.files:
            require(Path(name).name == name and name not in {".", ".."}, f"{name!r} is not a plain file name")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are whole.

    Attributes:
        path: its directory.
        contract: what the policy sees and gives.
        robot: contract of the robot that it is for.
        sampler: how its graphs become actions.
        graphs: name -> the bytes of an ONNX file.
    """

    path: Path
    contract: PolicyContract
    robot: RobotContract
    sampler: Sampler
    graphs: dict[str, bytes]


def is_bundle(path: Path | str) -> bool:
    """True for a directory that holds a bundle's manifest."""
    return (Path(path) / MANIFEST_FILE).is_file()


def write_manifest(path: Path) -> None:
    """Record every file of the directory but the model card."""
    names = sorted(p.name for p in path.iterdir() if p.is_file() and p.name not in {MANIFEST_FILE, CARD_FILE})
    manifest = Manifest(format=FORMAT, files={name: _record((path / name).read_bytes()) for name in names})
    (path / MANIFEST_FILE).write_text(manifest.to_json() + "\n", encoding="utf-8")


def not_of_the_bundle(path: Path) -> list[str]:
    """Names of what lies in a directory and was not put there by an export; all of it where there is no manifest.

    Raises:
        BundleError: the manifest cannot be read.
    """
    own: set[str] = set()
    if is_bundle(path):
        try:
            own = {MANIFEST_FILE, CARD_FILE, *Manifest.load(path / MANIFEST_FILE).files}
        except ContractError as error:
            raise BundleError(str(error)) from None
    return sorted(entry.name for entry in path.iterdir() if entry.name not in own or entry.is_dir())


def read_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle.

    Raises:
        BundleError: a file is missing, damaged or not what it should be.
    """
    path = Path(path)
    if not is_bundle(path):
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST_FILE}; `visuomotor export` makes one")
    try:
        manifest = Manifest.load(path / MANIFEST_FILE)
        files = {name: _checked(path / name, record) for name, record in manifest.files.items()}
        contract = PolicyContract.from_json(_file(path, files, CONTRACT_FILE), str(path / CONTRACT_FILE))
        robot = RobotContract.from_json(_file(path, files, ROBOT_FILE), str(path / ROBOT_FILE))
    except ContractError as error:
        raise BundleError(str(error)) from None
    try:
        sampler = sampler_from_json(_file(path, files, SAMPLER_FILE))
    except (ValueError, msgspec.DecodeError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path / SAMPLER_FILE}: {error}") from None
    graphs = {name.removesuffix(".onnx"): data for name, data in files.items() if name.endswith(".onnx")}
    return Bundle(path=path, contract=contract, robot=robot, sampler=sampler, graphs=graphs)


def _checked(path: Path, record: FileRecord) -> bytes:
    """The bytes of one file, if they are those that were written."""
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise BundleError(f"{path}: has {size} bytes, must have {record.bytes}; copy the bundle again")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); copy the bundle again") from None
    if _record(data) != record:
        raise BundleError(f"{path}: is damaged (its SHA-256 is not the manifest's); copy the bundle again")
    return data


def _file(path: Path, files: dict[str, bytes], name: str) -> bytes:
    if name not in files:
        raise BundleError(f"{path / MANIFEST_FILE}: lists no {name}")
    if len(files[name]) > MAX_CONTRACT_BYTES:
        raise BundleError(f"{path / name}: {len(files[name])} bytes is more than {MAX_CONTRACT_BYTES}")
    return files[name]


def _record(data: bytes) -> FileRecord:
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
