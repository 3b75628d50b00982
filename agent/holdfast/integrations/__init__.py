"""Holdfast inside training frameworks. Each module is imported by who uses that framework; none is imported by the library itself."""
