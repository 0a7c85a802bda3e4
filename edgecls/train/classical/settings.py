"""scikit-learn classifiers on the features of a frozen backbone: which there are, and how each is fitted."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from edgecls.errors import MissingExtra, TrainingError
from edgecls.train.options import ClassicalName

Features = NDArray[np.float32]
Targets = NDArray[np.int64]

XGBOOST: Final = "xgboost"  # the extra

# A tree looks at one feature at a time. Where a thousand say the same in a thousand ways, few directions say it once
# each. On cats and dogs, by five-fold cross-validation on the training features: XGBoost 98.9 % on all of them and on
# 64 principal components, in 1 s rather than 3; HistGradientBoosting 98.6 % on all in 15 s, 98.5 % on those components
# in 1 s, and 99.3 % on 16 directions that were chosen with the classes in view.
_N_COMPONENTS: Final = 64
_N_DIRECTIONS: Final = 16

_GAMMAS: Final = (0.03, 0.1, 0.3, 1.0)  # of the SVM's kernel, in units of 1 / n_features
_FOLDS: Final = 5
_MOST_SEARCHED: Final = 3000  # images among which gamma is looked for: the time grows with their square


class Directions(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The directions in which features and classes vary together (partial least squares), as PCA's attributes.

    Attributes:
        components_: (k, n_features); mean_: (n_features,).
    """

    def __init__(self, n_components: int = _N_DIRECTIONS) -> None:
        self.n_components = n_components

    def fit(self, features: Features, targets: Targets) -> Directions:
        with warnings.catch_warnings():
            # the targets are used up before the directions are, and directions need not be exact
            warnings.filterwarnings("ignore", message="[yY] residual is constant", category=UserWarning)
            warnings.simplefilter("ignore", ConvergenceWarning)
            one_hot = np.eye(int(targets.max()) + 1)[targets]
            found = PLSRegression(self.n_components, scale=False).fit(features.astype(np.float64), one_hot)
        self.mean_ = features.mean(0, dtype=np.float64)
        self.components_ = found.x_rotations_.T
        return self

    def transform(self, features: Features) -> NDArray[np.float64]:
        """(n, n_features) -> (n, k)."""
        return (features - self.mean_) @ self.components_.T  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Classical:
    """A fitted classifier.

    Attributes:
        pipeline: scikit-learn's: `scale` and `components` where the method wants them, and `model`.
    """

    name: ClassicalName
    pipeline: Pipeline
    n_features: int
    n_classes: int

    @property
    def model(self) -> Any:
        return self.pipeline.named_steps["model"]

    def answers(self, features: Features) -> Targets:
        """(n, n_features) -> (n,) label indices, by scikit-learn's own `predict`."""
        return cast(Targets, self.pipeline.predict(features).astype(np.int64))

    def scores(self, features: Features) -> NDArray[np.float64]:
        """(n, n_classes): probabilities, or decision values where it gives none; the largest is the answer."""
        if hasattr(self.model, "predict_proba"):
            return cast(NDArray[np.float64], self.pipeline.predict_proba(features))
        values = self.pipeline.decision_function(features)
        return np.stack([-values, values], axis=1) if values.ndim == 1 else cast(NDArray[np.float64], values)


def fit_classical(name: ClassicalName, features: Features, targets: Targets, n_classes: int, seed: int) -> Classical:
    """Fit one of scikit-learn's classifiers, or XGBoost's, with defaults that suit features of a trained network.

    Chosen by five-fold cross-validations on 901 training photos of cats and dogs (docs/training.md).

    Args:
        features: (n, n_features).
        targets: (n,) label indices; every class must occur.

    Raises:
        TrainingError: a class has no image, or features are not finite.
        MissingExtra: XGBoost is not installed.
    """
    missing = sorted(set(range(n_classes)) - set(targets.tolist()))
    if missing:
        raise TrainingError(
            f"--classifier {name}: {len(missing)} of {n_classes} classes have no training image, first number "
            f"{missing[0]}; a classifier of scikit-learn knows only the classes that it has seen"
        )
    if n_classes < 2:
        raise TrainingError(f"--classifier {name}: one class alone leaves nothing to tell apart; expected two or more")
    if not np.isfinite(features).all():
        raise TrainingError(f"--classifier {name}: the features are not all finite; the run that gives them is broken")
    pipeline = _pipeline(name, features.shape, seed)
    if name == "svm":
        pipeline.set_params(model__gamma=_best_gamma(pipeline, features, targets, seed))
    pipeline.fit(features, targets)
    if name == "boosting":
        _widen_thresholds(pipeline, features)
    return Classical(name, pipeline, features.shape[1], n_classes)


