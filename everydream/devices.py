"""From the host's memory to a device, without waiting for what the device still has to do."""

import torch


def sent(values: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a tensor on `device`, as `dtype` where one is given.

    A GPU copies by itself from page-locked memory alone; from any other the host may wait until all before it is done.
    Other accelerators may still be reading when the source is given back, so there the host waits.
    """
    if device.type != "cuda" or values.is_cuda:
        return values.to(device, dtype)
    return values.to(dtype).pin_memory().to(device, non_blocking=True)
