"""Puts the checkpoint that the agent has verified back into the script's directory, before the script starts."""

import logging
import mmap
import os
from pathlib import Path

from holdfast_api import ranks
from holdfast_directory import packing
from holdfast_directory.finding import OWN, POINTERS, Rule, Taken
from holdfast_directory.survey import survey
from holdfast_rank.agent_link import AgentLink

log = logging.getLogger("holdfast")


class CannotStart(Exception):
    """The script must not start. The message says why and what to do."""


def restore(link: AgentLink, root: Path, rule: Rule) -> tuple[int, Taken]:
    """(boundary, what was restored); 0 and nothing at a fresh start. Blocks until the agent knows. Raises CannotStart, LinkLost."""
    link.send(ranks.RestoreWanted())
    while True:
        message = link.expect(ranks.RestoreReady, ranks.StartFresh, ranks.Refused)
        if isinstance(message, ranks.Refused):
            raise CannotStart(message.message)
        if isinstance(message, ranks.StartFresh):
            log.info("holdfast: a fresh start; what lies in %s already is left as it is", root)
            return 0, Taken()
        try:
            taken = _put_back(message, root, rule)
        except packing.NotOurs as e:
            return _refuse(link, str(e))
        except OSError as e:
            return _refuse(
                link, f"the checkpoint cannot be written to {root}: {e.strerror or e}; free space, or mend the volume"
            )
        except (ValueError, KeyError, TypeError) as e:  # an older one is tried (C4)
            log.warning("holdfast: checkpoint %d/%d makes no sense: %s", message.attempt, message.save, e)
            link.send(ranks.LoadFailed(f"the image of {root.name} makes no sense: {e}"[:1000], of_checkpoint=True))
            continue
        link.send(ranks.Loaded(message.boundary))
        return message.boundary, taken


def _refuse(link: AgentLink, why: str) -> tuple[int, Taken]:
    link.send(ranks.LoadFailed(why[:1000], of_checkpoint=False))
    raise CannotStart(why)


def _put_back(message: ranks.RestoreReady, root: Path, rule: Rule) -> Taken:
    incoming = root / OWN / "incoming"
    packing.clear(incoming)
    fd = os.open(message.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        memory = mmap.mmap(fd, message.image_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)
    with memory:
        document = packing.describe(memory, message.tensors)
        packing.unpack(document, memory, message.tensors, incoming)
    number = document["number"]
    kept = {f["path"] for f in document["files"]}
    later = [
        name
        for name in sorted(os.listdir(root))
        if name != document["name"]
        and (
            (rule.takes(name, folder=(root / name).is_dir()) and _is_later(rule.number(name), number))
            or (name in POINTERS and name not in kept)
        )
    ]
    moved = packing.put_in_place(root, incoming, document, iter(later))
    packing.clear(incoming)
    if moved:
        log.warning(
            "holdfast: set aside in %s, because no commit says that they are whole: %s",
            root / OWN / "aside",
            ", ".join(moved),
        )
    log.info("holdfast: %s is back from checkpoint %d/%d", document["name"], message.attempt, message.save)
    seen = survey(root, document["name"])
    return Taken(document["name"], number, seen.print, len(seen.files))


def _is_later(number: int | None, restored: int | None) -> bool:
    return number is None or restored is None or number > restored
