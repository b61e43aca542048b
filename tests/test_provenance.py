import json
import os
import platform
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from mar_snn import __version__
from mar_snn.provenance import machine, versions


def test_the_machine_is_named_in_values_that_json_holds():
    found = json.loads(json.dumps(machine()))
    assert found["cores"] == os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert found["system"] == platform.platform()


def test_a_machine_without_a_gpu_says_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine()["device"].startswith(f"CPU, {platform.machine()}, ")


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert machine()["device"] == "NVIDIA H100"


def test_versions_are_those_of_the_installed_packages():
    found = versions("numpy")
    assert found["mar-snn"] == __version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert "numpy" in found
    with pytest.raises(PackageNotFoundError):
        versions("no-such-package")
