"""Fit the prior for sampling: a Gaussian mixture over the encoded training images."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from vaekit.maths.prior import Mixture

MAX_COMPONENTS = 64

_LATENTS_PER_COMPONENT = 8  # times d: a full covariance needs several latents per dimension
_ITERATIONS = 40
_ITERATIONS_BETWEEN = 4  # two calls of ``goes_on``


def components_for(count: int, dimensions: int, most: int = MAX_COMPONENTS) -> int:
    """Return the number of components that ``count`` latents allow.

    It is at most ``most``, and 0 if there are too few latents for one component.
    """
    return min(most, count // (_LATENTS_PER_COMPONENT * dimensions))


def fit_mixture(
    z: NDArray[np.floating],
    *,
    components: int = MAX_COMPONENTS,
    seed: int = 0,
    goes_on: Callable[[], bool] | None = None,
) -> Mixture | None:
    """Fit a mixture of full-covariance Gaussians to latents z (N, d).

    z are draws from q(z|x), not means mu: in the means, a dimension that carries little information would collapse to
    a point. There are at most ``components`` components, and fewer for few latents. Returns None if there are too few
    latents for one. ``goes_on`` is called now and then, and returns whether there is time to improve the fit.
    """
    count, dimensions = z.shape
    components = components_for(count, dimensions, components)
    if components < 1:
        return None
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
