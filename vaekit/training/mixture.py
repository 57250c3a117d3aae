"""Fit the prior for sampling: a Gaussian mixture over the encoded training images.

If the images have classes, each class has Gaussians of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import OAS
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from vaekit.maths.prior import Mixture

MAX_COMPONENTS = 64

_LATENTS_PER_COMPONENT = 8  # times d: a full covariance needs several latents per dimension
_LEAST_VARIANCE = 1e-6  # as scikit-learn adds to covariances
_ITERATIONS = 40
_ITERATIONS_BETWEEN = 4  # two calls of ``goes_on``


def components_for(count: int, dimensions: int, most: int = MAX_COMPONENTS) -> int:
    """Return the number of components that ``count`` latents allow.

    It is at most ``most``, and 0 if there are too few latents for one component.
    """
    return min(most, count // (_LATENTS_PER_COMPONENT * dimensions))


def fit_mixture(
    z: NDArray[np.floating],
    classes: NDArray[np.int64] | None = None,
    *,
    components: int = MAX_COMPONENTS,
    seed: int = 0,
    goes_on: Callable[[], bool] | None = None,
) -> Mixture | None:
    """Fit a mixture of full-covariance Gaussians to latents z (N, d).

    z are draws from q(z|x), not means mu: in the means, a dimension that carries little information would collapse to
    a point. There are at most ``components`` components, and fewer for few latents. Returns None if there are too few
    latents for one. ``goes_on`` is called now and then, and returns whether there is time to improve the fit.

    ``classes`` (N,) are the latents' class numbers, or -1. A class's share of the components is its share of the
    latents, but at least one. If there are more classes than ``components``, all latents are fitted together.
    """
    count, dimensions = z.shape
    allowed = components_for(count, dimensions, components)
    if allowed < 1:
        return None
    if classes is None or len(numbers := np.unique(classes)) > components:
        return _fit(z, allowed, seed, goes_on)
    parts = [(int(number), z[classes == number]) for number in numbers]
    fits = [
        (number, len(part) / count, _fit_class(part, max(1, round(allowed * len(part) / count)), seed, goes_on))
        for number, part in parts
    ]
    return Mixture(
        np.concatenate([share * fitted.weights for _, share, fitted in fits]),
        np.concatenate([fitted.means for _, _, fitted in fits]),
        np.concatenate([fitted.cholesky for _, _, fitted in fits]),
        np.concatenate([np.full(len(fitted.weights), number) for number, _, fitted in fits]),
    )


def _fit_class(z: NDArray[np.floating], components: int, seed: int, goes_on: Callable[[], bool] | None) -> Mixture:
    """Fit the latents of one class, however few they are.

    Too few for a full covariance get one Gaussian whose covariance is shrunk towards a multiple of the identity (Chen
    et al., "Shrinkage Algorithms for MMSE Covariance Estimation", 2010); a single one gets the identity.
    """
    count, dimensions = z.shape
    if allowed := components_for(count, dimensions, components):
        return _fit(z, allowed, seed, goes_on)
    location = z.astype(np.float64).mean(axis=0)
    covariance: NDArray[np.float64] = np.eye(dimensions)
    if count > 1:
        covariance = OAS().fit(z.astype(np.float64)).covariance_ + _LEAST_VARIANCE * covariance
    factor = np.asarray(np.linalg.cholesky(covariance), np.float64)
    return Mixture(np.ones(1), np.asarray(location[None]), factor[None])


def _fit(z: NDArray[np.floating], components: int, seed: int, goes_on: Callable[[], bool] | None) -> Mixture:
    model = GaussianMixture(components, max_iter=_ITERATIONS, random_state=seed % 2**32)
    # One thread, because the matrices are tiny: several BLAS threads are two to three times slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last steps gain hundredths of a nat
        if goes_on is None:
            model.fit(z.astype(np.float64))
        else:
            _fit_while(goes_on, model, z.astype(np.float64))
    return Mixture(model.weights_, model.means_, np.linalg.cholesky(model.covariances_))


def _fit_while(goes_on: Callable[[], bool], model: GaussianMixture, z: NDArray[np.float64]) -> None:
    """Fit like one call of ``model.fit``, but stop when time is up.

    The same iterations are done in several calls.
    """
    model.set_params(warm_start=True, max_iter=_ITERATIONS_BETWEEN)
    for _ in range(_ITERATIONS // _ITERATIONS_BETWEEN):
        model.fit(z)
        if model.converged_ or not goes_on():
            return
