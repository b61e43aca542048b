"""Factories and inputs that the example is told to import."""

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from mar_snn.neurons import ATMNNode, replace_neurons


class Net(nn.Module):
    """Three steps of a convolution and a linear layer, with neurons before them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            neuron.LIFNode(v_reset=None),
            layer.Conv2d(1, 2, 1, bias=False),
            neuron.LIFNode(v_reset=None),
            layer.Flatten(),
            layer.Linear(18, 5, bias=False),
        )
        functional.set_step_mode(self, "m")

    def forward(self, image, *, gain=1.0):
        return self.body(gain * image.expand(3, *image.shape))


def net():
    made = Net()
    replace_neurons(made, ATMNNode)
    return made


def net_and_images():
    return net(), 4 * torch.rand(5, 1, 3, 3)


def images(size):
    return 4 * torch.rand(size, 1, 3, 3)


def arguments(size):
    return (4 * torch.rand(size, 1, 3, 3),)


def keywords(size):
    return {"image": torch.rand(size, 1, 3, 3), "gain": 4.0}


def flat(size):
    return torch.rand(size, 9)


def text():
    return "no module"


def broken():
    raise RuntimeError("no weights here")


class Reader(nn.Module):
    """Looks tokens up."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)

    def forward(self, ids):
        return self.head(self.table(ids))


def reader():
    return Reader(), torch.tensor([[0, 1, 2], [3, 4, 5]])


def lstm():
    return nn.LSTM(8, 4, batch_first=True), torch.randn(6, 5, 8)


def relu():
    return nn.ReLU(), torch.randn(6, 8)


def flatten():
    return nn.Flatten(), torch.randn(6, 2, 8)


def named():
    return nn.ReLU(), {"input": torch.randn(6, 8)}
