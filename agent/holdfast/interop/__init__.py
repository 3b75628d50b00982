"""Checkpoints of other tools: from a stored image to their files, and from their files to an image.

Run as a program of its own (`python -m holdfast.interop`, see `__main__`) by `holdfast export` and `holdfast import`: the command line has no torch, and what
reads a stranger's file should hold no credentials and share no memory with anything.
"""
