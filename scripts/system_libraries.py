"""Find out whether this machine can render without a screen, before an hour of work ends in a stack trace.

MuJoCo renders through EGL or OSMesa, which are system libraries. Where both are missing they are installed (root and
apt at hand) or the command that installs them is named. Needs nothing but Python.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

APT_PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri", "libosmesa6")
INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", *APT_PACKAGES)


def backend() -> str | None:
    """The first rendering backend (a value of MUJOCO_GL) whose libraries load, or None."""
    for name, libraries in {"egl": ("libEGL.so.1", "libGL.so.1"), "osmesa": ("libOSMesa.so.8",)}.items():
        try:
            for library in libraries:
                ctypes.CDLL(library)
        except OSError:
            continue
        return name
    return None


def main() -> int:
    """0 when rendering works or was made to work; 1 with the exact command otherwise."""
    if backend():
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("neither EGL nor OSMesa is installed: installing", " ".join(APT_PACKAGES), flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run([*INSTALL], check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        if backend():
            return 0
    print(
        "MuJoCo cannot render here: neither libEGL.so.1 nor libOSMesa.so.8 loads. Install them, for example with\n"
        f"    sudo {' '.join(INSTALL)}\n"
        "and run this command again.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
