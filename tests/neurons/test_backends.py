"""What runs, and the sentence when it cannot."""

import pytest

from mar_snn.neurons import ATMNCoder, ATMNNode
from mar_snn.neurons.backends import resolve_backend


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_torch_runs_everywhere(name):
    assert resolve_backend(name) == "torch"
    assert ATMNNode(backend=name).backend == name


def test_a_missing_cupy_kernel_names_the_extra_and_the_way_out():
    with pytest.raises(RuntimeError, match=r"pip install 'mar-snn\[cupy\]'") as error:
        resolve_backend("cupy")
    assert "use backend='auto' or backend='torch'" in str(error.value)


def test_a_missing_triton_kernel_is_not_replaced_in_silence():
    with pytest.raises(RuntimeError, match="backend='triton' has no kernel"):
        ATMNNode(backend="triton")
    with pytest.raises(RuntimeError, match="backend='triton' has no kernel"):
        ATMNCoder(3, backend="triton")


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match="'auto', 'torch', 'triton', 'cupy', got 'c'"):
        resolve_backend("c")
