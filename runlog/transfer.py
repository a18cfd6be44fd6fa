"""Uploading arrays from the host to the device."""

import numpy as np
import torch


class Uploader:
    """Copies arrays of one shape and type to a device. Copies to a GPU use page-locked memory, so
    that the driver needs no staging copy and the host does not wait."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pinned = None

    def __call__(self, array: np.ndarray) -> torch.Tensor:
        """The array as a tensor on the device; on the CPU it shares the array's memory."""
        x = torch.from_numpy(array)
        if self.device.type != "cuda":
            return x.to(self.device)
        if self.pinned is None:
            self.pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self.copied = torch.cuda.Event()
        self.copied.synchronize()  # wait until the previous copy has left the page-locked memory
        self.pinned.copy_(x)
        on_device = self.pinned.to(self.device, non_blocking=True)
        self.copied.record()
        return on_device
