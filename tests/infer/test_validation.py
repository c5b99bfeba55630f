"""What running models without validation leaves behind."""

from collections.abc import Iterator

import pyro
import pytest
import torch
from torch.distributions import Distribution

from pyroflows.infer import AutoFlow, fit_guide
from pyroflows.infer.validation import unvalidated
from tests.infer.conjugate import conjugate

pytestmark = pytest.mark.usefixtures("fresh_pyro")


@pytest.fixture
def torch_alone_off() -> Iterator[None]:
    """Torch's validation off while Pyro's is on, as after a first `torch.compile`."""
    with pyro.validation_enabled(True):
        Distribution.set_default_validate_args(False)
        yield


def test_it_is_off_within_and_on_again_after() -> None:
    with pyro.validation_enabled(True):
        with unvalidated():
            pyro.distributions.Normal(0.0, -1.0)
        with pytest.raises(ValueError, match="scale"):
            pyro.distributions.Normal(0.0, -1.0)


@pytest.mark.usefixtures("torch_alone_off")
def test_what_was_off_stays_off() -> None:
    guide = AutoFlow(conjugate, init="mean_field")
    assert not Distribution._validate_args
    fit_guide(conjugate, guide, max_steps=4, progress_bar=False)
    assert not Distribution._validate_args
    torch.testing.assert_close(pyro.distributions.Normal(0.0, -1.0).scale, torch.tensor(-1.0))
