"""What a cluster is built from: one file per kind of artefact, and `catalogue.py`, which names them all.

A file here says how one thing is made and from what. When, in which order and beside what else is up to `build.py`.
"""
