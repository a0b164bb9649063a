"""Linear probes on frozen features: the published SVM, quick ridge regression, a streaming one.

Targets are either class numbers, int (R,), one class per row; or bool (R, C), any number of classes
per row, each of which then is its own yes-or-no question.
"""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from common.errors import UserError

if TYPE_CHECKING:
    import jax

CHUNK_ROWS = 8192  # rows of features held in memory at once by whatever streams them

# Dense float64 copies that scaling and the SVM solver make of the training features.
_SVM_COPIES = 3


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A linear map on standardised features: ``((x - mean) / scale) @ weights + bias``.

    Features that were taken as they are have mean 0 and scale 1.
    """

    mean_D: np.ndarray
    scale_D: np.ndarray
    weights_DC: np.ndarray
    bias_C: np.ndarray
    notes: tuple[str, ...] = ()  # what a reader of the numbers has to know

    def scores(self, features_RD: np.ndarray) -> np.ndarray:
        """Returns decision values, float32 (R, C), reading the features a chunk at a time."""
        scores_RC = np.empty((len(features_RD), len(self.bias_C)), np.float32)
        for rows in _chunks(len(features_RD)):
            standard_RD = (np.asarray(features_RD[rows], np.float64) - self.mean_D) / self.scale_D
            scores_RC[rows] = standard_RD @ self.weights_DC + self.bias_C
        return scores_RC


def fit_svm(
    features_RD: np.ndarray,
    targets: np.ndarray,
    num_classes: int,
    C: float = 1e-4,
    seed: int = 0,
    max_iter: int = 1000,
    standardise: bool = True,
) -> LinearProbe:
    """Fits the linear SVM of the published evaluations: squared hinge, one against the rest.

    Features are standardised with the training rows' mean and deviation, then given to
    scikit-learn's ``LinearSVC`` with the defaults it had then. `C` = 1e-4 is behind every number
    published for BraVe; MMV took 1e-3, MIL-NCE 100 and features as they are. Where there are more
    columns than rows, the rows are first turned into the space they span, which changes neither the
    problem nor its solution and saves most of the work. Everything is held in memory; see
    `fit_logistic` for features that do not fit.

    Args:
        features_RD: float32 (R, D).
        targets: see the module.
        num_classes: classes that scores are returned for. One that no row has scores lowest.
        C: inverse strength of the regularisation.
        seed: for the solver's order of coordinates.
        max_iter: passes of the solver.
        standardise: whether features are standardised.

    Raises:
        UserError: there are fewer than two classes, or memory is too small.
    """
    from sklearn import exceptions
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    present = _present_classes(targets)
    _check_memory(features_RD)
    scaler = StandardScaler(with_mean=standardise, with_std=standardise)
    standard_RD = scaler.fit_transform(np.asarray(features_RD, np.float64))
    mean_D = scaler.mean_ if standardise else np.zeros(features_RD.shape[1])
    scale_D = scaler.scale_ if standardise else np.ones(features_RD.shape[1])
    basis_DE = None
    if standard_RD.shape[1] > standard_RD.shape[0]:
        basis_DE, turned_ER = np.linalg.qr(standard_RD.T)
        standard_RD = np.ascontiguousarray(turned_ER.T)

    def solve(targets_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # scikit-learn now chooses the primal solver where rows are many; it is 2 to 3 times slower.
        solver = LinearSVC(C=C, dual=True, random_state=seed, max_iter=max_iter)
        solver.fit(standard_RD, targets_R)
        return solver.coef_.T, solver.intercept_

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", exceptions.ConvergenceWarning)
        if targets.ndim == 1 and len(present) > 2:
            weights_DK, bias_K = solve(targets)
        elif targets.ndim == 1:  # liblinear answers two classes with one value, for the second
            weights_D1, bias_1 = solve(targets)
            weights_DK = np.concatenate([-weights_D1, weights_D1], axis=1)
            bias_K = np.concatenate([-bias_1, bias_1])
        else:
            solved = [solve(targets[:, c]) for c in present]
            weights_DK = np.concatenate([w for w, _ in solved], axis=1)
            bias_K = np.concatenate([b for _, b in solved])
    short = any(issubclass(w.category, exceptions.ConvergenceWarning) for w in caught)
    notes = (f"the SVM solver stopped after {max_iter} passes, before convergence",) * short
    if basis_DE is not None:
        weights_DK = basis_DE @ weights_DK
    weights_DC, bias_C = _spread(weights_DK, bias_K, present, num_classes)
    return LinearProbe(mean_D, scale_D, weights_DC, bias_C, notes)


def fit_ridge(
    features_RD: np.ndarray, targets: np.ndarray, num_classes: int, C: float = 1e-3
) -> LinearProbe:
    """Fits ridge regression to +1 and -1 for every class, by scikit-learn's ``Ridge``.

    It has a closed form, whose time hardly grows with the number of classes: for hundreds of them
    it takes seconds where one SVM each takes many minutes. Features are standardised; everything is
    held in memory.

    Args:
        features_RD: float32 (R, D).
        targets: see the module.
        num_classes: classes that scores are returned for. One that no row has scores lowest.
        C: inverse strength of the regularisation, 1 / alpha.

    Raises:
        UserError: there are fewer than two classes, or memory is too small.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    present = _present_classes(targets)
    _check_memory(features_RD)
    scaler = StandardScaler()
    standard_RD = scaler.fit_transform(np.asarray(features_RD, np.float64))
    own_RK = targets[:, None] == present if targets.ndim == 1 else targets[:, present]
    ridge = Ridge(alpha=1 / C).fit(standard_RD, np.where(own_RK, 1.0, -1.0))
    weights_DC, bias_C = _spread(ridge.coef_.T, ridge.intercept_, present, num_classes)
    return LinearProbe(scaler.mean_, scaler.scale_, weights_DC, bias_C)


