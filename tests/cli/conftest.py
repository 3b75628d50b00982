"""Lets the tests of the CLI build jobs with the store's own world builder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
