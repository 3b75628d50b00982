"""The main job from nothing, as one command (`make demo`): what it does, it prints; what it claims, it compares, and exits non-zero if it is not so."""
