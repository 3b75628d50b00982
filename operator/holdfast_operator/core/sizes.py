"""Which numbers of workers a job may train with (`spec.elastic`), and for which workers it has pods. Of the spec and the attempt alone.

Without `spec.elastic` there is one number, `spec.workers`, and a pod for each.
"""

from itertools import islice

from holdfast_operator.crd.v1alpha1 import AttemptStatus, TrainingJobSpec


def most(spec: TrainingJobSpec) -> int:
    """Workers are numbered below it."""
    elastic = spec.elastic
    return max(spec.workers, elastic.max_workers or 0) if elastic is not None else spec.workers


def allowed(spec: TrainingJobSpec) -> tuple[int, ...]:
    """In ascending order. With a global batch only those of which every rank has the same share of it."""
    if spec.elastic is None:
        return (spec.workers,)
    batch = global_batch(spec)
    between = range(min(spec.elastic.min_workers, spec.workers), most(spec) + 1)
    found = tuple(n for n in between if batch % (n * spec.processes_per_worker) == 0)
    return found or (spec.workers,)  # what admission refuses: as if nothing had been said


def global_batch(spec: TrainingJobSpec) -> int:
    """Samples of an update, of all ranks together; 0: nobody has said it."""
    return (spec.elastic.global_batch or 0) if spec.elastic is not None else 0


def wanted(spec: TrainingJobSpec, attempt: AttemptStatus | None) -> tuple[int, ...]:
    """The workers that there are pods for, running or to come: those of the attempt, and as many more as the next greater number needs: no more machines
    stand idle than can be made use of."""
    if attempt is None:
        return tuple(range(most(spec)))
    members = {m.worker for m in attempt.members}
    greater = next((n for n in allowed(spec) if n > len(members)), len(members))
    others = (w for w in range(most(spec)) if w not in members)
    return tuple(sorted((*members, *islice(others, greater - len(members)))))


def beside(spec: TrainingJobSpec, attempt: AttemptStatus) -> frozenset[int]:
    """Wanted, and not in the attempt: their pods start, and wait until the job can go on with them."""
    return frozenset(wanted(spec, attempt)) - {m.worker for m in attempt.members}


def is_beside(attempt: AttemptStatus | None, worker: int) -> bool:
    """The attempt does without it."""
    return attempt is not None and all(m.worker != worker for m in attempt.members)
