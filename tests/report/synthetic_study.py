"""A plausible finished study, made of formulas: what a report is drawn from, without any training."""

import numpy as np
import pandas as pd

from sae_pipeline.report import GATE_COLUMNS, LineageNode, ReportInputs, SiteInputs
from sae_pipeline.scaling import ScalingResult
from sae_pipeline.scaling.result import FIT_COLUMNS, POINT_COLUMNS, PREDICTION_COLUMNS, REFUSAL_COLUMNS, table

SIZES, SPARSITIES = (256, 512, 1024, 2048, 4096), (4, 8, 16)
TOKENS, HELD_OUT = 2_000_000, 100_000


def autoencoders() -> pd.DataFrame:
    topk = [("topk", n, k, f"topk-n{n}-k{k}") for n in SIZES for k in SPARSITIES]
    relu = [("relu", 1024, None, f"relu-n1024-l{weight}") for weight in ("0.01", "0.02", "0.04")]
    frame = pd.DataFrame(topk + relu, columns=["recipe", "n", "k", "autoencoder"])
    identity = [f"{7919 * (i + 3):x}" * 4 for i in range(len(frame))]
    return frame.assign(k=frame["k"].astype("Int64"), seed=0, sae_id=[text[:12] for text in identity])


def nmse(n: float, l0: float, recipe: str = "topk") -> float:
    worse = 1.0 if recipe == "topk" else 1.25
    return float(worse * np.exp(0.15 - 0.12 * np.log(n) - 0.26 * np.log(l0) + 0.004 * np.log(n) * np.log(l0)))


def metrics() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for place, row in enumerate(autoencoders().itertuples()):
        l0 = float(row.k) - 0.01 if row.recipe == "topk" else (15.2, 8.1, 4.3)[place % 3]
        error = nmse(row.n, l0, row.recipe) * float(np.exp(0.01 * rng.standard_normal()))
        values = {
            ("l0", "all"): (l0, 0.0 if row.recipe == "topk" else 0.2),
            ("nmse", "all"): (error, 0.003),
            ("nmse", "without_position_0"): (error * 1.02, 0.003),
            ("explained_variance", "all"): (1 - error, 0.003),
            ("dce", "all"): (1.4 * error**1.6, 0.02),
            ("kl", "all"): (1.3 * error**1.6, 0.02),
            ("loss_recovered", "zero"): (1 - 0.14 * error, 0.002),
            ("loss_recovered", "mean"): (1 - 0.3 * error, 0.004),
            ("dead", "all"): (0.0005 * row.n / 256, None),
            ("dense_l0_share", "above_0.1"): (0.02 * l0 / 4, None),
            ("silent", "all"): (0.002 * row.n / 256, None),
        }
        for (metric, variant), (value, spread) in values.items():
            rows.append(metric_row(row.autoencoder, row.sae_id, metric, variant, value, spread))
    return pd.DataFrame(rows)


def metric_row(key, sae_id, metric, variant, value, spread):
    return {
        "autoencoder": key, "sae_id": sae_id, "site": "code.2.resid_post", "metric": metric, "variant": variant,
        "value": value, "unit": "1", "better": "lower", "se": None if spread is None else spread / 1.96,
        "ci_lo": None if spread is None else value - spread, "ci_hi": None if spread is None else value + spread,
        "ci_method": None if spread is None else "bootstrap", "n_units": 123, "unit_kind": "document",
        "status": "ok", "reason": None,
    }  # fmt: skip


def scaling() -> ScalingResult:
    """The law behind `nmse`, as fits would report it; the joint form and every irreducible term are refused."""
    table_of = metrics().merge(autoencoders(), on=["autoencoder", "sae_id"])
    points = table_of[table_of["metric"].isin(["nmse", "dce"]) & (table_of["variant"] == "all")]
    points = points.rename(columns={"metric": "target"}).assign(used=True, reason="")
    fits, predictions, refusals = [], [], []
    for (target, recipe), group in points.groupby(["target", "recipe"]):
        named = {"target": target, "recipe": recipe, "n_points": 5}
        if recipe == "relu":
            refusals.append({**named, "fit_id": f"{target}/relu/L_N", "form": "L_N", "irreducible": False, "k": None,
                             "n_points": 3, "reason": "recipe relu has no fixed k"})  # fmt: skip
            continue
        for k, at_k in group.groupby("k"):
            fit_id = f"{target}/{recipe}/L_N/k{k}"
            beta, log_alpha = np.polyfit(np.log(at_k["n"]), np.log(at_k["value"]), 1)
            values = {"alpha": np.exp(log_alpha), "beta": beta, "reducible_at_centre": np.exp(log_alpha) * 1024**beta}
            key = {**named, "fit_id": fit_id, "form": "L_N", "irreducible": False, "k": k}
            fits += [_fit_row(key, name, value) for name, value in values.items()]
            predictions += _prediction_rows(fit_id, at_k, k, log_alpha, beta)
            reason = "the irreducible term is pinned at 0: the fit without it is as good"
            refusals.append({**key, "fit_id": f"{target}/{recipe}/L_N+e/k{k}", "irreducible": True, "reason": reason})
    return ScalingResult(
        fits=table(fits, FIT_COLUMNS),
        predictions=table(predictions, PREDICTION_COLUMNS),
        points=points[list(POINT_COLUMNS)].astype(POINT_COLUMNS),
        refusals=table(refusals, REFUSAL_COLUMNS),
    )


