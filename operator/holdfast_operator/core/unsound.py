"""What is done when something was found in a checkpoint of the attempt that trains: NaN or infinite values, copies of one state that differ (C4, J4).

The checkpoint is kept, and no start continues it while a better one is left; that is the store's rule (holdfast_api.soundness), whatever the policy. The policy
(`spec.validation.onUnsound`) says what becomes of the attempt: it trains on; or it ends and the next one goes back at once; or it makes a last checkpoint and
nothing runs until a person has decided.

Going back over and over helps nobody: from the same checkpoint it is done a few times, then the job stops.
"""

from datetime import datetime

from holdfast_api import soundness
from holdfast_api.soundness import Grade
from holdfast_operator.core import quarantine
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.progress import start_order
from holdfast_operator.crd.v1alpha1 import (
    CheckpointStatus,
    OnUnsound,
    RollBackStatus,
    StopStatus,
    Suspect,
    TrainingJobStatus,
)

MOST_ROLL_BACKS = 3
"""In a row to the same checkpoint: what fails three times will fail a fourth time."""


def grade_of(seen: Observed, status: TrainingJobStatus, checkpoint: CheckpointStatus) -> Grade:
    """As a start of this job sees it: what a person trusts is sound, and so are copies that differ where they are accepted."""
    found = soundness.grade(checkpoint, damaged=bool(checkpoint.damaged))
    accepted = found is Grade.SUSPECT and seen.spec.validation.suspect is Suspect.ACCEPT
    return Grade.SOUND if accepted or checkpoint.name in quarantine.trusted(status) else found


def goes_back_to(seen: Observed, status: TrainingJobStatus) -> CheckpointStatus | None:
    """What the next start continues, as far as the operator knows; None before the first checkpoint."""
    newest_first = reversed(status.checkpoints)
    return min(newest_first, key=lambda c: grade_of(seen, status, c), default=None)


def found(seen: Observed, status: TrainingJobStatus) -> CheckpointStatus | None:
    """The newest checkpoint, if the current attempt has made it, something was found in it, and there is a sound one to go back to or a person to ask."""
    newest, attempt = status.last_checkpoint, status.attempt
    if newest is None or attempt is None or attempt.first_step_at is None:
        return None
    own = newest.name.startswith(f"{attempt.number}/")
    # Damage in the store says nothing about the state that trains: the next save writes it anew.
    return newest if own and grade_of(seen, status, newest) in (Grade.SUSPECT, Grade.NOT_FINITE) else None


def sound_before(seen: Observed, status: TrainingJobStatus) -> CheckpointStatus | None:
    target = goes_back_to(seen, status)
    return target if target is not None and grade_of(seen, status, target) is Grade.SOUND else None


def rolls_back(seen: Observed, status: TrainingJobStatus) -> CheckpointStatus | None:
    """The checkpoint because of which the attempt ends now, or None."""
    wrong = found(seen, status)
    if wrong is None or seen.spec.validation.on_unsound is not OnUnsound.ROLL_BACK or status.stop is not None:
        return None
    target = sound_before(seen, status)
    return wrong if target is not None and _times(status, target.name) < MOST_ROLL_BACKS else None


def rolled_back(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Counts a return that has just been decided."""
    target = sound_before(seen, status)
    if target is None:
        return status
    counted = RollBackStatus(to=target.name, times=_times(status, target.name) + 1)
    return status.model_copy(update={"roll_back": counted})


def update(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Begins a stop, and ends it when a person has decided: another policy, a checkpoint that is trusted or accepted, another place to start from."""
    if status.stop is not None:
        return status if _stands(seen, status, status.stop) else status.model_copy(update={"stop": None})
    wrong = found(seen, status)
    policy = seen.spec.validation.on_unsound
    if wrong is None or policy is OnUnsound.CONTINUE or rolls_back(seen, status) is not None:
        return status
    if policy is OnUnsound.ROLL_BACK and sound_before(seen, status) is None:
        return status  # nowhere to go back to: a new attempt would continue the same
    stop = StopStatus(
        checkpoint=wrong.name,
        since=now,
        policy=policy,
        order=start_order(seen),
        message=_message(seen, status, wrong),
    )
    return status.model_copy(update={"stop": stop})


def what(checkpoint: CheckpointStatus) -> str:
    """What was found, in words."""
    if checkpoint.finite is False:
        return f"{', '.join(checkpoint.not_finite) or 'trained state'} holds NaN or infinite values"
    if not checkpoint.suspect:
        return f"bytes in the store are not what they were: {checkpoint.damaged}"
    return f"copies of one state differ: {checkpoint.suspect}"


def _times(status: TrainingJobStatus, to: str) -> int:
    return status.roll_back.times if status.roll_back is not None and status.roll_back.to == to else 0


def _stands(seen: Observed, status: TrainingJobStatus, stop: StopStatus) -> bool:
    if seen.spec.validation.on_unsound is not stop.policy or start_order(seen) != stop.order:
        return False
    checkpoint = next((c for c in status.checkpoints if c.name == stop.checkpoint), None)
    return checkpoint is None or grade_of(seen, status, checkpoint) is not Grade.SOUND


def _message(seen: Observed, status: TrainingJobStatus, wrong: CheckpointStatus) -> str:
    target = sound_before(seen, status)
    tried = (
        f" after going back to {status.roll_back.to} {status.roll_back.times} times"
        if status.roll_back is not None and seen.spec.validation.on_unsound is OnUnsound.ROLL_BACK
        else ""
    )
    back = (
        f"to go back to {target.name} at step {target.step} set spec.validation.onUnsound: Continue"
        if target is not None
        else "there is no sound checkpoint to go back to; to go on all the same set spec.validation.onUnsound: Continue"
    )
    return (
        f"in checkpoint {wrong.name} at step {wrong.step} {what(wrong)}. Training was stopped{tried} "
        f"(spec.validation.onUnsound: {seen.spec.validation.on_unsound.value}): {back}; to go on from {wrong.name} add it to "
        "spec.validation.trusted; to go elsewhere set spec.resumeFrom.checkpoint"
    )
