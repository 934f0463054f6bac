"""What decides: imitation policies, what they share, their training, export and torch-free runtime.

Import the module you need; this file stays empty so that a robot which loads `policies.runtime` never pays for torch.
"""
