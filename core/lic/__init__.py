"""Learned image compression: the .lic format, on NumPy arrays.

    data = lic.encode(pixels, quality=80)
    picture = lic.decode(data)
    lic.read_info(data)

torch is imported with the first pixel, not before.
"""

import lic.models  # noqa: F401  (before the function of that name, which then stays)
from lic.api import SMALLEST_SCALE, decode, encode, models, read_info, verify
from lic.container import SIGNATURE, Info
from lic.errors import FormatError, LicError, LimitError, ModelError, TruncatedError
from lic.picture import Picture

__version__ = "0.1.0"
__all__ = [
    "SIGNATURE",
    "SMALLEST_SCALE",
    "FormatError",
    "Info",
    "LicError",
    "LimitError",
    "ModelError",
    "Picture",
    "TruncatedError",
    "decode",
    "encode",
    "models",
    "read_info",
    "verify",
]
