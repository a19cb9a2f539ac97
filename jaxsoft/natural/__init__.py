"""Natural gradients without the Fisher matrix: matrix-free curvature, two solvers, an Optax face.

With ψ_t = ∇log π(a_t|s_t), Ψ the matrix of these rows and N their number, everything here solves

    (F + λI) w = g,    F = ΨᵀΨ/N,                                                      (66)-(71)

for which F [P, P] is never formed. `"cg"` runs conjugate gradients on Fisher-vector products;
`"gram"` solves the N×N system of K = ΨΨᵀ/N, w = Ψᵀ(K + λI)⁻¹ Δ/N, which is exact and the choice
while the batch is smaller than the parameters. Ψ is the Jacobian of any function from parameters
to one number per sample; with Q(s_t,a_t) instead of log π the same solve is the Gauss-Newton step
of a soft Q regression, (72)-(78).
"""

from jaxsoft.natural.solve import SolveInfo, SolveStatus, natural_gradient
from jaxsoft.natural.transform import FisherState, scale_by_fisher

__all__ = ["FisherState", "SolveInfo", "SolveStatus", "natural_gradient", "scale_by_fisher"]
