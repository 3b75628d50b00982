"""Errors that a rank of any kind meets."""


class HoldfastError(Exception):
    """Base of everything that is raised to training scripts for reasons outside the caller's code; wrong arguments raise ValueError or TypeError."""


class LinkLost(HoldfastError):
    """The connection to the agent broke while an answer was awaited."""
