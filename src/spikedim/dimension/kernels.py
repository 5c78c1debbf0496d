"""Dense linear algebra where it is fastest: PyTorch's library for large sides, else SciPy's.

Both are LAPACK and BLAS on the CPU in the precision of the input; PyTorch ships another build,
which takes half the time for large symmetric eigenproblems. It is imported when first needed.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from spikedim.dimension.arrays import Float

#: Side and multiplications from which the faster routines outweigh the import of PyTorch.
LARGE_SIDE = 2048
LARGE_PRODUCT = 1 << 30


def symmetric_eigenvalues(upper: Float) -> Float:
    """Ascending eigenvalues of a symmetric matrix given by its upper triangle; it is overwritten.

    Raises:
        numpy.linalg.LinAlgError: no convergence.
    """
    if len(upper) < LARGE_SIDE:
        found = linalg.eigvalsh(upper, lower=False, overwrite_a=True, check_finite=False)
        return np.asarray(found)
    import torch

    try:
        return np.asarray(torch.linalg.eigvalsh(torch.from_numpy(upper), UPLO="U").numpy())
    except torch.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(str(error)) from error


def symmetric_eigenvectors(upper: Float) -> tuple[Float, Float]:
    """Ascending eigenvalues and eigenvectors [n, n] of a matrix given by its upper triangle."""
    if len(upper) < LARGE_SIDE:
        return linalg.eigh(upper, lower=False, driver="evd", check_finite=False)
    import torch

    values, vectors = torch.linalg.eigh(torch.from_numpy(upper), UPLO="U")
    return values.numpy(), vectors.numpy()


def product(left: Float, right: Float) -> Float:
    """Matrix product of writable arrays of one type."""
    if left.size * right.shape[1] < LARGE_PRODUCT:
        return left @ right
    import torch

    return np.asarray((torch.from_numpy(left) @ torch.from_numpy(right)).numpy())
