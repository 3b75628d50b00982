"""Tools for working on Holdfast itself: a cluster, its services and the Python environment. Nothing here is shipped.

Everything that runs before that environment exists uses the standard library only.
"""
