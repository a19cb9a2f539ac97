"""The losses and the network of `losses` in PyTorch, where it is installed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Tensors = Mapping[str, Tensor]
LONGEST_COMPILED = 32
"""Steps; a loop over more of them is unrolled into a program that takes minutes to compile."""


def chosen(x: Tensor, a: Tensor) -> Tensor:
    return x.gather(-1, a[..., None])[..., 0]


def q_loss(net: Tensors, ro: Tensors, tau: float, n: int) -> Tensor:
    length = len(ro["r"])
    with torch.no_grad():
        q = net["q"]
        if tau:
            v = tau * (torch.logsumexp(q / tau, -1) - np.log(q.shape[-1]))
            cost = (torch.softmax(q / tau, -1) * q).sum(-1) - v
        else:
            v, cost = q.amax(-1), None
        y = torch.empty_like(ro["r"])
        # The windows that the rollout's end cuts are shorter.
        short = v[-1]
        for t in range(length - 1, max(length - n, 0) - 1, -1):
            y[t] = short = ro["r"][t] + ro["discount"][t] * short
            if cost is not None:
                short = short - cost[t]
        if length > n:
            whole = slice(0, length - n)
            total = v[n:length]
            for d in reversed(range(n)):
                at = slice(d, d + length - n)
                total = ro["r"][at] + ro["discount"][at] * total
                if cost is not None and d:
                    total = total - cost[at]
            y[whole] = total
    return 0.5 * (chosen(net["q"][:-1], ro["a"]) - y).square().mean()


def returns(r: Tensor, discount: Tensor, last: Tensor) -> Tensor:
    out = torch.empty_like(r)
    for t in range(len(r) - 1, -1, -1):
        out[t] = last = r[t] + discount[t] * last
    return out


def policy_gradient(net: Tensors, ro: Tensors, tau: float, c: float, naive: bool) -> Tensor:
    log_pi, v = functional.log_softmax(net["logits"][:-1], -1), net["v"]
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    with torch.no_grad():
        r = ro["r"] if naive else ro["r"] + tau * entropy
        target = returns(r, ro["discount"], v[-1])
    error = target - v[:-1]
    policy = -chosen(log_pi, ro["a"]) * error.detach() - tau * entropy
    return (policy + c * 0.5 * error.square()).mean()


def tied_soft_q(net: Tensors, ro: Tensors, tau: float, c: float) -> Tensor:
    log_pi, v = functional.log_softmax(net["logits"][:-1], -1), net["v"]
    with torch.no_grad():
        ratio = log_pi + np.log(log_pi.shape[-1])
        cost = tau * (log_pi.exp() * ratio).sum(-1)
        target = returns(ro["r"] - cost, ro["discount"], v[-1]) + cost
        error = v[:-1] + tau * chosen(ratio, ro["a"]) - target
    streams = chosen(log_pi, ro["a"]) + c * v[:-1]
    return (0.5 * error.square() + error * (streams - streams.detach())).mean()


def loss(name: str, tau: float, n: int, c: float) -> Callable[[Tensors, Tensors], Tensor]:
    forms: dict[str, Callable[[Tensors, Tensors], Tensor]] = {
        "soft_q": lambda net, ro: q_loss(net, ro, tau, n),
        "hard_q": lambda net, ro: q_loss(net, ro, 0.0, n),
        "policy_gradient": lambda net, ro: policy_gradient(net, ro, tau, c, naive=False),
        "naive_policy_gradient": lambda net, ro: policy_gradient(net, ro, tau, c, naive=True),
        "tied_soft_q": lambda net, ro: tied_soft_q(net, ro, tau, c),
    }
    return forms[name]


def tensor(x: Any) -> Tensor:
    on = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if x.dtype == jnp.bfloat16:
        return torch.from_numpy(np.asarray(x, np.float32)).to(on, torch.bfloat16)
    x = np.array(x)
    return torch.from_numpy(x.astype(np.int64) if x.dtype == np.int32 else x).to(on)


def value_and_gradient(f: Callable[..., Tensor], net: Tensors, ro: Tensors) -> Callable[[], Any]:
    """A call that returns once the device is done."""
    leaves = {name: net[name].clone().requires_grad_() for name in sorted(net)}  # as JAX does

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        value = f(leaves, ro)
        gradient = torch.autograd.grad(value, tuple(leaves.values()))
        if value.is_cuda:
            torch.cuda.synchronize()
        return value, gradient

    return call


def sides(form: Callable[..., Tensor], net: Any, ro: Any) -> dict[str, Callable[[], Any]]:
    """Calls for eager and compiled PyTorch, the same arguments held."""
    tensors = {name: tensor(x) for name, x in net.items()}
    rest = {name: tensor(x) for name, x in ro.items()}
    calls = {"torch": value_and_gradient(form, tensors, rest)}
    if len(ro["r"]) <= LONGEST_COMPILED:
        torch._dynamo.reset()
        compiled = torch.compile(form, dynamic=False)
        calls["torch.compile"] = value_and_gradient(compiled, tensors, rest)
    return calls


class NatureCNN(torch.nn.Module):
    """The network of jaxsoft.networks with parameters taken over from it."""

    def __init__(self, params: Any) -> None:
        super().__init__()
        torso, heads = params["params"]["torso"], params["params"]
        self.convolutions = torch.nn.ModuleList()
        for i, stride in enumerate((4, 2, 1)):
            kernel = tensor(torso[f"Conv_{i}"]["kernel"]).permute(3, 2, 0, 1).contiguous()
            layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[-1], stride)
            self.adopt(layer, kernel, torso[f"Conv_{i}"]["bias"])
            self.convolutions.append(layer)
        # Rows of JAX's kernel are [height, width, channel].
        dense = tensor(torso["Dense_0"]["kernel"]).reshape(7, 7, 64, 512).permute(3, 2, 0, 1)
        self.dense = torch.nn.Linear(3136, 512)
        self.adopt(self.dense, dense.reshape(512, 3136), torso["Dense_0"]["bias"])
        self.value = torch.nn.Linear(512, 1)
        self.adopt(self.value, tensor(heads["value"]["kernel"]).T, heads["value"]["bias"])
        self.policy = torch.nn.Linear(512, heads["policy"]["bias"].shape[0])
        self.adopt(self.policy, tensor(heads["policy"]["kernel"]).T, heads["policy"]["bias"])

    @staticmethod
    def adopt(layer: Any, weight: Tensor, bias: Any) -> None:
        layer.weight = torch.nn.Parameter(weight.contiguous())
        layer.bias = torch.nn.Parameter(tensor(bias))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = frames.float() / 255
        for layer in self.convolutions:
            x = torch.relu(layer(x))
        x = torch.relu(self.dense(x.flatten(1)))
        return self.value(x)[:, 0], functional.log_softmax(self.policy(x), -1)


def network(params: Any, frames: Any, rest: Any, tau: float, c: float) -> Callable[[], Any]:
    """Value and gradient of A2C's loss with fixed targets, through the Nature CNN."""
    module = NatureCNN(params).to("cuda" if jax.default_backend() == "gpu" else "cpu")
    images, a, target = tensor(frames), tensor(rest["a"]), tensor(rest["target"])
    weights = tuple(module.parameters())

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        v, log_pi = module(images)
        kl = (log_pi.exp() * log_pi).sum(-1) + np.log(log_pi.shape[-1])
        error = target - tau * kl.detach() - v
        policy = tau * kl - chosen(log_pi, a) * error.detach()
        value = (policy + c * 0.5 * error.square()).mean()
        gradient = torch.autograd.grad(value, weights)
        if value.is_cuda:
            torch.cuda.synchronize()
        return value, gradient

    return call
