"""Measurements, one folder per question: `run.py` measures, `results/` holds what was measured and on what, README.md shows it as table and plot."""
