"""The paper's Table 1, to stand beside one's own scores.

The table is quoted after a public summary of the paper (docs/evaluation.md), not from the paper itself, and only in so
far as that has it: the rows that follow, fewer columns than the paper's. Compare with the paper before you cite it.
"""

from xpsr_jax.evaluation.protocols import MetricName

# set -> method -> metric -> score. MANIQA is the one of protocol xpsr.
TABLE_1: dict[str, dict[str, dict[MetricName, float]]] = {
    "DIV2K-Val": {
        method: {"psnr": a, "ssim": b, "fid": c, "maniqa": d, "clipiqa": e, "musiq": f}
        for method, a, b, c, d, e, f in (
            ("Real-ESRGAN", 24.30, 0.6324, 44.34, 0.3756, 0.5205, 59.76),
            ("StableSR", 23.26, 0.5670, 28.32, 0.4173, 0.6752, 65.19),
            ("DiffBIR", 23.49, 0.5568, 34.55, 0.4598, 0.6731, 65.57),
            ("PASD", 23.59, 0.5899, 39.74, 0.4440, 0.6573, 66.58),
            ("SeeSR", 23.56, 0.5981, 28.89, 0.5046, 0.6959, 68.35),
            ("XPSR", 22.80, 0.5627, 33.38, 0.6080, 0.7816, 69.99),
        )
    },
    "RealSR": {
        method: {"psnr": a, "maniqa": b, "clipiqa": c, "musiq": d}
        for method, a, b, c, d in (
            ("Real-ESRGAN", 25.68, 0.3736, 0.4487, 60.37),
            ("StableSR", 24.69, 0.4167, 0.6200, 65.25),
            ("SeeSR", 25.31, 0.5370, 0.6638, 69.56),
            ("XPSR", 24.19, 0.6059, 0.7354, 70.23),
        )
    },
    # Its full model in Tables 2 and 4.
    "DRealSR": {"XPSR": {"ssim": 0.7220, "maniqa": 0.5713, "musiq": 67.84}},
}
