"""Whether a device is there, asked before anything is loaded for it."""

import torch

__all__ = ["usable_device"]


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name, which has just answered.

    Raises:
        ValueError: where this machine or this PyTorch has no such device.
    """
    try:
        torch.zeros(1, device=name).item()
    except (AssertionError, ImportError, RuntimeError) as error:
        why = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"there is no device {str(name)!r} here: {why}; this machine has "
            f"{', '.join(_present())}"
        ) from error
    return torch.device(name)


def _present() -> list[str]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(count))]
