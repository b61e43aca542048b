"""The two reports of the documentation, written by examples/energy_report.py.

    python benchmarks/energy_reports.py outputs/demo-0

The argument is a student that the demo distilled; beside it stands SpikingJelly's
spiking VGG-11 with ATMN neurons. Tables and figures go to docs/reports/.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from spikingjelly.activation_based import base, functional, layer, surrogate
from spikingjelly.activation_based.model import spiking_vgg
from torch import Tensor, nn

from mar_snn.console import show_what_can_be_shown
from mar_snn.neurons import ATMNNode

ROOT = Path(__file__).parent.parent
REPORTS = Path("docs/reports")


class NoPool(nn.Identity, base.StepModule):
    """Hands on the spikes, whose mean would be no spike."""

    step_mode = "m"


class SpikingVGG(nn.Module):
    """VGG-11 for 10 classes, shown a still image of 32 x 32 pixels for four steps.

    Of such an image one pixel of 512 channels is left for the classifier, which so has
    512 inputs and no pooling before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = spiking_vgg.spiking_vgg11_bn(
            num_classes=10,
            spiking_neuron=ATMNNode,
            surrogate_function=surrogate.ATan(),
        )
        self.net.avgpool = NoPool()
        self.net.classifier[0] = layer.Linear(512, 4096)
        functional.set_step_mode(self.net, "m")

    def forward(self, images: Tensor) -> Tensor:
        """The mean of the outputs of all steps."""
        return self.net(images.expand(4, *images.shape)).mean(0)


def vgg() -> tuple[nn.Module, Tensor]:
    """The network, untrained, and eight images of noise.

    Its batch norms have the statistics of the images, its firing rates are those of its
    initialisation: the report shows what such a network costs, not how well it sees.
    """
    torch.manual_seed(0)
    net, images = SpikingVGG(), torch.rand(8, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # what it saw last
    with torch.no_grad():
        net(images)
    functional.reset_net(net)
    return net.eval(), images


def main() -> None:
    """Write both reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", help="folder that the demo wrote, from the root")
    student = parser.parse_args().student
    for name, arguments in {
        "llamba": [student, "--compare", "mar_snn/assets/tiny_llamba"],
        "vgg": ["benchmarks.energy_reports:vgg"],
    }.items():
        output = REPORTS / name
        shutil.rmtree(ROOT / output, ignore_errors=True)
        # paths from the root: the command line stands in the report
        command = [sys.executable, "examples/energy_report.py", *arguments]
        command += ["--output_dir", str(output)]
        subprocess.run(command, check=True, cwd=ROOT)
        # the rows are in the tables, and the documentation shows no LaTeX
        for file in ("report.tex", "rows.csv"):
            (ROOT / output / file).unlink()


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
