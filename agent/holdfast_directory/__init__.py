"""Directory mode."""