def _fit_row(key, name, value):
    spread = 0.05 * abs(value)
    return {
        **key, "parameter": name, "value": value, "ci_lo": value - spread, "ci_hi": value + spread,
        "ci_method": "profile", "preferred": True, "n_min": 256, "n_max": 4096, "n_centre": 1024.0,
        "k_centre": float(key["k"]), "objective": 1e-4, "rms_log_residual": 0.006, "r2_log": 0.999, "converged": True,
        "starts": 1, "agreeing_starts": 1, "hold_out_n": 4096, "hold_out_log_error": -0.012, "hold_out_reason": "",
    }  # fmt: skip


def _prediction_rows(fit_id, at_k, k, log_alpha, beta):
    def row(kind, name, n, lift=0.0, width=0.01, observed=np.nan):
        value = float(np.exp(log_alpha + lift) * n**beta)
        return {"fit_id": fit_id, "kind": kind, "autoencoder": name, "n": n, "k": float(k), "value": value,
                "lo": value * (1 - width), "hi": value * (1 + width), "observed": observed,
                "log_residual": np.log(value / observed)}  # fmt: skip

    grid = [row("grid", None, n, width=0.01 + 0.02 * abs(np.log(n / 1024)) / 3) for n in np.geomspace(256, 16384, 40)]
    points = [row("point", r.autoencoder, float(r.n), observed=r.value) for r in at_k.itertuples()]
    held = [row("held_out", r.autoencoder, 4096.0, -0.012, observed=r.value) for r in at_k.itertuples() if r.n == 4096]
    return grid + points + held


def training() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(2)
    curves = {}
    step = np.unique([*(2 ** np.arange(11)), *range(19, 1954, 19), 1953])
    tokens = step * 1024
    for row in autoencoders().itertuples():
        end = nmse(row.n, float(row.k) if row.recipe == "topk" else 8.0, row.recipe)
        smooth = end * (1 + 1.4 * (tokens / 1024) ** -0.45) - end * 0.04
        dead = 0.3 * row.n / 4096 * np.exp(-(((np.log(tokens) - np.log(3e5)) / 0.8) ** 2)) + 0.0005 * row.n / 256
        curves[row.autoencoder] = pd.DataFrame(
            {
                "step": step, "tokens": tokens, "lr": 2e-3, "dead": np.where(tokens < 1e5, 0.0, dead),
                "nmse": smooth * np.exp(0.01 * rng.standard_normal(len(tokens))), "l0": 8.0,
            }
        )  # fmt: skip
    return curves


def curves() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    edges, x = np.arange(-5.0, 0.26, 0.25), np.arange(64)
    headline = metrics().query("variant == 'all'").set_index("metric")
    nmse_of, dce_of = (headline.loc[name].set_index("autoencoder")["value"] for name in ("nmse", "dce"))
    parts = []
    for row in autoencoders().itertuples():
        l0 = float(row.k) if row.recipe == "topk" else 8.0
        density = np.exp(np.log(l0 / row.n) - 0.8 + 1.2 * rng.standard_normal(row.n)).clip(0, 0.9)
        fired = rng.binomial(HELD_OUT, density) / HELD_OUT
        latents, _ = np.histogram(np.log10(fired[fired > 0]), bins=edges)
        shape = 1 + 0.1 * np.log1p(x) / 4 - 0.9 * (x == 0)
        for name, at, y, n in (
            ("density_hist", edges[:-1], latents, HELD_OUT),
            ("nmse_by_position", x, nmse_of[row.autoencoder] * shape, 1000),
            ("dce_by_position", x[:-1], dce_of[row.autoencoder] * shape[:-1], 1000),
        ):
            parts.append(pd.DataFrame({"autoencoder": row.autoencoder, "curve": name, "x": at, "y": y, "n": n}))
    return pd.concat(parts, ignore_index=True)


