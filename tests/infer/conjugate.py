"""A model whose posterior is a normal of mean `X / 2` and half of the prior's variance, and its evidence."""

import pyro
import pyro.distributions as dist
import torch

# Sds of 1e-3, 1 and 1e3 in one vector.
SDS = torch.tensor([1.0, 1e3, 1e-3])
X = torch.tensor([0.5, 700.0, -1e-3])
EVIDENCE = dist.Normal(0.0, SDS * 2**0.5).log_prob(X).sum().item()


def conjugate() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3), SDS).to_event(1))
    pyro.sample("x", dist.Normal(z, SDS).to_event(1), obs=X)
