"""A step by the path gradient of `accel_gp`'s guide, without an inverse, against two others with the same.

python -m tests.benchmarks.path_gradient
"""

import argparse

import pyro
import torch
from torch import Tensor

from pyroflows.infer import AutoFlow, TraceSTL_ELBO
from pyroflows.infer.flow_objective import FlowObjective
from tests.benchmarks.accel_gp import accel_gp
from tests.benchmarks.timing import compare


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--draws", type=int, default=128)
    arguments = parser.parse_args()
    pyro.set_rng_seed(0)
    guide = AutoFlow(accel_gp)
    target = FlowObjective(guide, (), {}, arguments.draws)
    elbo = TraceSTL_ELBO(num_particles=arguments.draws, vectorize_particles=True, max_plate_nesting=0)

    def by_score() -> None:
        target.loss().backward()

    def by_inverse() -> None:
        x, _ = target.transform.call_and_ladj(target.base.sample((arguments.draws,)))
        fixed = x.detach().requires_grad_()
        z, ladj = target.transform.inv.call_and_ladj(fixed)  # type: ignore[attr-defined]
        log_q: Tensor = target.base.log_prob(z) + ladj
        (score,) = torch.autograd.grad(log_q.sum(), fixed)
        ((score * x).sum(-1) - target.log_density(x)).mean().backward()

    def by_pyro() -> None:
        elbo.differentiable_loss(accel_gp, guide).backward()

    print("over the flow's inverse:", compare(by_score, by_inverse, arguments.rounds))
    print("over TraceSTL_ELBO:", compare(by_score, by_pyro, arguments.rounds))


if __name__ == "__main__":
    main()
