"""Early stopping (Prechelt 1998, criterion UP): end once the validation loss has not improved for a while."""

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Counts validations in a row that brought no better loss than the best. patience None never stops."""

    patience: int | None
    best: float | None = None
    bad: int = 0

    def update(self, loss: float) -> bool:
        """Note a validation loss; True where it is the best so far. One that is not finite never is."""
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best, self.bad = loss, 0
            return True
        self.bad += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.bad >= self.patience
