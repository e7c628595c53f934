"""Next-token cross-entropy: the plain form, and a chunked form that never holds all logits at once.

Legend: N tokens, V vocabulary, D width. Targets of IGNORED (padding, prompts) count neither in the sum nor in the mean.
Label smoothing e (Szegedy et al. 2016, section 7): the target gets 1 - e, and e is spread evenly over the vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def next_token_loss(logits_btv: Tensor, targets_bt: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over the targets that count; 0 where none counts."""
    total = F.cross_entropy(
        logits_btv.flatten(0, -2).float(),
        targets_bt.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / (targets_bt != IGNORED).sum().clamp(min=1)


def linear_cross_entropy(
    hidden_btd: Tensor, weight_vd: Tensor, targets_bt: Tensor, label_smoothing: float = 0.0, chunk: int = 256
) -> Tensor:
    """`next_token_loss(hidden @ weight.T, targets)` in chunks of tokens that stay in the processor's cache.

    Each chunk's logits become, in place, their own gradient (softmax minus target), which goes into the gradients of
    hidden and weight at once: the (N, V) matrix is never stored and read three times instead of about ten. Positions
    without a target are left out before, and the gradient of a weight that is not trained is not computed.
    """
    hidden_nd, targets_n = hidden_btd.flatten(0, -2), targets_bt.flatten()
    counts_n = targets_n != IGNORED
    if not bool(counts_n.all()):
        hidden_nd, targets_n = hidden_nd[counts_n], targets_n[counts_n]
    total: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_nd, weight_vd, targets_n, label_smoothing, chunk
    )
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, label_smoothing: float, chunk: int
    ) -> Tensor:
        count = (targets_n != IGNORED).sum().clamp(min=1)
        hidden_grad_nd = torch.empty_like(hidden_nd)
        weight_grad_vd = torch.zeros_like(weight_vd) if ctx.needs_input_grad[1] else None
        hidden_nd, weight_vd = (_for_products(tensor) for tensor in (hidden_nd, weight_vd))
        total = torch.zeros((), dtype=torch.float32, device=hidden_nd.device)
        off_target = label_smoothing / weight_vd.shape[0]
        for start in range(0, hidden_nd.shape[0], chunk):
            hidden_cd, targets_c = hidden_nd[start : start + chunk], targets_n[start : start + chunk]
            counts_c1 = (targets_c != IGNORED)[:, None]
            index_c1 = targets_c.clamp(min=0)[:, None]
            logits_cv = (hidden_cd @ weight_vd.T).float()
            log_normaliser_c1 = logits_cv.logsumexp(-1, keepdim=True)
            losses_c1 = log_normaliser_c1 - (1 - label_smoothing) * logits_cv.gather(1, index_c1)
            if label_smoothing:
                losses_c1 = losses_c1 - off_target * logits_cv.sum(-1, keepdim=True)
            total += torch.where(counts_c1, losses_c1, 0.0).sum()
            gradient_cv = logits_cv.sub_(log_normaliser_c1).exp_()
            if label_smoothing:
                gradient_cv.sub_(off_target)
            gradient_cv.scatter_add_(1, index_c1, gradient_cv.new_full(index_c1.shape, label_smoothing - 1))
            gradient_cv = gradient_cv.mul_(counts_c1).to(weight_vd.dtype)  # in [-1, 1]: float16 loses nothing of weight
            hidden_grad_nd[start : start + chunk] = gradient_cv @ weight_vd
            if weight_grad_vd is not None:
                weight_grad_vd += gradient_cv.T @ hidden_cd
        ctx.save_for_backward(
            hidden_grad_nd.div_(count), None if weight_grad_vd is None else weight_grad_vd.div_(count)
        )
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_grad_nd, weight_grad_vd = ctx.saved_tensors
        weight_grad = None if weight_grad_vd is None else weight_grad_vd * grads[0]
        return hidden_grad_nd * grads[0], weight_grad, None, None, None


