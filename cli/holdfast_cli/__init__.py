"""`holdfast …`, also found by kubectl as `kubectl holdfast …`. One file per verb; what several verbs share is in `shared`.

Belongs here: reading arguments, calling the store, showing results. Does not belong here: rules about checkpoints.
"""
