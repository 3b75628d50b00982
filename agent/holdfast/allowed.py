"""What a person accepts of a checkpoint that does not fit: each exception by its exact name, so that nothing else slips through beside it.

    "sample-order"              the order of samples in the epoch at hand is another one
    "data-files"                there are fewer data files than when the checkpoint was made
    "epoch-start"               for another number of ranks: the epoch at hand begins again where the loader cannot say which samples are left
    "open-window"               for another number of ranks: the gradients of an accumulation window are left out
    "missing:model.head.bias"   the program has it and the checkpoint lacks it: it stays as the script made it
    "extra:model.old.weight"    the checkpoint has it and the program lacks it: it is left out

A name is that of a registered part (`missing:ema`), or a part and a key of its module's `state_dict`. A parameter's name covers its optimizer state too.
"""

from collections.abc import Collection
from dataclasses import dataclass

SAMPLE_ORDER, DATA_FILES, EPOCH_START, OPEN_WINDOW = WORDS = (
    "sample-order",
    "data-files",
    "epoch-start",
    "open-window",
)
_MOST_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Allowed:
    words: frozenset[str] = frozenset()
    """Those of WORDS."""
    missing: frozenset[str] = frozenset()
    extra: frozenset[str] = frozenset()

    @classmethod
    def of(cls, words: Collection[str]) -> "Allowed":
        """Raises ValueError for a word that says nothing."""
        given = [words] if isinstance(words, str) else list(words)
        named: dict[str, set[str]] = {"missing": set(), "extra": set()}
        for word in given:
            kind, colon, name = word.partition(":")
            if kind in named and colon and name:
                named[kind].add(name)
            elif word not in WORDS:
                raise ValueError(
                    f'allow={word!r} is unknown; known are {list(WORDS)}, "missing:NAME" and "extra:NAME" with the name of a part (ema), or of a key of a '
                    "module (model.head.weight)"
                )
        words = frozenset(w for w in given if w in WORDS)
        return cls(words, frozenset(named["missing"]), frozenset(named["extra"]))

    def __contains__(self, word: str) -> bool:
        return word in self.words


@dataclass(frozen=True, slots=True)
class Apart:
    """Names that one side has and the other lacks."""

    missing: frozenset[str] = frozenset()
    extra: frozenset[str] = frozenset()

    def __or__(self, other: "Apart") -> "Apart":
        return Apart(self.missing | other.missing, self.extra | other.extra)

    def but(self, allowed: Allowed) -> "Apart":
        """What is left when exactly the allowed names are taken away."""
        return Apart(self.missing - allowed.missing, self.extra - allowed.extra)

    def taken(self, allowed: Allowed) -> "Apart":
        """What the allowances are needed for."""
        return Apart(self.missing & allowed.missing, self.extra & allowed.extra)

    def remedy(self) -> str:
        """The line that accepts exactly this; empty where there is nothing to accept."""
        words = [f'"missing:{n}"' for n in sorted(self.missing)] + [f'"extra:{n}"' for n in sorted(self.extra)]
        if not words:
            return ""
        more = f" and {len(words) - _MOST_SHOWN} more" if len(words) > _MOST_SHOWN else ""
        return (
            "build and register what the checkpoint was made with; or accept exactly this (what is missing stays as the script made it, what is extra is "
            f"left out): ckpt.restore(allow=({', '.join(words[:_MOST_SHOWN])},)){more}"
        )
