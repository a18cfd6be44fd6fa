"""Arrays of the host on their way to the device."""

import numpy as np
import torch


class Uploader:
    """Copies arrays of one shape and type to a device. To a GPU they go through page-locked memory,
    so that the copy needs no staging by the driver and the host does not wait for its end."""

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
        self.copied.synchronize()  # the copy before has left the page-locked memory
        self.pinned.copy_(x)
        on_device = self.pinned.to(self.device, non_blocking=True)
        self.copied.record()
        return on_device
