"""Directory mode: a training script that writes checkpoints its own way is kept alive without torch, and without a line of it changed.

`holdfast-directory PATH -- COMMAND` stands where a script that uses the library would: it is a rank of the agent's. It starts the script, finds out when
one of its checkpoints is whole, and hands the files over as an image; flush, commit, verification and restore are the agent's, as for any other state.
"""
