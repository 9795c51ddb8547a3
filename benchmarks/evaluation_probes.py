"""Probes of every latent on every task, against one logistic regression after another.

    sparse    codes of 63 latents a row: every latent is fitted
    denser    codes of 470 latents a row, as where the tokens of a text are pooled
    screened  pre-activations: the 256 latents whose score test says most are fitted

The plain way is scikit-learn's LogisticRegression in a loop (`pip install scikit-learn`; where it is missing, SciPy's
L-BFGS-B on the same objective). It would take an hour, so a part of the fits is timed, and the rest reckoned from it.
Ours is timed whole. Run `python benchmarks/evaluation_probes.py [--quick]`; prints a table and, with scikit-learn and
without `--quick`, writes results/evaluation_probes.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize

from sae_pipeline.evaluation.probes.columns import SparseColumns
from sae_pipeline.evaluation.probes.newton import fit_columns
from sae_pipeline.evaluation.probes.search import Readings, SparseCodes

GOAL = 1000.0
RIDGE = 1.0
SCREEN = 256
HAS_SKLEARN = importlib.util.find_spec("sklearn") is not None


@dataclass(frozen=True)
class Case:
    """Ways to probe n features on all tasks: `ours` all of them, `column` one feature's values for the plain way.

    `ours` returns the training loss of the best feature of each task; `loss_of` that of any feature.
    """

    name: str
    size: str
    labels_rt: np.ndarray
    n: int
    ours: Callable[[], list[Any]]
    column: Callable[[int], np.ndarray]
    loss_of: Callable[[int, int], float]


def labels(random: np.random.Generator, hidden_rt: np.ndarray) -> np.ndarray:
    """Labels that follow a hidden value of each task, with noise."""
    return hidden_rt + random.normal(size=hidden_rt.shape) > np.median(hidden_rt, axis=0)


def sparse_case(name: str, rows: int, n: int, tasks: int, per_row: int) -> Case:
    """Codes whose latents differ in how often they fire; each task follows one of the commonest."""
    random = np.random.default_rng(0)
    share_n = random.lognormal(0, 1.5, n)
    share_n = np.sort(np.minimum(0.5, share_n * per_row / share_n.sum()))[::-1]
    parts = [
        sparse.csc_array((random.random(rows) < share)[:, None] * random.exponential(1, (rows, 1))) for share in share_n
    ]
    codes = sparse.csr_array(sparse.hstack(parts))
    labels_rt = labels(random, 2 * codes[:, :tasks].toarray())
    features, csc = SparseCodes(codes, codes[:1]), codes.tocsc()
    sd_n = np.sqrt(np.asarray(csc.power(2).mean(axis=0)) - np.asarray(csc.mean(axis=0)) ** 2)

    def loss_of(latent: int, task: int) -> float:
        one = SparseColumns.of(csc[:, [latent]], sd_n[[latent]], labels_rt[:, task])
        return float(fit_columns(one, RIDGE).loss_m[0])

    return Case(
        name,
        f"n={n} tasks={tasks} rows={rows} nnz={codes.nnz}",
        labels_rt,
        n,
        lambda: [features.best(labels_rt[:, task], RIDGE) for task in range(tasks)],
        lambda latent: csc[:, [latent]].toarray()[:, 0],
        loss_of,
    )


def screened_case(rows: int, n: int, tasks: int, d: int) -> Case:
    """Readings of rows; each task follows one of them."""
    torch.manual_seed(0)
    x_rd, W_nd = torch.randn(rows, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)
    W_nd /= W_nd.norm(dim=1, keepdim=True)
    labels_rt = labels(np.random.default_rng(0), (x_rd @ W_nd[:tasks].T).numpy())

    def ours() -> list[Any]:
        readings = Readings(W_nd, x_rd, x_rd[:1])  # its covariance, which all tasks share, is part of the time
        return [readings.best(labels_rt[:, task], RIDGE, SCREEN) for task in range(tasks)]

    return Case(
        "screened",
        f"n={n} tasks={tasks} rows={rows} d={d}",
        labels_rt,
        n,
        ours,
        lambda latent: (x_rd @ W_nd[latent]).numpy(),
        lambda latent, task: Readings(W_nd[[latent]], x_rd, x_rd[:1]).best(labels_rt[:, task], RIDGE, None).train_loss,
    )


def plain_loss(x_r: np.ndarray, label_r: np.ndarray) -> float:
    """One logistic regression on one standardised feature."""
    x_r1 = ((x_r - x_r.mean()) / x_r.std())[:, None]
    if HAS_SKLEARN:
        from sklearn.linear_model import LogisticRegression

        fit = LogisticRegression(C=1 / RIDGE, tol=1e-8, max_iter=1000).fit(x_r1, label_r)
        w, b = fit.coef_[0, 0], fit.intercept_[0]
    else:
        w, b = minimize(objective, np.zeros(2), (x_r1[:, 0], label_r), jac=True, options={"gtol": 1e-8}).x
    return float(np.logaddexp(0, np.where(label_r, -1, 1) * (w * x_r1[:, 0] + b)).mean())


def objective(theta: np.ndarray, x_r: np.ndarray, label_r: np.ndarray) -> tuple[float, np.ndarray]:
    """The penalised loss and its gradient."""
    logit_r = theta[0] * x_r + theta[1]
    loss = np.logaddexp(0, np.where(label_r, -logit_r, logit_r)).sum() + RIDGE / 2 * theta[0] ** 2
    wrong_r = np.exp(-np.logaddexp(0, -logit_r)) - label_r
    return float(loss), np.array([wrong_r @ x_r + RIDGE * theta[0], wrong_r.sum()])


def cases(quick: bool) -> Iterator[Case]:
    rows, n, tasks = (500, 1024, 4) if quick else (4000, 32768, 20)
    yield sparse_case("sparse", rows, n, tasks, 16 if quick else 63)
    yield sparse_case("denser", rows, n, tasks, 64 if quick else 470)
    yield screened_case(rows, n, tasks, 64 if quick else 768)


def measure(case: Case, repetitions: int, sampled: int) -> dict[str, Any]:
    """Seconds of both ways on one thread, by the processor, their ratio, and the largest difference of losses."""
    random = np.random.default_rng(1)
    n_tasks = case.labels_rt.shape[1]
    ratios, seconds = [], []
    difference = 0.0
    case.ours()
    for _ in range(repetitions):
        started = time.process_time()
        best = case.ours()
        ours_s = time.process_time() - started
        pairs = [(int(random.integers(case.n)), int(random.integers(n_tasks))) for _ in range(sampled)]
        pairs = [(latent, task) for latent, task in pairs if np.ptp(case.column(latent)) > 0]
        columns = [(case.column(latent), case.labels_rt[:, task]) for latent, task in pairs]
        started = time.process_time()
        plain = [plain_loss(x_r, label_r) for x_r, label_r in columns]
        plain_s = (time.process_time() - started) / len(plain) * case.n * n_tasks
        ours = [case.loss_of(latent, task) for latent, task in pairs]
        plain += [plain_loss(case.column(one.feature), case.labels_rt[:, task]) for task, one in enumerate(best)]
        ours += [one.train_loss for one in best]
        difference = max(difference, float(np.abs(np.subtract(plain, ours)).max()))
        ratios.append(plain_s / ours_s)
        seconds.append((plain_s, ours_s))
    plain_s, ours_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "metric": f"probes, {case.name}",
        "size": case.size,
        "plain_s": round(plain_s, 1),
        "ours_s": round(ours_s, 4),
        "ratio": round(statistics.median(ratios), 1),
        "ratio_min": round(min(ratios), 1),
        "ratio_max": round(max(ratios), 1),
        "goal": GOAL,
        "largest_difference_nats": float(f"{difference:.2g}"),
    }


def probe_rows(quick: bool) -> Iterator[dict[str, Any]]:
    """One row of results for every case."""
    torch.set_num_threads(1)
    for case in cases(quick):
        yield measure(case, 1 if quick else 5, 40 if quick else 200)


def plain_name() -> str:
    """What the plain way is fitted with."""
    if not HAS_SKLEARN:
        return "scipy L-BFGS"
    from sklearn import __version__

    return f"scikit-learn {__version__} lbfgs"


def main() -> None:
    """Measure every case, print a line for each, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition at small sizes; nothing is written")
    quick = parser.parse_args().quick
    print(f"plain: {plain_name()}")
    print(f"{'metric':18}{'plain s':>9}{'ours s':>9}{'ratio':>8}{'min..max':>18}{'goal':>6}{'nats':>10}  size")
    rows = []
    for row in probe_rows(quick):
        rows.append(row)
        spread = f"{row['ratio_min']}..{row['ratio_max']}"
        print(
            f"{row['metric']:18}{row['plain_s']:9.1f}{row['ours_s']:9.3f}{row['ratio']:8.0f}{spread:>18}"
            f"{row['goal']:6.0f}{row['largest_difference_nats']:10.1e}  {row['size']}",
            flush=True,
        )
    if not quick and HAS_SKLEARN:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "plain": plain_name(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": 1,
        }
        path = Path(__file__).parent / "results" / "evaluation_probes.json"
        path.write_text(json.dumps({"machine": machine, "metrics": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
