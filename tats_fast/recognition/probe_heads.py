"""Probes: small classifiers on frozen features, as pure functions on tensors.

``fit_<kind>`` trains with given hyper-parameters and returns a function from features to scores;
``train_probe`` chooses the hyper-parameters on a held-out part of the training features.

Legend: M videos, N tokens, C width, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from tats_fast.recognition.accuracy import top_accuracy

# From features of M videos to scores (M, K); the greatest is the predicted class.
Scores = Callable[[Any], Tensor]

HELD_OUT_SHARE = 0.2
_CHUNK = 256  # videos compared with all known ones at once, which bounds the memory


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor too large to copy: (M, N, C) of which a batch is read at a time."""

    base: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.base[self.rows[index]]


def take(features: Tensor | Rows, rows: Tensor) -> Tensor | Rows:
    """The features of some videos; of ``Rows`` nothing is read yet."""
    if isinstance(features, Rows):
        return Rows(features.base, features.rows[rows.to(features.rows.device)])
    return features[rows.to(features.device)]


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    weight_decay: float,
    batch_norm: bool = False,
    tolerance: float = 1e-6,
) -> Scores:
    """Softmax regression: min over W, b of mean cross-entropy + weight_decay / 2 |W|^2.

    Linear probing as in Alain and Bengio 2016 (arXiv:1610.01644). ``batch_norm`` standardises each
    feature by the training set's mean and deviation: the BatchNorm without affine part before the
    classifier of MAE (He et al. 2021, arXiv:2111.06377, appendix A.1), over the full batch. The
    problem is convex, so L-BFGS solves it and there is no learning rate to choose.

    Args:
        features: (M, C) float; computed in its dtype.
        labels: (M,) int64 in [0, classes).
        tolerance: largest gradient entry to stop at.
    """
    # The bias has no penalty, so subtracting the mean leaves W as it is and eases the descent.
    mean = features.mean(0)
    deviation = (features.var(0, unbiased=False) + 1e-6).sqrt()
    scale = 1 / deviation if batch_norm else torch.ones_like(mean)
    x = (features - mean) * scale
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    stop = {"max_iter": 300, "tolerance_grad": tolerance, "tolerance_change": tolerance * 1e-3}
    optimizer = torch.optim.LBFGS(
        [weight, bias], history_size=20, line_search_fn="strong_wolfe", **stop
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        fit = cross_entropy(x @ weight.T + bias, labels)
        loss = fit + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    matrix, offset = weight.detach(), bias.detach()
    return lambda new: (new.to(mean) - mean) * scale @ matrix.T + offset


def fit_knn(
    features: Tensor, labels: Tensor, classes: int, *, k: int, temperature: float = 0.07
) -> Scores:
    """Weighted vote of the ``k`` training videos of greatest cosine similarity s, each with weight
    exp(s / temperature) (Wu et al. 2018, arXiv:1805.01978, section 3.4). A class without a vote
    scores -inf, so that it is among nobody's best.

    Args:
        features: (M, C) float.
        labels: (M,) int64 in [0, classes).
        k: at most M.
    """
    directions = normalize(features, dim=1)
    votes = one_hot(labels, classes).to(directions)

    def scores(new: Tensor) -> Tensor:
        parts = []
        for part in normalize(new.to(directions), dim=1).split(_CHUNK):
            similarity, nearest = (part @ directions.T).topk(k, dim=1)
            # Relative to s = 1, which changes no ranking and keeps exp in range.
            weights = ((similarity - 1) / temperature).exp()
            parts.append((weights[..., None] * votes[nearest]).sum(1))
        tally = torch.cat(parts)
        return tally.masked_fill(tally == 0, -torch.inf)

    return scores


class AttentivePool(nn.Module):
    """One learned query attends over the tokens (N, C), and a linear layer classifies the result.

    Attentive probing as in CAE (Chen et al. 2022, arXiv:2202.03026, section 4.1) and V-JEPA (Bardes
    et al. 2024, arXiv:2404.08471, section 3.3), here with one cross-attention and no MLP.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.heads = width // 64 if width % 64 == 0 else 1
        self.norm = nn.LayerNorm(width)
        # As large as the normed tokens: a small query starts out as mean pooling and leaves slowly.
        self.query = nn.Parameter(torch.randn(width))
        # A bias of the keys would add the same to every token's logit, and softmax would drop it.
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.classify = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(M, N, C) -> (M, K)."""
        x = self.norm(tokens)
        # Queries come from one vector, so q . (W x) = (W^T q) . x and sum(a V x) = V sum(a x):
        # the same attention without projecting every token, at a fraction of the cost.
        query, key, value = (
            part.unflatten(0, (self.heads, -1))
            for part in (self.query, self.key.weight, self.value.weight)
        )
        seen = torch.einsum("hd,hdc->hc", query, key) * query.shape[1] ** -0.5
        attention = (x @ seen.T).softmax(1)
        mixed = torch.einsum("mnh,mnc->mhc", attention, x)
        pooled = torch.einsum("mhc,hdc->mhd", mixed, value).flatten(1) + self.value.bias
        return self.classify(self.out(pooled))


def fit_attentive(tokens: Tensor | Rows, labels: Tensor, classes: int, **hyper: Any) -> Scores:
    """``fit_attentive_together`` for the tokens (M, N, C) of one encoder."""
    (scores,) = fit_attentive_together([tokens], labels, classes, **hyper)
    return scores


def fit_attentive_together(
    several: Sequence[Tensor | Rows],
    labels: Tensor,
    classes: int,
    *,
    lr: float,
    weight_decay: float,
    seed: int = 0,
    batch_size: int = 64,
    epochs: int = 20,
) -> list[Scores]:
    """``AttentivePool`` trained with AdamW, a warm-up of a tenth and cosine decay of the rate: one
    for each of several encoders' tokens of the same videos. They have one start and one order of
    clips, know nothing of each other, and train in one pass (``vmap``).

    Args:
        several: (M, N, C) float each, on the labels' device or read from elsewhere batch by batch.
        labels: (M,) int64 in [0, classes). Training runs on their device.
        epochs: but at least 300 and at most 5000 steps.
    """
    device, generator = labels.device, torch.Generator().manual_seed(seed)
    count, width = len(several[0]), several[0][:1].shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        model = AttentivePool(width, classes).to(device)
    weights = {
        name: value.detach().expand(len(several), *value.shape).clone().requires_grad_()
        for name, value in model.named_parameters()
    }
    predict = torch.func.vmap(lambda own, x: torch.func.functional_call(model, own, (x,)))
    steps = min(max(epochs * -(-count // batch_size), 300), 5000)
    optimizer = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=weight_decay)
    cycle = {"pct_start": 0.1, "cycle_momentum": False}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, **cycle)
    orders = (torch.randperm(count, generator=generator) for _ in itertools.count())
    batches = (rows for order in orders for rows in order.split(batch_size))
    with torch.enable_grad():
        for rows in itertools.islice(batches, steps):
            batch = torch.stack([tokens[rows].to(device, torch.float32) for tokens in several])
            logits, answers = predict(weights, batch), labels[rows.to(device)]
            # Of the mean over the batch for each probe, and the sum over probes: gradients are own.
            losses = cross_entropy(
                logits.flatten(0, 1), answers.repeat(len(several)), reduction="sum"
            )
            optimizer.zero_grad()
            (losses / len(rows)).backward()
            optimizer.step()
            schedule.step()
    return [
        partial(
            _attentive_scores, model, {k: v[i].detach() for k, v in weights.items()}, batch_size
        )
        for i in range(len(several))
    ]


@torch.no_grad()
def _attentive_scores(
    model: AttentivePool, weights: dict[str, Tensor], batch_size: int, tokens: Tensor | Rows
) -> Tensor:
    """(M, N, C) -> (M, K)."""
    device = weights["query"].device
    parts = (
        tokens[rows].to(device, torch.float32)
        for rows in torch.arange(len(tokens)).split(batch_size)
    )
    return torch.cat([torch.func.functional_call(model, weights, (part,)) for part in parts])


FITS: dict[str, Callable[..., Scores]] = {
    "linear": fit_linear,
    "linear_bn": lambda *args, **kwargs: fit_linear(*args, **kwargs, batch_norm=True),
    "knn": fit_knn,
    "attentive": fit_attentive,
}
DECAYS = [{"weight_decay": decay} for decay in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)]
SWEEPS: dict[str, list[dict[str, Any]]] = {
    "linear": DECAYS,
    "linear_bn": DECAYS,
    "knn": [{"k": k} for k in (1, 5, 10, 20, 50, 100)],
    "attentive": [
        {"lr": lr, "weight_decay": decay} for lr in (3e-4, 1e-3, 3e-3) for decay in (0.1, 1e-3)
    ],
}
"""Hyper-parameters tried, per kind; of equally good ones the first counts."""


class TrainedProbe(NamedTuple):
    """A probe trained on all training features, the hyper-parameters that were chosen on their
    held-out part, and its top-1 there with them, in [0, 1]."""

    scores: Scores
    hyper: dict[str, Any]
    held_out: float


def held_out_split(
    labels: Tensor, seed: int, videos: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows held out, a fifth of each class but at least one of two or more.

    Args:
        labels: (M,) int64.
        videos: (M,) int64, where several rows are of one video, which then goes as a whole: its
            rows are next to copies of each other.

    Raises:
        ValueError: no class has two videos.
    """
    if videos is not None:
        numbers, place = videos.cpu().unique(return_inverse=True)
        of_video = labels.new_zeros(len(numbers), device="cpu").scatter_(0, place, labels.cpu())
        fit, held_out = held_out_split(of_video, seed)
        return tuple(torch.isin(place, part).nonzero()[:, 0] for part in (fit, held_out))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    fit, held_out = [], []
    for label in shuffled.unique():
        rows = order[shuffled == label]
        count = max(1, int(len(rows) * HELD_OUT_SHARE)) if len(rows) > 1 else 0
        held_out.append(rows[:count])
        fit.append(rows[count:])
    if not sum(map(len, held_out)):
        raise ValueError("no class has two readable training videos, so nothing can be held out")
    return torch.cat(fit).sort().values, torch.cat(held_out).sort().values


def train_probe(
    kind: str,
    features: Tensor | Rows,
    labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    sweep: Sequence[dict[str, Any]] | None = None,
    videos: Tensor | None = None,
) -> TrainedProbe:
    """Choose hyper-parameters on a held-out part of the features, then train on all of them.

    Args:
        kind: a key of ``FITS``.
        features: (M, C) float, or for ``attentive`` (M, N, C).
        labels: (M,) int64.
        sweep: hyper-parameters to try; none = those of ``SWEEPS``.
        videos: as for ``held_out_split``.

    Raises:
        ValueError: no class has two videos.
    """
    extra = {"seed": seed} if kind == "attentive" else {}
    fit, held_out = (rows.to(labels.device) for rows in held_out_split(labels, seed, videos))
    fit_features, unseen = take(features, fit), take(features, held_out)

    def top1(hyper: dict[str, Any]) -> float:
        scores = FITS[kind](fit_features, labels[fit], classes, **hyper, **extra)
        return top_accuracy(scores(unseen), labels[held_out])

    candidates = SWEEPS[kind] if sweep is None else sweep
    tried = [(top1(hyper), hyper) for hyper in candidates if hyper.get("k", 1) <= len(fit)]
    best, hyper = max(tried, key=itemgetter(0))
    scores = FITS[kind](features, labels, classes, **hyper, **extra)
    return TrainedProbe(scores, hyper, best)
