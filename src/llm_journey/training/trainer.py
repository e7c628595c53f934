"""One training step, and everything that a later process needs to take exactly the same next step.

A step: gradients of batch_size * accumulation rows, summed in micro-batches so that the result equals one large batch
(each micro-batch weighs by its number of targets), clipped, then one update at the scheduled learning rate. A step
whose loss or gradient is not finite is left out and counted.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_journey.core.errors import JourneyError
from llm_journey.core.footprint import trim_heap
from llm_journey.model.kinds import Model
from llm_journey.training.loaders import Loader
from llm_journey.training.methods import restore as restore_model
from llm_journey.training.objectives import AnyBatch, Hidden, Loss, next_token
from llm_journey.training.optim import Optimizer, clip_gradients
from llm_journey.training.precision import Precision
from llm_journey.training.recipe import Recipe, TrainingConfig
from llm_journey.training.schedule import learning_rate_factor

MAX_BAD_STEPS = 20
_RNG = "random/cpu"
_RNG_CUDA = "random/cuda"


@dataclass
class Position:
    """How far a run is. seconds: time spent in steps."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bad_steps: int = 0


@dataclass(frozen=True)
class StepResult:
    """What one step measured. loss in nats a token, seconds of wall time."""

    loss: float
    gradient_norm: float
    learning_rate_factor: float
    tokens: int
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether the step was taken; otherwise it was left out."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Trainer:
    """A model, its optimizer and its data, stepped forward. `tensors` and `state` hold all that decides what follows.

    objective: the loss of a batch (training.objectives).

    Raises JourneyError after MAX_BAD_STEPS steps in a row that are not finite.
    """

    def __init__(
        self, recipe: Recipe, model: Model, loader: Loader, precision: Precision, objective: Loss = next_token
    ) -> None:
        self.config, self.model, self.precision = recipe.training, model, precision
        self.optimizer = Optimizer(model, recipe.training.optimizer, precision.newton_schulz_dtype)
        self.loader, self.objective = loader, objective
        self.position = Position()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._shapes: list[tuple[int, ...]] = []
        # Compiled as one graph, and for training only: validation and samples call the model itself.
        self._hidden: Hidden = torch.compile(model.hidden) if recipe.training.compile else model.hidden

    @property
    def num_trained(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self._parameters)

    @property
    def progress(self) -> float:
        """Share of the budget used, in [0, 1]; the largest where several budgets are set."""
        return budget_progress(self.config, self.position)

    def step(self) -> StepResult:
        """Take one step."""
        start = time.perf_counter()
        batches = [self.loader.next_batch() for _ in range(self.config.accumulation)]
        num_tokens = sum(batch.num_tokens() for batch in batches)
        loss = self._gradients(batches, sum(batch.num_targets() for batch in batches))
        self.precision.unscale(self._parameters)
        norm = clip_gradients(self._parameters, self.config.optimizer.clip)
        factor = learning_rate_factor(self.config.schedule, self._schedule_progress(num_tokens))
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self.optimizer.set_scale(factor)
            self.optimizer.step()
        self.precision.update(finite)
        self.optimizer.zero_grad()
        self._give_back(batches)
        elapsed = time.perf_counter() - start
        self._advance(num_tokens, elapsed, finite)
        return StepResult(loss, norm, factor, num_tokens, elapsed)

    def _give_back(self, batches: list[AnyBatch]) -> None:
        """Arrays of ever other sizes leave the heap full of holes (30 to 100 MB a step of SmolLM2's): empty them."""
        shapes = [batch.targets.shape for batch in batches]
        if shapes != self._shapes:
            self._shapes = shapes
            trim_heap()

    def warm_up(self) -> None:
        """Where the model is compiled, compile it now, on a batch that is then given back: no step's time counts it."""
        if not self.config.compile:
            return
        position, random = self.loader.state(), torch.get_rng_state()
        batch = self.loader.next_batch()
        self._gradients([batch], batch.num_targets())
        self.optimizer.zero_grad()
        self.loader.restore(position)
        torch.set_rng_state(random)

    def _gradients(self, batches: list[AnyBatch], num_targets: int) -> float:
        total = 0.0
        for batch in batches:
            share = batch.num_targets() / max(num_targets, 1)
            with self.precision.autocast():
                loss = self.objective(self.model, self._hidden, batch, self.config.label_smoothing) * share
            self.precision.backward(loss)
            total += float(loss.detach())
        return total

    def _schedule_progress(self, tokens: int) -> float:
        """Progress at the middle of the coming step: the first step must not have a learning rate of zero."""
        now = self.position
        mean_seconds = now.seconds / now.step if now.step else 0.0
        middle = Position(step=now.step, tokens=now.tokens + tokens // 2, seconds=now.seconds + mean_seconds / 2)
        return budget_progress(self.config, middle, half_step=0.5)

    def _advance(self, tokens: int, seconds: float, finite: bool) -> None:
        position = self.position
        position.step += 1
        position.tokens += tokens
        position.seconds += seconds
        position.bad_steps = 0 if finite else position.bad_steps + 1
        if position.bad_steps >= MAX_BAD_STEPS:
            raise JourneyError(
                f"{MAX_BAD_STEPS} steps in a row had no finite loss (last: step {position.step}); begin a new run "
                "with a lower training.optimizer.learning_rate or muon_learning_rate, or training.precision=fp32"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Optimizer state and random generators, for the checkpoint."""
        tensors = {**self.optimizer.state_tensors(), _RNG: torch.get_rng_state()}
        if self.model.device.type == "cuda":
            tensors[_RNG_CUDA] = torch.cuda.get_rng_state(self.model.device)
        return tensors

    def state(self) -> dict[str, Any]:
        """Position, data position and loss scale as JSON values, for the checkpoint."""
        return {
            "position": dict(vars(self.position)),
            "loader": self.loader.state(),
            "precision": self.precision.state(),
        }

    def restore(self, model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on exactly where `tensors()` and `state()` were taken. Raises BadInputError for state of another run."""
        self.loader.restore(state["loader"])
        restore_model(self.model, model)
        self.optimizer.load_state_tensors({name: t for name, t in tensors.items() if not name.startswith("random/")})
        self.precision.restore(state["precision"])
        self.position = Position(**state["position"])
        torch.set_rng_state(tensors[_RNG])
        if _RNG_CUDA in tensors and self.model.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[_RNG_CUDA], self.model.device)


def budget_progress(config: TrainingConfig, position: Position, half_step: float = 0.0) -> float:
    """Share of the budget used at `position` (`half_step` is added to its steps)."""
    shares = [
        used / budget
        for used, budget in (
            (position.step + half_step, config.steps),
            (position.tokens, config.tokens),
            (position.seconds, config.seconds),
        )
        if budget is not None
    ]
    return min(max(shares), 1.0)


def milestones(count: int, progress: float) -> Iterator[float]:
    """The evenly spaced shares of the budget, `count` in all, that lie beyond `progress`."""
    yield from (number / count for number in range(1, count + 1) if number / count > progress + 1e-9)
