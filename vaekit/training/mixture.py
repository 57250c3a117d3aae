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

_LATENTS_PER_COMPONENT = 8  # times d; a full covariance needs several latents per dimension
_ITERATIONS = 40
_ITERATIONS_BETWEEN = 4  # two questions whether there is time for more


def components_for(count: int, dimensions: int, most: int = MAX_COMPONENTS) -> int:
    """Return how many components that many latents are enough for; 0 if they are too few for one."""
    return min(most, count // (_LATENTS_PER_COMPONENT * dimensions))


def fit_mixture(
    z: NDArray[np.floating],
    *,
    components: int = MAX_COMPONENTS,
    seed: int = 0,
    goes_on: Callable[[], bool] | None = None,
) -> Mixture | None:
    """Fit a mixture of at most ``components`` full-covariance Gaussians to latents z (N, d) drawn from q(z|x).

    The draws, not the means mu, are fitted: a dimension that carries little would else collapse to a point. Fewer
    latents get fewer components; None where there are too few for one. ``goes_on`` is asked now and then whether there
    is time to improve the fit.
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
    """Fit as ``model.fit`` does, the same iterations in several calls, but stop when time is up."""
    model.set_params(warm_start=True, max_iter=_ITERATIONS_BETWEEN)
    for _ in range(_ITERATIONS // _ITERATIONS_BETWEEN):
        model.fit(z)
        if model.converged_ or not goes_on():
            return