def distillation_loss(
    logits_nv: Tensor, teacher_nv: Tensor, targets_n: Tensor, *, temperature: float, weight: float
) -> Tensor:
    """(1 - w) CE(student) + w T^2 KL(teacher || student), both softened by T in the second term; mean over targets.

    Hinton et al. 2015, section 2: T^2 keeps the two terms' gradients of one size whatever T is.
    """
    counts_n = targets_n != IGNORED
    teacher_nv = (teacher_nv.float() / temperature).log_softmax(-1)
    student_nv = (logits_nv.float() / temperature).log_softmax(-1)
    divergence_n = (teacher_nv.exp() * (teacher_nv - student_nv)).sum(-1)
    mean = (divergence_n * counts_n).sum() / counts_n.sum().clamp(min=1)
    return (1 - weight) * next_token_loss(logits_nv, targets_n) + weight * temperature**2 * mean


def linear_distillation(
    hidden_btd: Tensor,
    weight_vd: Tensor,
    teacher_btd: Tensor,
    teacher_vd: Tensor,
    targets_bt: Tensor,
    *,
    temperature: float,
    weight: float,
    chunk: int = 256,
) -> Tensor:
    """`distillation_loss` of hidden @ weight.T and the teacher's own, in chunks of tokens; see `linear_cross_entropy`.

    Nothing of the teacher gets a gradient.
    """
    hidden_nd, teacher_nd, targets_n = hidden_btd.flatten(0, -2), teacher_btd.flatten(0, -2), targets_bt.flatten()
    counts_n = targets_n != IGNORED
    total: Tensor = _LinearDistillation.apply(  # type: ignore[no-untyped-call]
        *(hidden_nd[counts_n], weight_vd, teacher_nd[counts_n], teacher_vd, targets_n[counts_n]),
        *(temperature, weight, chunk),
    )
    return total


class _LinearDistillation(torch.autograd.Function):
    """Of logits z: d/dz = (1 - w) (softmax(z) - target) + w T (softmax(z / T) - teacher's)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        teacher_nd: Tensor,
        teacher_vd: Tensor,
        targets_n: Tensor,
        temperature: float,
        weight: float,
        chunk: int,
    ) -> Tensor:
        count = max(len(targets_n), 1)
        hidden_grad_nd = torch.empty_like(hidden_nd)
        weight_grad_vd = torch.zeros_like(weight_vd) if ctx.needs_input_grad[1] else None
        hidden_nd, weight_vd, teacher_nd, teacher_vd = (
            _for_products(tensor) for tensor in (hidden_nd, weight_vd, teacher_nd, teacher_vd)
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden_nd.device)
        for start in range(0, hidden_nd.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden_cd, index_c1 = hidden_nd[part], targets_n[part, None]
            logits_cv = (hidden_cd @ weight_vd.T).float()
            teacher_cv = (teacher_nd[part] @ teacher_vd.T).float().div_(temperature).log_softmax(-1)
            student_cv = (logits_cv / temperature).log_softmax(-1)
            softened_cv = student_cv.exp().sub_(teacher_cv.exp())  # softmax(z / T) - teacher's
            divergence = (teacher_cv.exp() * (teacher_cv - student_cv)).sum()
            log_shares_cv = logits_cv.log_softmax(-1)
            entropy = -log_shares_cv.gather(1, index_c1).sum()
            total += (1 - weight) * entropy + weight * temperature**2 * divergence
            gradient_cv = log_shares_cv.exp_()
            gradient_cv.scatter_add_(1, index_c1, gradient_cv.new_full(index_c1.shape, -1.0))
            gradient_cv.mul_(1 - weight).add_(softened_cv, alpha=weight * temperature)
            gradient_cv = gradient_cv.to(weight_vd.dtype)
            hidden_grad_nd[part] = gradient_cv @ weight_vd
            if weight_grad_vd is not None:
                weight_grad_vd += gradient_cv.T @ hidden_cd
        ctx.save_for_backward(
            hidden_grad_nd.div_(count), None if weight_grad_vd is None else weight_grad_vd.div_(count)
        )
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_nd, weight_grad_vd = ctx.saved_tensors
        weight_grad = None if weight_grad_vd is None else weight_grad_vd * grads[0]
        return hidden_grad_nd * grads[0], weight_grad, None, None, None, None, None, None


def _for_products(tensor: Tensor) -> Tensor:
    """In the type that autocast gives to matrix products, where it is on; sums over chunks stay in the type before."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
