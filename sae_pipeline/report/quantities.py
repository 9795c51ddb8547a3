"""The quantities that the report shows of every autoencoder."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """One column of the matched table: which (metric, variant) it shows, and how to name it to a reader."""

    metric: str
    variant: str
    label: str
    unit: str
    meaning: str


QUANTITIES = {
    "l0": Quantity("l0", "all", "L0", "latents", "active latents per token"),
    "nmse": Quantity("nmse", "all", "NMSE", "", "squared error over the error of predicting the mean activation"),
    "explained_variance": Quantity("explained_variance", "all", "EV", "", "explained variance"),
    "dce": Quantity(
        "dce", "all", "ΔCE", "nats/token", "rise of the next-token loss when the reconstruction is spliced in"
    ),
    "kl": Quantity("kl", "all", "KL", "nats/token", "divergence of the spliced prediction from the clean one"),
    "recovered_zero": Quantity(
        "loss_recovered", "zero", "rec. zero", "", "share of the loss recovered, against zero ablation"
    ),
    "recovered_mean": Quantity(
        "loss_recovered", "mean", "rec. mean", "", "share of the loss recovered, against mean ablation"
    ),
    "dead": Quantity("dead", "all", "dead", "", "share of latents dead at the end of training"),
    "silent": Quantity("silent", "all", "silent@T", "", "share of latents that never fire on the T held-out tokens"),
    "dense": Quantity(
        "dense_l0_share",
        "above_0.1",
        "dense",
        "",
        "share of L0 in latents that fire on over 10 % of tokens",
    ),
}
"""The columns of the matched table, in reading order."""
