"""The method in its slowest and plainest form, in NumPy: what the fast code must equal.

Nothing here calls the package, and nothing is optimised. W is a weight, k its bits, n = 2**k - 1 the largest code.
Statistics are those of the float32 values, computed in float64 and rounded to float32 once.

Sources: Zhou et al. 2017 (arXiv:1706.07145), balanced quantization; He et al. 2016 (arXiv:1611.10176), mean scale;
Zhou et al. 2016 (arXiv:1606.06160), DoReFa-Net; Rastegari et al. 2016 (arXiv:1603.05279), BWN; Esser et al. 2020
(arXiv:1902.08153), LSQ; Choi et al. 2018 (arXiv:1805.06085), PACT.
"""

import numpy as np

CENTERS = {"mean": np.mean, "median": np.median}


def center_of(values, center):
    """T of Algorithm 2: mean or median in float64, rounded to float32 once."""
    return np.float32(CENTERS[center](values.astype(np.float64)))


def rtz(x):
    """Round half toward zero: sign(x) * ceil(|x| - 1/2)."""
    return np.sign(x) * np.ceil(np.abs(x) - 0.5)


def Q(x, k):
    """Uniform k-bit quantizer on [0, 1]: Q_k(x) = rtz((2**k - 1) x) / (2**k - 1)."""
    return rtz((2**k - 1) * x) / (2**k - 1)


# --- Balanced quantization -------------------------------------------------------------------------------------------


def equalize(W, k, center="mean"):
    """Algorithm 2 of Zhou et al. 2017, literally: HE(W, M, level) by recursion over masks; values in [0, 1]."""
    W = W.astype(np.float64)

    def HE(M, level):
        if not M.any():
            return np.zeros(W.shape)
        if level == 0:
            low, high = W[M].min(), W[M].max()
            return M * (W - low) / ((high - low) or 1)
        T = center_of(W[M], center)
        M_l, M_g = M & (W < T), M & (W >= T)
        return 0.5 * HE(M_l, level - 1) + (0.5 * HE(M_g, level - 1) + 0.5) * M_g

    return HE(np.ones(W.shape, dtype=bool), k)


def balanced_quantization(W, k, center="mean"):
    """Algorithm 1 of Zhou et al. 2017, literally. The smallest element of every bin but the lowest drops one level."""
    scale = np.abs(W).max().astype(np.float64)
    W_e = equalize(W, k, center)
    W_f = rtz(2**k * W_e - 0.5) / (2**k - 1) - 0.5
    return 2 * scale * W_f


def balanced_partition(w, k, center="mean"):
    """Codes and thresholds of a 1-dimensional weight: the partition of Algorithm 2, by recursion over index sets.

    The code is the index of the bin. A bin without members keeps the threshold of its parent (0 at the root).
    """
    codes, thresholds = np.zeros(w.size, dtype=np.uint8), []

    def split(members, level, parent):
        if level == 0:
            codes[members] = len(thresholds)  # bins and thresholds are visited from left to right
            return
        T = center_of(w[members], center) if members.size else parent
        split(members[w[members] < T], level - 1, T)
        thresholds.append(T)
        split(members[w[members] >= T], level - 1, T)

    split(np.arange(w.size), k, np.float32(0))
    return codes, np.array(thresholds, dtype=np.float32)


def levels(codes, scale, k):
    """Level s (2c - n) of every code, float32."""
    return np.float32(scale) * (2 * codes.astype(np.float32) - np.float32(2**k - 1))


# --- Scale: half the distance between two levels ---------------------------------------------------------------------


def max_scale(W, k):
    """max|W| / n (Zhou et al. 2017, Algorithm 1)."""
    return np.abs(W).astype(np.float64).max() / (2**k - 1)


def mean_scale(W, k):
    """1.25 mean|W| / n (He et al. 2016)."""
    return 1.25 * np.abs(W).astype(np.float64).mean() / (2**k - 1)


def least_squares_scale(W, codes, k):
    """Solution s of min ||W - s z||, z = 2c - n."""
    z = 2.0 * codes.astype(np.float64) - (2**k - 1)
    return np.linalg.lstsq(z.reshape(-1, 1), W.astype(np.float64).reshape(-1), rcond=None)[0][0]


