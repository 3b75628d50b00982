"""`make bench`, or `python -m benchmarks [QUESTION…]`: measures on this machine, writes results, redraws the README of each question."""

import importlib
import sys
import time

QUESTIONS = ("cluster_up", "time_to_resume")


def main() -> int:
    wanted = sys.argv[1:] or list(QUESTIONS)
    if unknown := [w for w in wanted if w not in QUESTIONS]:
        sys.exit(f"no such question: {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    for name in wanted:
        began = time.monotonic()
        print(f"== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}.run").main()
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
