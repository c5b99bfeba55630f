"""Import zuko without its side effects on the process.

zuko's import switches the argument validation of every `torch.distributions` class off and
renames `torch.distributions.transforms._InverseTransform`. Both are put back here, so every
module of pyroflows takes zuko from this one. (What zuko adds, `Transform.call_and_ladj` and an
empty `Distribution.arg_constraints`, stays: zuko's own classes do not work without it.)
"""

from torch.distributions import Distribution
from torch.distributions.transforms import _InverseTransform

_validate_args = Distribution._validate_args
_inverse_name = _InverseTransform.__name__

import zuko  # noqa: E402

Distribution._validate_args = _validate_args
_InverseTransform.__name__ = _inverse_name

__all__ = ["zuko"]
