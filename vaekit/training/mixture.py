"""Fitting the prior that samples are drawn from: a Gaussian mixture over the encoded training images."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from vaekit.maths.prior import Mixture

MAX_COMPONENTS = 64

_LATENTS_PER_COMPONENT = 8  # times d: a full covariance needs several latents a dimension
_ITERATIONS = 40


def fit_mixture(z: NDArray[np.floating], *, components: int = MAX_COMPONENTS, seed: int = 0) -> Mixture | None:
    """Fit a mixture of at most ``components`` full-covariance Gaussians to latents z (N, d) drawn from q(z|x).

    The draws, not the means mu, are fitted: a dimension that carries little would else collapse to a point. Fewer
    latents get fewer components; None where there are too few for one.
    """
    count, dimensions = z.shape
    components = min(components, count // (_LATENTS_PER_COMPONENT * dimensions))
    if components < 1:
        return None
    model = GaussianMixture(components, max_iter=_ITERATIONS, random_state=seed % 2**32)
    # One thread: the matrices are tiny, and several threads of BLAS take two to three times as long over them.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last steps gain hundredths of a nat
        model.fit(z.astype(np.float64))
    return Mixture(model.weights_, model.means_, np.linalg.cholesky(model.covariances_))
