r"""Likelihoods: negative log likelihood, and square roots of its Hessian in the model's outputs.

The generalised Gauss-Newton matrix (GGN) of `sum_n nll(f_n, y_n)` is `sum_n J_n^T H_n J_n`, with
`H_n = d^2 nll / d f_n^2` of shape `(C, C)`. With a root `S_n S_n^T = H_n` it is a sum of outer
products of gradients of the scalars `f_n . s_nk`, which is all that curvature estimators ask of a
likelihood. See Schraudolph (2002), "Fast curvature matrix-vector products", and Martens (2020),
https://arxiv.org/abs/1412.1193.
"""

from posthoc_bhpeft.likelihood.bernoulli import Bernoulli
from posthoc_bhpeft.likelihood.categorical import Categorical
from posthoc_bhpeft.likelihood.gaussian import Gaussian
from posthoc_bhpeft.likelihood.likelihood import Likelihood, RowLikelihood
from posthoc_bhpeft.likelihood.tokens import Tokens

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "RowLikelihood", "Tokens"]
