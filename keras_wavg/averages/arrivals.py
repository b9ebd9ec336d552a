"""Weights on their way from an accelerator to host memory, on torch."""

from typing import Any

import torch


class Arrivals:
    """Copies of the weights that the host looks at later, when they are there.

    The copies are queued behind the step that made the weights and before the
    next one, so nobody waits. They land in the same host memory each time,
    pinned where there is an accelerator.
    """

    def __init__(self) -> None:
        self.expected = False
        self._now: Any = None
        self._copies: list[torch.Tensor] = []
        self._sent: Any = None

    def send(self, now: Any, weights: list[torch.Tensor]) -> None:
        """Queue the copies.

        Args:
            now: The time, an integer or an integer tensor.
            weights: List of tensors, on any device.
        """
        if not self._copies:
            self._copies = [
                torch.empty_like(w, device="cpu", pin_memory=w.is_cuda)
                for w in weights
            ]
        for copy, weight in zip(self._copies, weights, strict=True):
            copy.copy_(weight, non_blocking=weight.is_cuda)
        self._now = torch.as_tensor(now).to("cpu")
        if weights[0].is_cuda:
            self._sent = torch.cuda.Event()
            self._sent.record()
        self.expected = True

    def receive(self) -> tuple[Any, list[torch.Tensor]]:
        """Wait for the copies, most often no more.

        Returns:
            `(now, weights)` as they were sent, in host memory.
        """
        if self._sent is not None:
            self._sent.synchronize()
        self.expected = False
        return self._now, self._copies
