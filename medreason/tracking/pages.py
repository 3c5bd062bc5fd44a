"""`make ui`: MLflow's pages, with the address that shows the newest sweep's runs.

python -m medreason.tracking.pages [OUTPUTS]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from mlflow import MlflowClient

from medreason.config import Tracking
from medreason.console import show
from medreason.tracking import store

_SERVER = "http://127.0.0.1:5000"
_BEST = "metrics.`test/accuracy`"


def address(client: MlflowClient, experiment: str, server: str = _SERVER) -> str:
    """The page with the runs of the sweep that began last, the most accurate first.

    MLflow 3.17 opens on a page for language-model traces unless `workflowType` says otherwise, and
    folds children behind their parent unless a search leaves the parent out.
    """
    search = f"tags.`{store.PREFIX}kind` = 'run'"
    if sweeps := store.find_runs(client, experiment, {f"{store.PREFIX}kind": "sweep"}):
        name = sweeps[-1].data.tags[f"{store.PREFIX}sweep"]
        if not {*name} & {*"'\"\\"}:  # MLflow's filters take no quotes
            search += f" and tags.`{store.PREFIX}sweep` = '{name}'"
    query = {
        "workflowType": "machine_learning",
        "searchFilter": search,
        "orderByKey": _BEST,
        "orderByAsc": "false",
    }
    return f"{server}/#/experiments/{experiment}/runs?{urlencode(query)}"


def main() -> None:
    """Print the address and serve the pages until Ctrl-C."""
    outputs = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
    if not (outputs / "mlflow.db").exists():
        sys.exit(f"{outputs}/mlflow.db is not there yet; `make smoke` makes a first sweep")
    uri = f"sqlite:///{outputs}/mlflow.db"
    tracking = Tracking(name="local", uri=uri)
    client = store.connect(tracking, outputs)
    show(f"the newest sweep: {address(client, store.experiment(client, tracking, outputs))}")
    arguments = ["ui", "--backend-store-uri", store.escaped(uri, outputs)]
    try:
        subprocess.run([sys.executable, "-m", "mlflow", *arguments], check=False)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
