"""What an epoch of training adds up to beside its loss: each head's loss, and how often the label head is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medflow.loader import Batch
from medflow.records import HeadSpec


class Tally:
    """Reads and adds up one vector: loss by head, known terms by head, and right and known answers by label.

    The answers are those of the first label head (an exclusive one counts as one label), as the weights were at each
    step, augmentation and dropout included. Where images are mixed none are counted: such an image has two truths.
    """

    def __init__(self, heads: Sequence[HeadSpec], *, mixed: bool) -> None:
        self._names = tuple(head.name for head in heads)
        self._label = None if mixed else next((head for head in heads if head.kind != "mask"), None)
        exclusive = self._label is not None and self._label.kind == "exclusive"
        self._answers = 0 if self._label is None else 1 if exclusive else len(self._label.labels)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return 2 * (len(self._names) + self._answers)

    @torch.no_grad()
    def seen(self, sums: Mapping[str, Tensor], logits: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The vector of one batch, float32 (size,); ``sums`` are the objective's, shapes as in ``medflow.heads``."""
        losses = [sums[name].detach().float() for name in self._names]
        known = [batch.known[name].sum().float() for name in self._names]
        return torch.cat([torch.stack([*losses, *known]), *self._right(logits, batch)])

    def _right(self, logits: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, ...]:
        if self._label is None:
            return ()
        name = self._label.name
        said, true, known = logits[name].detach(), batch.targets[name], batch.known[name]
        if self._label.kind == "exclusive":
            known = known[:, None]
            right = (said.argmax(dim=1) == true.argmax(dim=1))[:, None]
        else:
            right = (said >= 0.0) == (true > 0.5)
        return (right & known).sum(dim=0).float(), known.sum(dim=0).float()

    def added(self, before: Sequence[float], seen: Sequence[float]) -> tuple[float, ...]:
        """The epoch's vector with a step's; ``before`` is empty at its beginning."""
        return tuple(one + other for one, other in zip(before or (0.0,) * self.size, seen, strict=True))

    def losses(self, total: Sequence[float]) -> dict[str, float]:
        """By head the mean loss over known terms, without heads of which nothing was known."""
        sums, known = total[: len(self._names)], total[len(self._names) :]
        return {name: value / known[place] for place, (name, value) in enumerate(zip(self._names, sums, strict=True))
                if known[place]}  # fmt: skip

    def accuracy(self, total: Sequence[float]) -> float | None:
        """Share of right answers, 0 to 1, the mean over labels; None where none were counted."""
        first = 2 * len(self._names)
        right, known = total[first : first + self._answers], total[first + self._answers :]
        shares = [hits / count for hits, count in zip(right, known, strict=True) if count]
        return sum(shares) / len(shares) if shares else None