def fit_logistic(
    features_RD: np.ndarray,
    targets: np.ndarray,
    num_classes: int,
    C: float = 1e-2,
    max_iter: int = 1000,
) -> LinearProbe:
    """Fits logistic regression a chunk of rows at a time: memory does not grow with their number.

    The objective is scikit-learn's ``LogisticRegression``: the summed cross-entropy (softmax for
    class numbers, one sigmoid per class for bool targets) plus half the squared weights over `C`,
    the bias free; on standardised features, by SciPy's L-BFGS. Every step passes over
    `features_RD`, which is meant to be a memory-mapped file.

    Args:
        features_RD: float32 (R, D), in memory or memory-mapped.
        targets: see the module.
        num_classes: classes that scores are returned for.
        C: inverse strength of the regularisation.
        max_iter: steps at most; a note says where more were needed.

    Raises:
        UserError: there are fewer than two classes.
    """
    import jax
    import scipy.optimize

    present = _present_classes(targets)
    num_rows, dim = features_RD.shape
    mean_D, scale_D = standardisation(features_RD)
    single = targets.ndim == 1
    class_targets = np.searchsorted(present, targets) if single else targets[:, present]
    # Of two classes scikit-learn knows one vector of weights; here it is shared by two.
    penalty = (2 if single and len(present) == 2 else 1) / (C * num_rows)
    loss_of = jax.jit(jax.value_and_grad(_cross_entropy))

    def objective(flat_P: np.ndarray) -> tuple[float, np.ndarray]:
        params_EK = flat_P.reshape(dim + 1, len(present))  # the last row is the bias
        value, gradient_EK = 0.0, np.zeros_like(params_EK)
        for rows in _chunks(num_rows):
            x_RD = (np.asarray(features_RD[rows], np.float64) - mean_D) / scale_D
            y = class_targets[rows]
            loss, pull_EK = loss_of(params_EK.astype(np.float32), x_RD.astype(np.float32), y)
            value += float(loss) / num_rows
            gradient_EK += np.asarray(pull_EK) / num_rows
        gradient_EK[:-1] += penalty * params_EK[:-1]
        return value + 0.5 * penalty * np.sum(params_EK[:-1] ** 2), gradient_EK.ravel()

    done = scipy.optimize.minimize(
        objective, np.zeros((dim + 1) * len(present)), jac=True, method="L-BFGS-B",
        options={"maxiter": max_iter, "maxfun": 2 * max_iter, "gtol": 1e-6, "ftol": 1e-9},
    )  # fmt: skip
    params_EK = done.x.reshape(dim + 1, len(present))
    weights_DC, bias_C = _spread(params_EK[:-1], params_EK[-1], present, num_classes)
    # Where float32 ends the search (status 2), nothing is left to gain.
    short = done.status == 1
    notes = (f"logistic regression stopped after {done.nit} steps, before convergence",) * short
    return LinearProbe(mean_D, scale_D, weights_DC, bias_C, notes)


