"""Who announces what: the prefixes of `Notice.source`, from the strongest to the weakest. The strongest source of several names the cause (F1).

A name such as `taint:karpenter.sh/disrupted` says where to look for what has been announced. Operator and agents read the same order, so that the status of a
job and the commit record of its checkpoint name the same cause.
"""

NODE = ("notifier:", "condition:", "taint:", "label:", "annotation:", "event:", "node:")
"""What is said of a machine; all of it is equally strong."""
DISRUPTION_TARGET = "pod:DisruptionTarget"
DELETION = "pod:deletionTimestamp"
SIGTERM = "signal:SIGTERM"

RESIZE = "operator:resize"
"""The job is to go on with more workers: everybody saves and stands still for the next attempt, and nobody goes. It is about worker NOBODY."""
NOBODY = -1

READ_BY_OPERATOR = (*NODE, "pod:")
"""What the operator reads by itself. An agent that repeats it adds nothing."""


def strength(source: str) -> int:
    """Smaller is stronger: the machine's own announcements, then what a controller says of the pod, then its deletion, then a signal, then anything else."""
    if source.startswith(NODE):
        return 0
    for rank, prefix in enumerate((DISRUPTION_TARGET, DELETION, "signal:"), 1):
        if source.startswith(prefix):
            return rank
    return 4
