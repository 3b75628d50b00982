"""What these tools tell a person when they cannot go on: one line, with the remedy where there is one.

ClusterError          something outside this program is missing or failed
|- Unsupported        this kind of cluster cannot do what was asked
`- Interrupted        the person, or the machine, asked to stop
"""


class ClusterError(Exception):
    """A part that is needed is missing, ended or did not answer in time."""


class Unsupported(ClusterError):
    """The cluster in use (kind, or one that was there already) has no such operation."""


class Interrupted(ClusterError):
    """Ctrl-C or SIGTERM arrived; what was being made has been removed."""