def _cross_entropy(params_EK: jax.Array, x_RD: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the summed cross-entropy of some rows; the last row of the parameters is the bias."""
    import optax

    logits_RK = x_RD @ params_EK[:-1] + params_EK[-1]
    if targets.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits_RK, targets).sum()
    return optax.sigmoid_binary_cross_entropy(logits_RK, targets).sum()


def standardisation(features_RD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation per column, float64 (D,), in two passes over the rows.

    A column that never varies gets deviation 1, as in scikit-learn's ``StandardScaler``.
    """
    num_rows, dim = features_RD.shape
    mean_D = np.zeros(dim)
    for rows in _chunks(num_rows):
        mean_D += np.asarray(features_RD[rows], np.float64).sum(axis=0) / num_rows
    variance_D = np.zeros(dim)
    for rows in _chunks(num_rows):
        centred_RD = np.asarray(features_RD[rows], np.float64) - mean_D
        variance_D += (centred_RD**2).sum(axis=0) / num_rows
    # Rounding leaves a constant column with a tiny deviation, by which it must not be divided.
    still_D = variance_D <= (10 * np.finfo(np.float64).eps * np.abs(mean_D)) ** 2
    return mean_D, np.where(still_D, 1.0, np.sqrt(variance_D))


def mean_per_video(scores_RC: np.ndarray, starts_N: np.ndarray) -> np.ndarray:
    """Averages the rows of each video, float64 (N, C); a video's rows follow one another.

    Args:
        scores_RC: decision values of all rows.
        starts_N: the first row of each video, increasing; no video is without rows.
    """
    counts_N = np.diff(np.append(starts_N, len(scores_RC)))
    return np.add.reduceat(scores_RC.astype(np.float64), starts_N, axis=0) / counts_N[:, None]


def _present_classes(targets: np.ndarray) -> np.ndarray:
    """Returns the classes that can be learned: those that some rows have and others have not."""
    if targets.ndim == 1:
        present = np.unique(targets)
        if len(present) < 2:
            raise UserError(
                f"The training split holds {len(present)} class; a probe needs at least two. "
                "Check the labels of --train."
            )
        return present
    present = np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0))
    if not len(present):
        raise UserError(
            "No label in the training split is on some videos and off others, so there is nothing "
            "to learn. Check the labels of --train."
        )
    return present


def _spread(
    weights_DK: np.ndarray, bias_K: np.ndarray, present: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places the learned classes among all; the others score below every learned one."""
    weights_DC = np.zeros((len(weights_DK), num_classes))
    bias_C = np.full(num_classes, -np.inf)
    weights_DC[:, present] = weights_DK
    bias_C[present] = bias_K
    return weights_DC, bias_C


def _chunks(num_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, CHUNK_ROWS):
        yield slice(start, min(start + CHUNK_ROWS, num_rows))


def _check_memory(features_RD: np.ndarray) -> None:
    """Raises before the machine starts swapping, where the system says how much is free."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not every system can say
        return
    free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    needed = features_RD.size * 8 * _SVM_COPIES
    if needed > free:
        raise UserError(
            f"The SVM would need about {needed / 2**30:.1f} GiB for {len(features_RD)} rows of "
            f"{features_RD.shape[1]} features and {free / 2**30:.1f} GiB are free. Use "
            "--probe=logistic, which streams them from disk."
        )
