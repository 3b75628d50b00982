"""What is wrong with a file or with a wish, in one sentence that names it and says what to do."""

from holdfast.errors import HoldfastError


class Refused(HoldfastError):
    """The files cannot be converted."""
