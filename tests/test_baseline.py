"""The Gaussian is torch's own, and it is told beside a fit."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyroflows import Flow, fit, realnvp
from pyroflows.baseline import Gaussian


def test_maximum_likelihood() -> None:
    torch.manual_seed(0)
    table = torch.randn(100, 4).double() @ torch.randn(4, 4).double() * 1e5 + 3
    gaussian = Gaussian.fit(table)
    want = MultivariateNormal(table.mean(0), table.T.cov(correction=0)).log_prob(table)
    torch.testing.assert_close(gaussian.log_prob(table), want)
    assert gaussian.score(table) == pytest.approx(-want.mean().item())


def test_fewer_rows_than_columns() -> None:
    torch.manual_seed(0)
    table, others = torch.randn(10, 30), torch.randn(100, 30)
    score = Gaussian.fit(table).score(others)
    standard_normal = -torch.distributions.Normal(0.0, 1.0).log_prob(others).sum(-1).mean().item()
    # A covariance that is not shrunk has no density at all.
    assert standard_normal < score < standard_normal + 15


def test_the_scores_beside_a_fit() -> None:
    torch.manual_seed(0)
    train, val, test = (torch.randn(n, 2) * torch.tensor([1.0, 5.0]) for n in (80, 20, 30))
    result = fit(Flow(realnvp(2)), train, val, test_data=test, max_epochs=1, progress_bar=False)
    gaussian = Gaussian.fit(train)
    assert result.baseline_val_score == pytest.approx(gaussian.score(val))
    assert result.baseline_test_score == pytest.approx(gaussian.score(test))
    flow, context = Flow(realnvp(2, context_dim=1)), torch.randn(80, 1)
    given = fit(flow, train, context=context, max_epochs=1, progress_bar=False)
    assert given.baseline is given.baseline_val_score is None
    assert given.test_score is None
