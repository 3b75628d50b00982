"""D3: what lies in the job's own prefix and is used by nobody is named by the lead, once, after its claim; and never deleted by that (D2)."""

import asyncio
import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from lone import UID, Lone
from worlds import World, ref

from holdfast_agent import membership
from holdfast_agent.claims import Claims
from holdfast_agent.reports import TERMINATION_BYTES, termination_message
from holdfast_agent.run import Agent
from holdfast_agent.strays import MOST, strays
from holdfast_api import peers
from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import AttemptOrder, Member, RestoreOrder
from holdfast_store.collect import SweepResult


def refs(*names: str) -> tuple[CheckpointRef, ...]:
    return tuple(CheckpointRef.parse(name) for name in names)


def swept(*committed: str, off: tuple[str, ...] = ()) -> SweepResult:
    return SweepResult(0, 0, (), refs(*off), refs(*committed))


@pytest.mark.parametrize(
    ("found", "order", "spared", "named"),
    [
        pytest.param(swept("1/1", "1/2"), RestoreOrder(), (), (), id="without a horizon everything on the lineage is used"),
        pytest.param(swept("1/1", "1/2", off=("1/2",)), RestoreOrder(), (), ("1/2",), id="nothing can reach it"),
        pytest.param(swept("1/1", "1/2", "1/3"), RestoreOrder(horizon=ref(1, 2), retained=refs("1/1")), (), ("1/2",), id="not retained"),
        pytest.param(swept("1/1", "1/2"), RestoreOrder(horizon=ref(1, 1)), (), ("1/1",), id="above the horizon it may be new"),
        pytest.param(swept("1/1", "1/2"), RestoreOrder(horizon=ref(1, 2)), refs("1/2"), ("1/1",), id="what is continued is used"),
        pytest.param(swept("1/2", "1/1", off=("1/2",)), RestoreOrder(horizon=ref(1, 2)), (), ("1/1", "1/2"), id="each once, in order"),
    ],
)  # fmt: skip
def test_a_stray_is_off_the_lineage_or_given_up_without_a_name(
    found: SweepResult, order: RestoreOrder, spared: tuple[CheckpointRef, ...], named: tuple[str, ...]
) -> None:
    assert strays(found, order, spared) == refs(*named)


def test_a_report_names_no_more_than_it_can_hold() -> None:
    found = SweepResult(0, 0, (), (), tuple(ref(1, n) for n in range(1, 200)))
    assert strays(found, RestoreOrder(horizon=ref(1, 500)), ()) == tuple(ref(1, n) for n in range(1, MOST + 1))


class Lead(Lone):
    """Attempt 2 of a job with three checkpoints of attempt 1, about to claim."""

    def __init__(self, folder: Path, **restore: object) -> None:
        super().__init__(folder)
        self.world = World(self.bucket, UID).saved(1, 1).saved(1, 2).saved(1, 3)
        order = self.shared.order
        self.shared.order = dataclasses.replace(order, attempt=2, restore=RestoreOrder(**restore))  # type: ignore[arg-type]
        self.shared.record.claim = None

    async def peer(self, message: object) -> object:
        return peers.Fetched(2, 0) if isinstance(message, peers.Resolved) else await super().peer(message)


@pytest.mark.parametrize(
    ("restore", "parent", "named"),
    [
        ({"pinned": ref(1, 1)}, "1/1", ("1/2", "1/3")),
        ({"horizon": ref(1, 2), "retained": (ref(1, 2),)}, "1/3", ("1/1",)),
        ({}, "1/3", ()),
    ],
    ids=["after a rollback", "below the horizon", "nothing"],
)
async def test_the_lead_names_strays_after_its_claim_and_deletes_none(
    tmp_path: Path, restore: dict[str, object], parent: str, named: tuple[str, ...]
) -> None:
    lead = Lead(tmp_path, **restore)
    claims = Claims(lead.shared)
    task = asyncio.ensure_future(claims.run())
    await lead.until(lambda: claims._swept and lead.shared.record.claim)
    await lead.until(lambda: lead.shared.record.stray == refs(*named))
    report = lead.shared.record.report()
    assert report.stray == refs(*named)
    assert report.claim is not None
    assert f"{report.claim.parent_attempt}/{report.claim.parent_save}" == parent
    assert len(lead.world.stored("commit.json")) == 3
    assert lead.world.stored("expired.json") == []
    task.cancel()
    await lead.close()


async def test_the_termination_message_leaves_strays_to_the_other_reports(tmp_path: Path) -> None:
    lone = Lone(tmp_path)
    lone.shared.record.exit_detail = "x" * TERMINATION_BYTES
    lone.shared.record.found_stray(tuple(ref(1, n) for n in range(1, MOST + 1)))
    data = termination_message(lone.shared.record.report())
    assert len(data) <= TERMINATION_BYTES
    assert b'"exit_detail":"x' in data
    await lone.close()


async def test_an_agent_says_from_its_start_which_attempt_its_pod_has_joined_in_an_earlier_life(tmp_path: Path) -> None:
    """A1, A2: it refuses that attempt, and says 0 for its own."""
    lone = Lone(tmp_path)
    config = dataclasses.replace(lone.shared.settings.config, memory_dir=str(tmp_path / "memory"), local_dir="")
    settings = dataclasses.replace(lone.shared.settings, config=config)
    assert Agent(settings).report().joined == 0
    order = AttemptOrder(UID, 7, (Member(0, "pod", "pod-uid", 1),), 1, True, RestoreOrder())
    membership.remember(Path(config.memory_dir), order)
    agent = Agent(settings)
    assert (agent.report().attempt, agent.report().joined) == (0, 7)
    agent._record.begin(8)
    assert (agent.report().attempt, agent.report().joined) == (8, 8)
    await lone.close()