# --- Uniform quantization --------------------------------------------------------------------------------------------


def uniform_codes(W, scale, k):
    """Code n Q_k(x) of x = clip(W / (2 n s) + 1/2, 0, 1): the nearest of the levels s (2c - n), float64."""
    n = 2**k - 1
    return n * Q(np.clip(W / (2.0 * n * np.asarray(scale, dtype=np.float64)) + 0.5, 0, 1), k)


def bwn(W):
    """Binary weights of Rastegari et al. 2016: mean|W| * sign(W), with sign(0) = 1."""
    return np.abs(W).astype(np.float64).mean() * np.where(W >= 0, 1.0, -1.0)


def dorefa(W, k):
    """DoReFa-Net, equation 9: 2 Q_k(tanh W / (2 max|tanh W|) + 1/2) - 1, for k > 1."""
    t = np.tanh(W.astype(np.float64))
    return 2 * Q(t / (2 * np.abs(t).max()) + 0.5, k) - 1


def dorefa_gradient(W, upstream):
    """Gradient of equation 9, dQ_k/dx = 1, for a weight whose largest magnitude occurs once.

    With t = tanh W, m = max|t| = |t_j| and W_q = t / m where it is not rounded:
    dL/dt_i = g_i / m - [i = j] sign(t_j) sum(g t) / m**2, and dt/dW = 1 - t**2.
    """
    t = np.tanh(W.astype(np.float64))
    j = np.abs(t).argmax()
    m = np.abs(t[j])
    gradient = upstream / m
    gradient[j] -= np.sign(t[j]) * (upstream * t).sum() / m**2
    return gradient * (1 - t**2)


# --- Learned scales and ranges ---------------------------------------------------------------------------------------


def lsq(v, s, Qn, Qp):
    """LSQ (Esser et al. 2020), equations 1 and 2: vbar = round(clip(v / s, -Qn, Qp)), and vhat = vbar s."""
    vbar = np.rint(np.clip(v / s, -Qn, Qp))
    return vbar, vbar * s


def lsq_scale_gradient(v, s, Qn, Qp):
    """Equation 3: derivative of vhat by the step size s, without the factor g."""
    return np.where(v / s <= -Qn, -Qn, np.where(v / s >= Qp, Qp, -v / s + np.rint(v / s)))


def lsq_data_gradient(v, s, Qn, Qp):
    """Equation 5: derivative of vhat by v."""
    return np.where((-Qn < v / s) & (v / s < Qp), 1.0, 0.0)


def lsq_factor(count, Qp):
    """Section 2.2: g = 1 / sqrt(N Qp)."""
    return 1 / np.sqrt(count * Qp)


def pact(x, alpha, k):
    """PACT (Choi et al. 2018), equations 1 and 2."""
    y = 0.5 * (np.abs(x) - np.abs(x - alpha) + alpha)
    return np.rint(y * (2**k - 1) / alpha) * alpha / (2**k - 1)


def pact_range_gradient(x, alpha):
    """Equation 3: derivative of the output by alpha."""
    return np.where(x < alpha, 0.0, 1.0)


# --- Activations and statistics --------------------------------------------------------------------------------------


def activation(x, k, r, signed):
    """Codes clamp(round((x - l) / s), 0, n) and levels s c + l in float32, round to even; l = -r if signed, else 0.

    Zero stays zero, whatever its code.
    """
    f = np.float32
    lower = -f(r) if signed else f(0)
    s = np.maximum(f(2 if signed else 1) * f(r) / f(2**k - 1), np.finfo(f).tiny)
    codes = np.clip(np.rint((x.astype(f) - lower) / s), f(0), f(2**k - 1))
    return codes, np.where(x.astype(f) == 0, f(0), s * codes + lower)


def effective_bitwidth(counts):
    """Shannon entropy in bits of a histogram of codes."""
    p = counts[counts > 0] / counts.sum()
    return -(p * np.log2(p)).sum()
