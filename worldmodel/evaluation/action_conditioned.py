"""Everything the study of action-conditioned representations measures on one frozen model, as numbers by name.

Classes from one view, from the aggregate and from the mean of the same views; relative and absolute rotation from z;
the pose left in the aggregate; path integration with its controls; retrieval of the predicted view.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch

from worldmodel.evaluation.heads import HeadConfig, fit_classifier, fit_regressor
from worldmodel.evaluation.path_integration import path_integration
from worldmodel.evaluation.regression import r2
from worldmodel.evaluation.retrieval import retrieval
from worldmodel.evaluation.rotations import geodesic_degrees, relative, rotation_vector
from worldmodel.evaluation.sequences import SequenceFeatures, aggregated, frozen, mean_pooled
from worldmodel.seq_jepa import SeqWorldModel


@dataclass(frozen=True, kw_only=True)
class ProbeProtocol:
    """How much is measured, and how.

    Attributes:
        classifier, regressor: heads and their training.
        classified: training and test sequences of the classifier.
        regressed: training and test sequences of the regressions.
        lengths: numbers of views M_val the classifier reads.
        paths: numbers of views of path integration.
        pose_views: views per aggregate whose last pose is decoded.
        retrieval_views: views before the one that is predicted and looked for.
        absolute: decode the absolute pose from z too.
        controls: measure the controls of path integration too.
    """

    classifier: HeadConfig = field(
        default_factory=lambda: HeadConfig(kind="linear", lr=3e-3, epochs=30, batch_size=256)
    )
    regressor: HeadConfig = field(
        default_factory=lambda: HeadConfig(kind="mlp", lr=1e-3, epochs=15, batch_size=256)
    )
    classified: tuple[int, int] = (4000, 2000)
    regressed: tuple[int, int] = (8000, 3000)
    lengths: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8)
    paths: Sequence[int] = (1, 2, 3, 5)
    pose_views: int = 3
    retrieval_views: int = 3
    absolute: bool = True
    controls: bool = True

    @property
    def steps(self) -> int:
        """Observations that every sequence must have."""
        return max(*self.lengths, *(m + 1 for m in self.paths), 2 * self.pose_views)


def encoder_scores(
    *, train: SequenceFeatures, test: SequenceFeatures, classes: int, protocol: ProbeProtocol, seed: int
) -> dict[str, float]:
    """Probes of the per-view code z: class of the mean over M views, relative and absolute rotation.

    The labels `class` [N] and `rotation` [N, T, 4] (quaternions, scalar last) must be there.
    """
    labels = tuple(f.labels["class"] for f in (train, test))
    scores: dict[str, float] = {}
    for views in protocol.lengths:
        pooled = (mean_pooled(train.z, views), mean_pooled(test.z, views))
        scores[f"acc_mean/{views}"] = _accuracy(pooled, labels, classes, protocol, seed)
    poses = (train.labels["rotation"], test.labels["rotation"])
    pairs = (train.z[:, :2].flatten(1), test.z[:, :2].flatten(1))
    turns = tuple(relative(q[:, 0], q[:, 1]) for q in poses)
    scores |= _rotation("relative", pairs, turns, protocol, seed)
    linear = HeadConfig(kind="linear", lr=3e-3, epochs=30, batch_size=protocol.regressor.batch_size)
    head = fit_regressor(pairs[0], turns[0], config=linear, seed=seed)
    scores["r2_relative_linear"] = r2(head(pairs[1]), turns[1])
    if not protocol.absolute:
        return scores
    single = (train.z[:, 0], test.z[:, 0])
    absolute = (poses[0][:, 0], poses[1][:, 0])
    scores |= _rotation("absolute", single, absolute, protocol, seed)
    vectors = tuple(rotation_vector(q) for q in absolute)
    head = fit_regressor(single[0], vectors[0], config=protocol.regressor, seed=seed)
    scores["r2_absolute_vector"] = r2(head(single[1]), vectors[1])
    return scores


def aggregate_scores(
    model: SeqWorldModel,
    *,
    untrained: SeqWorldModel,
    train: SequenceFeatures,
    test: SequenceFeatures,
    classes: int,
    protocol: ProbeProtocol,
    seed: int,
) -> dict[str, float]:
    """Probes of the aggregate: class by number of views, pose of the last view, path integration with its controls.

    The pose is decoded as the rotation between the last views of two disjoint sequences of one object, from the two
    aggregates. `untrained` is the model with its first weights; its aggregator reads the trained z.
    """
    labels = tuple(f.labels["class"] for f in (train, test))
    scores: dict[str, float] = {}
    for views in protocol.lengths:
        pair = tuple(
            aggregated(model, f.z[:count, :views], f.actions[:count, : views - 1])
            for f, count in zip((train, test), protocol.classified, strict=True)
        )
        scores[f"acc_aggregate/{views}"] = _accuracy(pair, labels, classes, protocol, seed)
    m = protocol.pose_views
    both, turns = [], []
    for f in (train, test):
        halves = [aggregated(model, f.z[:, i : i + m], f.actions[:, i : i + m - 1]) for i in (0, m)]
        both.append(torch.cat(halves, dim=1))
        turns.append(relative(f.labels["rotation"][:, m - 1], f.labels["rotation"][:, 2 * m - 1]))
    scores |= _rotation("aggregate_pose", (both[0], both[1]), (turns[0], turns[1]), protocol, seed)
    for views in protocol.paths:
        targets = tuple(
            relative(f.labels["rotation"][:, 0], f.labels["rotation"][:, views]) for f in (train, test)
        )
        paths = path_integration(
            model,
            train=train,
            test=test,
            targets=(targets[0], targets[1]),
            views=views,
            config=protocol.regressor,
            seed=seed,
            untrained=untrained,
            actions=model.condition != "none",
            controls=protocol.controls,
        )
        measured = {name: value for name, value in asdict(paths).items() if value is not None}
        scores |= {f"path/{views}/{name}": value for name, value in measured.items()}
    return scores


def retrieval_scores(model: SeqWorldModel, features: SequenceFeatures, *, views: int) -> dict[str, float]:
    """Retrieval of the view after the first `views` among all the views of its object that were not observed.

    Args:
        features: of episodes that hold every view of their object once.
    """
    past, rest = features.z[:, :views], features.z[:, views:]
    with frozen(model):
        guess = model.predict(
            model.aggregate(past, features.actions[:, : views - 1]), features.actions[:, views - 1]
        )
    found = retrieval(guess, rest, torch.zeros(len(guess), dtype=torch.long))
    return {f"retrieval/{name}": value for name, value in asdict(found).items()}


def _accuracy(
    features: tuple[torch.Tensor, ...],
    labels: tuple[torch.Tensor, ...],
    classes: int,
    protocol: ProbeProtocol,
    seed: int,
) -> float:
    (n, m), (train, test), (known, asked) = protocol.classified, features, labels
    head = fit_classifier(train[:n], known[:n], classes=classes, config=protocol.classifier, seed=seed)
    return head.accuracy(test[:m], asked[:m])


def _rotation(
    name: str,
    features: tuple[torch.Tensor, torch.Tensor],
    targets: tuple[torch.Tensor, ...],
    protocol: ProbeProtocol,
    seed: int,
) -> dict[str, float]:
    """R^2 of canonical quaternions and the mean angle of error in degrees, beside that of the mean rotation."""
    head = fit_regressor(features[0], targets[0], config=protocol.regressor, seed=seed)
    guess, truth = head(features[1]), targets[1]
    constant = targets[0].mean(0).expand_as(truth)
    return {
        f"r2_{name}": r2(guess, truth),
        f"degrees_{name}": float(geodesic_degrees(guess, truth).mean()),
        f"degrees_{name}_constant": float(geodesic_degrees(constant, truth).mean()),
    }
