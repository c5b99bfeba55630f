"""A flow as a density estimator in scikit-learn's manner."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyroflows._extras import needs_fit_extra
from pyroflows.datasets import Data
from pyroflows.defaults import Defaults
from pyroflows.tables import column_numbers
from pyroflows.training import fit as fit_flow

with needs_fit_extra("FlowDensity"):
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["FlowDensity"]

# Points of a step of the grid, over which the log density of a dequantized row is averaged.
_POINTS = 16


class FlowDensity(DensityMixin, BaseEstimator):
    r"""A normalizing flow that scikit-learn fits, scores, clones and searches over.

    .. math:: \log p(x) = \log \mathcal{N}(f^{-1}(x); 0, I)
        + \log \left| \det \frac{\partial f^{-1}(x)}{\partial x} \right|

    It is fitted by `pyroflows.fit`, in float32, to the weighted rows; its log densities and samples are
    computed in float64. The columns are standardised inside, so a `StandardScaler` is not needed. Behind one
    the log densities are those of the scaled rows: higher by the sum of the logarithms of the scales. `None`
    stands for the default of the command line, which depends on the number of rows and of columns. The folds
    of a search are smaller than its table, so give `coupling` where there are about 250 rows.

    Args:
        flow: The system: `"glow"`, `"realnvp"` or `"nice"`.
        steps: Number of steps of flow, or of couplings.
        hidden_features: Sizes of the hidden layers of the conditioners.
        coupling: Name of the couplings' element-wise map: `"additive"`, `"affine"`, `"spline"`,
            `"logistic_mixture"`.
        max_epochs: Largest number of passes over the rows.
        batch_size: Rows in a step of the fit.
        lr: Largest step size.
        val_fraction: Part of the rows that is held out and tells when to stop; 0 holds nothing out.
        patience: Epochs without a better held-out score after which the fit ends; `None` runs all epochs.
        dequantize: Numbers or names of the columns that get uniform noise of the width of their own step. The
            log density of a row is then the mean over 16 points of it, and samples stand on the grid.
        accelerator: Lightning's, for the fit: `"auto"`, `"cpu"` or `"gpu"`.
        random_state: Seed of the weights, the held-out rows, the order and the noise: an integer, a
            `RandomState` or `None`. The generators of PyTorch keep their state.

    Attributes:
        flow_: The fitted `Flow`, in float64.
        result_: The `FitResult`.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns of a data frame.

    Raises:
        ValueError: The rows are not a finite, dense table of at least two rows of positive weight; a column
            is constant or is there twice, so that there is no density; a parameter is out of its range.
        FloatingPointError: The loss was not finite.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039; Buitinck et al. 2013, "API design for machine
    learning software", arXiv 1309.0238.

    Example:
        >>> from pyroflows.estimator import FlowDensity
        >>> X = np.random.RandomState(0).randn(200, 2)
        >>> density = FlowDensity(steps=2, max_epochs=2, random_state=0).fit(X)
        >>> density.score_samples(X).shape, density.sample(3, random_state=0).shape
        ((200,), (3, 2))
    """

    def __init__(
        self,
        *,
        flow: str = "glow",
        steps: int | None = None,
        hidden_features: tuple[int, ...] | None = None,
        coupling: str | None = None,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        val_fraction: float = 0.1,
        patience: int | None = 15,
        dequantize: Sequence[int | str] = (),
        accelerator: str = "auto",
        random_state: int | RandomState | None = None,
    ) -> None:
        self.flow = flow
        self.steps = steps
        self.hidden_features = hidden_features
        self.coupling = coupling
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.val_fraction = val_fraction
        self.patience = patience
        self.dequantize = dequantize
        self.accelerator = accelerator
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> FlowDensity:
        """Fit a new flow to rows.

        Args:
            X: `(N, D)`.
            y: Not used.
            sample_weight: `(N,)`, not negative: how much each row counts. A row of weight 0 is left out.
        """
        table = self._table(X, ensure_min_samples=2)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        # `fit` leaves rows of weight 0 out.
        n_rows = len(table) if weights is None else max(1, int(np.count_nonzero(weights)))
        names = list(getattr(self, "feature_names_in_", ()))
        dequantize = column_numbers(self.dequantize, table.shape[1], names or None)
        defaults = Defaults(table.shape[1:], n_rows)
        given = {"max_epochs": self.max_epochs, "batch_size": self.batch_size, "lr": self.lr}
        options = defaults.options() | {name: value for name, value in given.items() if value is not None}
        seed = _seed(self.random_state)
        with torch.random.fork_rng(), warnings.catch_warnings():
            # In float64, in which samples are drawn, they keep these digits.
            warnings.filterwarnings("ignore", message="samples of columns .* lose digits")
            torch.manual_seed(seed)
            flow = defaults.flow(
                self.flow, steps=self.steps, hidden_features=self.hidden_features, coupling=self.coupling
            )
            self.result_ = fit_flow(
                flow,
                Data(table, None, None, names=tuple(names) or None),
                weights=weights,
                val_fraction=self.val_fraction,
                patience=self.patience,
                dequantize=dequantize,
                accelerator=self.accelerator,
                seed=seed,
                progress_bar=False,
                **options,
            )
        # In float32 a log density would depend on the rows beside it by more than scikit-learn lets it.
        self.flow_ = flow.double()
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log density of each row, in nats: `(N, D)` to `(N,)`."""
        check_is_fitted(self)
        return self.result_.run.log_prob(self._table(X, reset=False), draws=_POINTS).numpy()

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Mean log density of rows `(N, D)`, in nats: more is better. `y` is not used."""
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1, random_state: int | RandomState | None = None
    ) -> NDArray[np.float64]:
        """Draw rows from the fitted density: `(n_samples, D)`."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"expected n_samples of at least 1, got {n_samples}")
        with torch.random.fork_rng():
            torch.manual_seed(_seed(random_state))
            return self.result_.run.sample(n_samples).numpy()

    def _table(self, X: ArrayLike, **options: Any) -> Tensor:
        # PyTorch warns of arrays that are read only, and takes none with negative strides.
        checked = validate_data(self, X, dtype=np.float64, order="C", force_writeable=True, **options)
        return torch.from_numpy(checked)


def _seed(random_state: int | RandomState | None) -> int:
    return int(check_random_state(random_state).randint(2**31 - 1))
