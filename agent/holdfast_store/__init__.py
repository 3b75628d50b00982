"""Checkpoints on a directory or an object store: chunks, manifests, commits, lineage, deletion, verification.

Belongs here: everything that reads or writes what `holdfast_api.layout` and `holdfast_api.manifest` describe, for agent, library and CLI. Does not
belong here: decisions about when to save or what to keep (agent, operator), tensors (library). Torch-free. Everything is blocking and may be called
from any thread; nothing here starts threads that outlive the call.
"""
