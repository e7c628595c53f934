"""Knowledge distillation: a student learns a teacher's whole distributions beside the tokens that came.

    loss = (1 - w) CE + w T^2 KL(teacher || student)        Hinton et al. 2015, section 2; model.loss

A student may begin as its base with every second block or so (Sanh et al. 2019, "DistilBERT", section 3), or anew.
"""

from dataclasses import replace

import torch
from torch import nn

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import Batch
from llm_journey.model.blocks import Block
from llm_journey.model.decoder import Decoder
from llm_journey.model.kinds import Model
from llm_journey.model.loss import linear_distillation
from llm_journey.training.objectives import AnyBatch, Hidden, Loss
from llm_journey.training.recipe import DistillConfig


def distilling(teacher: Decoder, config: DistillConfig) -> Loss:
    """The loss of a batch of running text or of chats, whose teacher computes beside the student."""

    def loss(model: Model, hidden: Hidden, batch: AnyBatch, _label_smoothing: float = 0.0) -> torch.Tensor:
        assert isinstance(batch, Batch)
        ids_bt, targets_bt, segments_bt, positions_bt = (
            None if array is None else torch.tensor(array, device=model.device)
            for array in (batch.inputs, batch.targets, batch.segments, batch.positions)
        )
        assert ids_bt is not None and targets_bt is not None
        with torch.no_grad():
            teacher_btd = teacher.hidden(ids_bt, segments_bt=segments_bt, positions_bt=positions_bt)
        return linear_distillation(
            hidden(ids_bt, segments_bt=segments_bt, positions_bt=positions_bt),
            model.head_weight,
            teacher_btd,
            teacher.head_weight.detach(),
            targets_bt,
            temperature=config.temperature,
            weight=config.weight,
        )

    return loss


def shallower(model: Decoder, num_layers: int) -> Decoder:
    """The model with so many of its blocks, evenly spaced, the first and (of two or more) the last among them.

    The given one is changed. Raises BadInputError where it has fewer.
    """
    count = model.config.num_layers
    if num_layers > count:
        raise BadInputError(f"distill.layers is {num_layers}, the base has {count}")
    kept = [round(index * (count - 1) / max(num_layers - 1, 1)) for index in range(num_layers)]
    blocks = [model.blocks[index] for index in kept]
    for index, block in enumerate(blocks):
        assert isinstance(block, Block)
        block.attention.layer_index = index
    model.blocks = nn.ModuleList(blocks)
    model.config = replace(model.config, num_layers=num_layers)
    return model