def gates() -> pd.DataFrame:
    rows = [
        ("tokens", "no document is in both splits", "documents_in_both", 0.0, "= 0", "block", True, ""),
        ("tokens", "held-out windows seen in training", "overlap", 0.27, "≤ 0.2", "warn", False, "held_out"),
        ("activations/code.2.resid_post", "every value is finite", "non_finite", 0.0, "= 0", "block", True, ""),
        ("dataset/code.2.resid_post", "batches mix documents", "same_document_ratio", 1.02, "≤ 2", "warn", True, ""),
        ("scaling/code.2.resid_post", "parameters are finite", "non_finite", 0.0, "= 0", "block", True, ""),
    ]
    for place, key in enumerate(autoencoders()["autoencoder"]):
        node = f"autoencoder/code.2.resid_post/{key}"
        rows.append((node, "better than the mean", "nmse", 0.31 + 0.01 * place, "≤ 1", "block", True, ""))
        rows.append((node, "no more than k latents", "max_l0_over_k", 1.0, "≤ 1", "block", True, ""))
        rows.append((node, "dead latents", "dead", 0.002 * place, "≤ 0.05", "warn", True, ""))
    bad = "autoencoder/code.2.resid_post/topk-n4096-k4"
    rows.append((bad, "mean L0 near k", "l0_share", 0.981, "≥ 0.99", "warn", False, "step 1,953"))
    return pd.DataFrame(rows, columns=list(GATE_COLUMNS))


def lineage(site: str = "code.2.resid_post") -> list[LineageNode]:
    nodes = [
        LineageNode("tokens", "tokens", "3fa9c1d27be0" * 5, 1, {"train rows": TOKENS, "held-out rows": 200_000}),
        LineageNode("activations", f"activations/{site}", "a1b2c3d4e5f6" * 5, 1, {"rows": TOKENS, "shards": 31}),
        LineageNode(
            "activations", f"evaluation_set/{site}", "b7e2c9d4e5f6" * 5, 2, {"rows": 100_000, "documents": 123}
        ),
        LineageNode("dataset", f"dataset/{site}", "0c4d1e9b7a55" * 5, 1, {"normaliser": "paper"}),
    ]
    for row in autoencoders().itertuples():
        facts = {"tokens": 1_999_872, "NMSE": nmse(row.n, 8.0)}
        nodes.append(LineageNode("autoencoders", f"autoencoder/{site}/{row.autoencoder}", row.sae_id * 5, 3, facts))
        for metric in ("reconstruction", "density", "downstream"):
            nodes.append(LineageNode("evaluation", f"eval_{metric}/{site}/{row.autoencoder}", row.sae_id[::-1] * 5, 1))
    return [*nodes, LineageNode("scaling", f"scaling_laws/{site}", "9d0f55aa1c3e" * 5, 1, {"fits": 6, "refusals": 8})]


def site_inputs(site: str = "code.2.resid_post") -> SiteInputs:
    shards = pd.DataFrame({"shard": np.arange(31)})
    shards["mean_norm"] = 24.1 + 0.05 * np.sin(shards["shard"])
    shards["std"] = 1.31 + 0.004 * np.cos(shards["shard"])
    return SiteInputs(
        site=site,
        autoencoders=autoencoders(),
        metrics=metrics(),
        training=training(),
        curves=curves(),
        scaling=scaling(),
        shards=shards,
        data={
            "width d": 192, "normaliser": "paper", "rows": TOKENS, "mean norm ‖x‖": 24.13,
            "same-document pairs, observed / expected": 1.02, "same-context pairs, observed / expected": 0.99,
            "held-out rows evaluated": 100_032, "held-out documents": 123, "clean loss (nats/token)": 2.3123,
        },
        dead_window_tokens=100_000,
    )  # fmt: skip


def report_inputs(**changes) -> ReportInputs:
    rng = np.random.default_rng(4)
    documents = pd.DataFrame(
        {"split": ["train"] * 900 + ["held_out"] * 90, "n_tokens": rng.lognormal(8, 1.3, 990).astype(int)}
    )
    fields = {
        "title": "Demo: TopK autoencoders on a small code model",
        "study": "demo",
        "subject": {"subject": "embedded/code-large", "parameters": 5_117_440, "training tokens": TOKENS},
        "lineage": lineage(),
        "sites": [site_inputs()],
        "gates": gates(),
        "tokens": {
            "documents, train": 900, "documents, held out": 90, "context (tokens)": 64, "rows, train": TOKENS,
            "rows, held out": 200_000, "held-out windows also in training": "4.1 %", "excluded rows": 18_223,
        },
        "documents": documents,
        "provenance": {"sae-pipeline": "0.1.0", "torch": "2.8.0", "transformers": "5.0.1", "numpy": "2.4.6"},
    }  # fmt: skip
    return ReportInputs(**(fields | changes))
