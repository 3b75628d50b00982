"""A loader's place where the number of ranks has changed: what is left of the epoch is dealt out anew, so that every sample still comes exactly once (K1).

    the order of the epoch (one for all ranks, from the sampler's seed and the epoch)   without what has been handed out, by whatever rank
        = the rest, in that order;   share r of M gets  rest[r], rest[r + M], ...   as DistributedSampler deals

What has been handed out is known from the ranks' ledgers: a bit for each sample, or, of larger data sets, how many there were of an order that is dealt
from its beginning, which the ledgers' sum of hashes proves. Loaders of which that is not known go on at the start of an epoch only.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy
from torch.utils.data import BatchSampler, DistributedSampler

from holdfast import derive, ledger
from holdfast.batch_share import accumulates
from holdfast.errors import RestoreError

log = logging.getLogger("holdfast")
State = dict[str, Any]


def redistributed(states: Sequence[State], loader: Any, rank: int, world: int, *, restart: bool) -> State:
    """The state of one position of `rank` among `world`, from those of all ranks of the checkpoint. `restart`: an epoch whose rest is not known begins
    again. Raises RestoreError."""
    home = states[rank % len(states)]
    rule = ledger.rule_of(loader)
    ledgers = [s["ledger"] for s in states if s.get("ledger") is not None]
    middle = [s for s in states if s["inside"] and (s["batch"] or s.get("rest"))]
    first = min(states, key=lambda s: s["epoch"])
    known = len(ledgers) == len(states)
    if not rank:
        _warn_of_batch(states[0].get("together"), together(loader))
    if known and all(_own_pass(page) for page in (rule, *(le["now"] for le in ledgers))):
        return home
    moved = home | {"crc": 0, "reused": False} | ({"ledger": ledger.joined(ledgers)} if known else {})
    if hasattr(loader, "load_state_dict"):
        moved |= {"abandoned": False}  # it stays as the script made it, and stands in no pass
    if not middle and first["epoch"] == max(s["epoch"] for s in states):
        return moved
    why = _why_unknown(states, rule) if known else "the checkpoint has no ledger of samples"
    if not why:
        return moved | {"inside": True, "batch": 0, "rest": True, "start": _start(middle[0]["start"], rank)}
    if restart:  # of ranks that stand in different epochs the earliest: rather again than never
        where = {"epoch": first["epoch"], "spent": first.get("spent", first["epoch"])}
        page = {"ledger": ledger.begun_again(moved["ledger"], first["epoch"])} if known else {}
        return moved | where | page | {"inside": False, "batch": 0, "rest": False, "start": None, "abandoned": False}
    raise RestoreError(
        f"the checkpoint stands in the middle of epoch {first['epoch']} of the loader ({type(loader).__name__}), which {len(states)} ranks have read; {world} "
        f"are to go on, and which samples are left is not known: {why}. Go on with {len(states)} ranks to the end of the epoch, or begin it again: "
        'ckpt.restore(allow=("epoch-start",))'
    )


class Rest:
    """What one share gets of the rest of an epoch: stands in for a loader's sampler, or batch sampler."""

    def __init__(self, loader: Any, page: Mapping[str, Any], *, check: bool) -> None:
        """`page`: of what has been handed out. `check` False: another order than before is accepted. Raises RestoreError."""
        left = _left(loader, page, check)
        sampler = _sampler_of(loader)
        self.indices, pads, cuts = _dealt(left, sampler)
        batches = loader.batch_sampler
        self._batches: Any = self.indices
        drops = 0
        if batches is not None:
            self._batches = BatchSampler(self.indices, batches.batch_size, batches.drop_last)
            drops = len(self.indices) % batches.batch_size if batches.drop_last else 0
        again = page["count"] - _known(page["seen"]) if page["seen"] else 0
        self.rule = ledger.rule_of(loader) | {"pads": pads + again, "cuts": cuts, "drops": drops}
        """What the ledger is to expect of this pass."""

    def __iter__(self) -> Any:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _start(start: dict[str, Any], rank: int) -> dict[str, Any]:
    """Generators from which the iterator over the rest is made. An order that is drawn from them is rank 0's; else it is only seeds for worker processes."""
    return start | derive.generators(start, rank) if rank else start


