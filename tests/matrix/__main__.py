"""`scripts/run -m tests.matrix`: the matrix by hand, as a whole or one world of it."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.matrix import many, worlds


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    options.add_argument("--seed", type=int, help="default: a new one, which is printed")
    options.add_argument(
        "--moments", type=int, default=100, help="run worlds until they have so many together (default 100)"
    )
    options.add_argument(
        "--world", type=int, action="append", help="only this number of the seed; may be given several times"
    )
    options.add_argument("--times", type=int, default=1, help="each world so often")
    options.add_argument("--beside", type=int, default=many.BESIDE, help=f"worlds at a time (default {many.BESIDE})")
    options.add_argument("--loop", help="only worlds of this kind of loop")
    options.add_argument("--distribution", help="only worlds of this distribution")
    options.add_argument("--list", action="store_true", help="print the worlds and run none")
    options.add_argument("--folder", type=Path, help="where worlds that failed are left (default: a new temporary one)")
    chosen = options.parse_args()
    seed = random.randrange(1 << 31) if chosen.seed is None else chosen.seed
    if chosen.world:
        wanted = [worlds.draw(seed, n, torchdata=many.TORCHDATA) for n in chosen.world]
    else:
        wanted = worlds.enough(seed, chosen.moments, torchdata=many.TORCHDATA)
    wanted = [w for w in wanted if chosen.loop in (None, w.loop) and chosen.distribution in (None, w.distribution)]
    say(f"seed {seed}\n")
    if chosen.list or chosen.world:
        for world in wanted:
            say(f"{world}\n" + "".join(f"  {m}\n" for m in world.moments))
    if chosen.list:
        return 0
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="holdfast-matrix-"))
    outcomes = []
    for time in range(chosen.times):
        here = folder / str(time)
        here.mkdir(parents=True)
        outcomes += many.run(wanted, here, say, chosen.beside)
    say(f"{many.table(outcomes)}\n")
    failed = [o for o in outcomes if o.wrong]
    if failed:
        say(f"{len(failed)} of {len(outcomes)} worlds failed; what they left is in {folder}\n")
    return 1 if failed else 0


def say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
