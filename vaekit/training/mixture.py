"""Fit the prior for sampling: a Gaussian mixture over the encoded training images."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from vaekit.maths.prior import Mixture

MAX_COMPONENTS = 64

_LATENTS_PER_COMPONENT = 8  # times d; a full covariance needs several latents per dimension
_ITERATIONS = 40


def fit_mixture(z: NDArray[np.floating], *, components: int = MAX_COMPONENTS, seed: int = 0) -> Mixture | None:
    """Fit a mixture of at most ``components`` full-covariance Gaussians.

    The latents z (N, d) are draws from q(z|x). Means mu would not do, because the mixture would shrink to a point in
    dimensions that carry little information. With few latents the mixture has fewer components; None means that there
    are too few for one.
    """
    count, dimensions = z.shape
    components = min(components, count // (_LATENTS_PER_COMPONENT * dimensions))
    if components < 1:
        return None
    model = GaussianMixture(components, max_iter=_ITERATIONS, random_state=seed % 2**32)
    # One thread, because the matrices are tiny: several BLAS threads are two to three times slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # more steps would gain hundredths of a nat
        model.fit(z.astype(np.float64))
    return Mixture(model.weights_, model.means_, np.linalg.cholesky(model.covariances_))