def _why_unknown(states: Sequence[State], rule: Mapping[str, Any]) -> str:
    ledgers = [s["ledger"] for s in states]
    if not rule["once"]:
        return "the loader is not read by one of torch's own samplers, each sample once"
    if len({s["epoch"] for s in states}) > 1:
        return "the ranks stand in different epochs"
    if any(le["now"]["count"] and not le["now"]["once"] for le in ledgers):
        return "what made the checkpoint was not read by one of torch's own samplers, each sample once"
    page = ledger.page_of(ledger.joined(ledgers), states[0]["epoch"])
    if page is None or not page["once"]:
        return "the ranks had read different samples of the whole, each in an order of its own"
    if page["size"] != rule["size"]:
        return f"the data set had {page['size']} samples and has {rule['size']}"
    return ""


def _own_pass(page: Mapping[str, Any]) -> bool:
    """Every rank reads the whole data set in a pass of its own: its place does not depend on how many there are."""
    return bool(page["once"]) and page["share"][1] == 1


def _left(loader: Any, page: Mapping[str, Any], check: bool) -> list[int]:
    order, sampler = _order(loader), _sampler_of(loader)
    if page["seen"]:
        bits = numpy.unpackbits(numpy.frombuffer(page["seen"], dtype=numpy.uint8), bitorder="little")
        return [i for i in order if not bits[i]]
    given = order[: page["count"]]
    total = int(ledger.mixed(numpy.asarray(given, dtype=numpy.uint64)).sum(dtype=numpy.uint64)) if given else 0
    if check and f"{total & ledger.MASK:016x}" != page["sum"]:
        raise RestoreError(
            f"the first {page['count']} samples of epoch {page['epoch']} as {type(sampler).__name__} gives them are not those that were handed out: the data "
            "set, the sampler or its seed has changed. Put it back, or accept that samples of this epoch are lost or repeated: "
            'ckpt.restore(allow=("sample-order",))'
        )
    return order[page["count"] :]


def _order(loader: Any) -> list[int]:
    """Of the whole epoch, without padding and cuts."""
    sampler = _sampler_of(loader)
    if type(sampler) is not DistributedSampler:
        return list(sampler)
    whole: Any = DistributedSampler(sampler.dataset, num_replicas=1, rank=0, shuffle=sampler.shuffle, seed=sampler.seed)
    whole.set_epoch(sampler.epoch)
    return list(whole)


def _dealt(left: list[int], sampler: Any) -> tuple[list[int], int, int]:
    """One share of `left`, and how many samples are padded and cut so that all shares are of one length."""
    if type(sampler) is not DistributedSampler or not left:
        return left, 0, 0
    of = sampler.num_replicas
    total = len(left) // of * of if sampler.drop_last else -(-len(left) // of) * of
    padded = [*left, *islice(cycle(left), max(0, total - len(left)))][:total]
    return padded[sampler.rank :: of], max(0, total - len(left)), max(0, len(left) - total)


def _sampler_of(loader: Any) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler.sampler


def _known(seen: bytes) -> int:
    return int.from_bytes(seen, "little").bit_count()


def _warn_of_batch(before: int | None, here: int | None) -> None:
    """The global batch is the script's business; that it has changed is said."""
    if before and here and before != here:
        log.warning(
            "holdfast: a batch of all ranks together had %d samples when the checkpoint was made, and has %d now: set the loader's batch size, or the learning "
            "rate, if that is not meant",
            before, here,
        )  # fmt: skip


def together(loader: Any) -> int | None:
    """Samples in a batch of all ranks that share the data set, as far as the loader says; of an update, where the script has asked for its share."""
    sizes = (getattr(holder, "batch_size", None) for holder in (loader, getattr(loader, "batch_sampler", None)))
    size = next((s for s in sizes if isinstance(s, int)), None)
    shares: int = ledger.rule_of(loader)["share"][1]
    return None if size is None else size * shares * accumulates()
