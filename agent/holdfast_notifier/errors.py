"""What can go wrong, by whose fault."""


class NotifierError(Exception):
    """Base of all."""


class MetadataError(NotifierError):
    """The metadata service did not give an answer that can be read: what it said before stands (nothing is withdrawn by an error)."""


class ApiServerError(NotifierError):
    """The API server did not take or give what was asked. `status` is 0 if it was not reached."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message[:500]}" if status else message[:500])
        self.status = status


class WrongSettings(NotifierError):
    """The command line or the environment: names the option, the value and what it may be."""
