"""Decisions. Pure: no clock, no network, no disk, no framework; `decide(seen, now)` is the only entry.

Belongs here: frozen values of what was seen (`observed`), of what is to be done (`actions`), one file per rule, and the manifests of child objects.
Does not belong here: anything that reads a clock, waits, or talks.
"""
