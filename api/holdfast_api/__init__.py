"""What the parts of Holdfast agree on: names, messages, manifests, key layout, and how they are written as JSON.

Belongs here: values that cross a process boundary, and pure functions from value to value. Does not belong here: decisions, I/O, clients, clocks.
Standard library only, so that neither a training image nor the operator gains a dependency.
"""

__version__ = "0.1.0"
