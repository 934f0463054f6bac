"""What runs on the robot: bundles, without torch.

`Runtime.load(bundle).start(seed).act(observation)` gives an `ActionChunk`.
"""

from policies.runtime.errors import BundleError, PolicyOutputError
from policies.runtime.runtime import Runtime
from policies.runtime.sessions import Session

__all__ = ["BundleError", "PolicyOutputError", "Runtime", "Session"]