def _pipeline(name: ClassicalName, shape: tuple[int, ...], seed: int) -> Pipeline:
    n_images, n_features = shape
    scale = ("scale", StandardScaler())
    components = ("components", PCA(min(_N_COMPONENTS, n_images, n_features), random_state=seed))
    if name == "logistic":
        return Pipeline([scale, ("model", LogisticRegression(C=1.0, max_iter=2000))])
    if name == "svm":
        return Pipeline([scale, ("model", _svc(1 / n_features))])
    if name == "random-forest":
        # an odd number, so that two classes do not tie; all features, of which each split tries sqrt(n_features)
        return Pipeline([("model", RandomForestClassifier(301, n_jobs=-1, random_state=seed))])
    if name == "boosting":
        model = HistGradientBoostingClassifier(max_depth=2, max_iter=200, random_state=seed)
        directions = ("components", Directions(min(_N_DIRECTIONS, n_images - 1, n_features)))
        return Pipeline([scale, directions, ("model", model)])
    return Pipeline([scale, components, ("model", _xgboost(seed))])


def _svc(gamma: float) -> SVC:
    # break_ties: the answer is the largest decision value, as it is of every other classifier here
    return SVC(C=10.0, gamma=gamma, break_ties=True, cache_size=500)


def _best_gamma(pipeline: Pipeline, features: Features, targets: Targets, seed: int) -> float:
    """By cross-validation on the training features; of equals the smallest, which bends the border least.

    Features of a trained network are often all but linearly separable, and then scikit-learn's own 1 / n_features is
    too narrow: 98.3 % against 99.4 % with a thirtieth of it on cats and dogs, by three five-fold cross-validations.
    """
    gammas: list[float] = [factor / features.shape[1] for factor in _GAMMAS]
    n_folds = min(_FOLDS, int(np.bincount(targets).min()))
    if n_folds < 2:  # a class with one image
        return gammas[1]
    if len(features) > _MOST_SEARCHED:
        features, _, targets, _ = train_test_split(
            features, targets, train_size=_MOST_SEARCHED, stratify=targets, random_state=seed
        )
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    search = GridSearchCV(pipeline, {"model__gamma": gammas}, cv=folds, refit=False)
    found: dict[str, float] = search.fit(features, targets).best_params_
    return found["model__gamma"]


def _widen_thresholds(pipeline: Pipeline, features: Features) -> None:
    """Move each threshold to the middle of the gap between the training values on its two sides.

    Percentiles of the values are thresholds, many of them values themselves, and float32 puts such a value now on the
    one side, now on the other, in every tree that uses this threshold. No training image changes its leaf by this.
    """
    values = np.sort(pipeline[:-1].transform(features), axis=0)
    for predictor in (each for together in pipeline[-1]._predictors for each in together):
        for node in predictor.nodes:
            if not node["is_leaf"]:
                column = values[:, node["feature_idx"]]
                above = int(np.searchsorted(column, node["num_threshold"], side="right"))
                if 0 < above < len(column):
                    node["num_threshold"] = (column[above - 1] + column[above]) / 2


def _xgboost(seed: int) -> Any:
    try:
        from xgboost import XGBClassifier  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingExtra("--classifier xgboost", XGBOOST) from error
    return XGBClassifier(
        n_estimators=300, max_depth=2, learning_rate=0.1, subsample=0.8, colsample_bytree=0.5, random_state=seed
    )
