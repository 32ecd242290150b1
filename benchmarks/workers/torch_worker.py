"""torchdiffeq: dopri5 with backpropagation through the solver; one step size for the batch."""

import numpy as np
import torch
from torchdiffeq import odeint

from benchmarks.workers.serve import Program, decreased, serve


def build(spec, arrays):
    """The workload in torchdiffeq; see `benchmarks.workers.serve.Program`."""
    task = {"solve": _solve, "gradient": _gradient, "train": _training}[spec["task"]]
    return task(spec, _States(spec, arrays))


class _LotkaVolterra(torch.nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = torch.nn.Parameter(p)

    def forward(self, t, y):
        a, b, c, d = self.p.unbind(-1)
        u, v = y.unbind(-1)
        return torch.stack([a * u - b * u * v, -c * v + d * u * v], -1)


class _Lorenz(_LotkaVolterra):
    def forward(self, t, y):
        sigma, rho, beta = self.p.unbind(-1)
        a, b, c = y.unbind(-1)
        return torch.stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c], -1)


class _MLP(torch.nn.Module):
    def __init__(self, leaves, power):
        super().__init__()
        self.leaves = torch.nn.ParameterList(leaves)
        self.power = power

    def forward(self, t, y):
        leaves = list(self.leaves)
        x = y**self.power
        for weight, bias in zip(leaves[:-2:2], leaves[1:-2:2], strict=True):
            x = torch.tanh(torch.addmm(bias, x, weight))
        return torch.addmm(leaves[-1], x, leaves[-2])


class _States:
    """The kept states of a workload, time first, and its loss."""

    def __init__(self, spec, arrays):
        leaves = [torch.from_numpy(leaf) for leaf in arrays["p"]]
        known = {"lotka_volterra": _LotkaVolterra, "lorenz": _Lorenz}
        if spec["field"] in known:
            self.field = known[spec["field"]](*leaves)
        else:
            self.field = _MLP(leaves, spec["power"])
        self.y0 = torch.from_numpy(arrays["y0"])
        self.target = torch.from_numpy(arrays["target"])
        times = torch.from_numpy(arrays["times"])
        self.final = spec["num_saves"] is None
        self.times = torch.cat([torch.zeros_like(times), times]) if self.final else times
        self.tolerances = {"rtol": spec["rtol"], "atol": spec["atol"]}
        self.batch = spec["batch"] or 1

    def __call__(self):
        y = odeint(self.field, self.y0, self.times, method="dopri5", **self.tolerances)
        return y[1:] if self.final else y

    def loss(self):
        return torch.sum((self() - self.target) ** 2) / self.batch


def _flat(tensors):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def _solve(spec, states):
    def call():
        with torch.no_grad():
            return states()

    return Program(call, values=lambda y: y.numpy())


def _gradient(spec, states):
    parameters = list(states.field.parameters())
    return Program(lambda: torch.autograd.grad(states.loss(), parameters), values=_flat)


def _training(spec, states):
    """Adam steps from the same weights every time: one for a call, many in a Python loop."""
    parameters = list(states.field.parameters())
    start = [parameter.detach().clone() for parameter in parameters]

    def train(steps):
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.Adam(parameters, lr=spec["learning_rate"])
        for _ in range(steps):
            optimizer.zero_grad()
            loss = states.loss()
            loss.backward()
            optimizer.step()
        return float(loss), [parameter.grad for parameter in parameters]

    return Program(
        call=lambda: train(1),
        values=lambda result: _flat(result[1]),
        loop=lambda: train(spec["loop"])[0],
        check_loop=lambda result, last: decreased(result[0], last),
    )


if __name__ == "__main__":
    serve(build, ("torchdiffeq", "torch", "numpy"))
