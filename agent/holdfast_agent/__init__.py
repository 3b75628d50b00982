"""The agent: PID 1 of a trainer container, or the parent of a training run on a laptop (design.md, section 2).

Belongs here: everything that acts in the pod - ranks, slots in shared memory, rounds among agents, saves, restores, reports. Does not belong here: what a
checkpoint is made of (holdfast_store), what is captured from a model (holdfast), which checkpoint may be used or when an attempt starts (the operator).
No torch. `notices`, `plan`, `phases`, `slots` are pure; the rest is thin I/O around them.
"""
