"""What can go wrong, as exceptions that say what, where, and what to do."""


class LicError(ValueError):
    """Anything wrong with a .lic file or with a request to write one."""


class FormatError(LicError):
    """The bytes are not a .lic file, or a damaged one."""


class TruncatedError(FormatError):
    """The file ends before its last box does."""


class LimitError(LicError):
    """The picture is larger than the limit that the caller set."""


class ModelError(LicError):
    """The model that the file or the caller names is not installed, or not with the weights the file was made with."""
