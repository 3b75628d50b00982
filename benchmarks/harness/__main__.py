"""Measures one of the engine's questions in the environment of the peers: `python -m benchmarks.harness QUESTION`; `benchmarks/__main__.py` starts it."""

import importlib
import sys

from benchmarks import results

if __name__ == "__main__":
    results.begin()
    importlib.import_module(f"benchmarks.{sys.argv[1]}.run").main()
