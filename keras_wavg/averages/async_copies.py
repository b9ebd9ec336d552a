"""Asynchronous copies of weights from an accelerator to host memory (torch)."""

from typing import Any

import torch


class AsyncCopies:
    """Copies of weights in host memory, started now and awaited later.

    The copies are queued after the step that computes the weights and before
    the next one, so that neither the host nor the device waits. They reuse the
    same host memory, which is pinned if there is an accelerator.
    """

    def __init__(self) -> None:
        self.are_pending = False
        self._now: torch.Tensor | None = None
        self._copies: list[torch.Tensor] = []
        self._event: torch.cuda.Event | None = None

    def start(self, now: Any, weights: list[torch.Tensor]) -> None:
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
            self._event = torch.cuda.Event()
            self._event.record()
        self.are_pending = True

    def wait(self) -> tuple[Any, list[torch.Tensor]]:
        """Wait for the copies, which have usually finished by then.

        Returns:
            Tuple `(now, weights)`, in host memory.
        """
        if self._event is not None:
            self._event.synchronize()
        self.are_pending = False
        return self._now, self._copies
