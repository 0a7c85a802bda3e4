"""scikit-learn classifiers on the features of a frozen backbone: which there are, and how each is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
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

# A tree looks at one feature at a time. Where a thousand say the same in a thousand ways, few principal components say
# it once each: as good in cross-validation, and fitted in 1 s rather than 15.
_N_COMPONENTS: Final = 64

_GAMMAS: Final = (0.03, 0.1, 0.3, 1.0)  # of the SVM's kernel, in units of 1 / n_features
_FOLDS: Final = 5
_MOST_SEARCHED: Final = 3000  # images among which gamma is looked for: the time grows with their square


@dataclass(frozen=True)
class Classical:
    """A fitted classifier.

    Attributes:
        pipeline: scikit-learn's, `front` (a StandardScaler, with PCA behind it or not; may be absent) and `model`.
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

    Chosen by three five-fold cross-validations on 901 training photos of cats and dogs (docs/training.md).

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
        return Pipeline([scale, components, ("model", model)])
    return Pipeline([scale, components, ("model", _xgboost(seed))])


def _svc(gamma: float) -> SVC:
    # break_ties: the answer is the largest decision value, as it is of every other classifier here
    return SVC(C=10.0, gamma=gamma, break_ties=True, cache_size=500)


def _best_gamma(pipeline: Pipeline, features: Features, targets: Targets, seed: int) -> float:
    """By cross-validation on the training features; of equals the smallest, which bends the border least.

    Features of a trained network are often all but linearly separable, and then scikit-learn's own 1 / n_features is
    too narrow: 98.3 % against 99.4 % with a thirtieth of it on cats and dogs, by three five-fold cross-validations.
    """
    gammas = [factor / features.shape[1] for factor in _GAMMAS]
    n_folds = min(_FOLDS, int(np.bincount(targets).min()))
    if n_folds < 2:  # a class with one image
        return gammas[1]
    if len(features) > _MOST_SEARCHED:
        features, _, targets, _ = train_test_split(
            features, targets, train_size=_MOST_SEARCHED, stratify=targets, random_state=seed
        )
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    search = GridSearchCV(pipeline, {"model__gamma": gammas}, cv=folds, refit=False)
    return float(search.fit(features, targets).best_params_["model__gamma"])


def _xgboost(seed: int) -> Any:
    try:
        from xgboost import XGBClassifier  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingExtra("--classifier xgboost", XGBOOST) from error
    return XGBClassifier(
        n_estimators=300, max_depth=2, learning_rate=0.1, subsample=0.8, colsample_bytree=0.5, random_state=seed
    )
