#!/usr/bin/env bash
# Hydra's Optuna sweeper: the stable release cannot make a study, and of the pre-releases that fit Optuna 4 the newer ones cannot
# make their sampler, though both declare that they fit the packages they were installed with.
#
# Expected: a two-trial sweep over one number, as in the plugin's own documentation, with Hydra 1.3.8 and a study in SQLite.
# Seen:
#   1.3.0, the latest stable one, asks for optuna<3 and gets 2.10.1, which takes any SQLAlchemy from 1.1 on and fails on 2.1:
#     AssertionError (`assert version is not None`) where it reads the schema's version from the study it has just made.
#   1.4.0.dev10 asks for hydra-core>=1.1.0.dev7 and cannot make its default sampler under 1.3.8: InstantiationException, "Cannot
#     instantiate config of type TPESampler. Top level config must be an OmegaConf DictConfig/ListConfig object".
#   1.4.0.dev6 works with the same packages.
#
# Why it matters: a search that was written down as `hydra/sweeper=optuna` ends in an error that names neither package, and the
# upgrade of the plugin moves it to another place.
#
# Output seen on 2026-11-28:
#   hydra-optuna-sweeper 1.3.0 with optuna 2.10.1: AssertionError
#   hydra-optuna-sweeper 1.4.0.dev10 with optuna 4.9.0: InstantiationException
#   hydra-optuna-sweeper 1.4.0.dev6 with optuna 4.9.0: works
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
mkdir conf && cat > conf/config.yaml <<'Y'
defaults:
  - override hydra/sweeper: optuna
x: 1.0
hydra:
  mode: MULTIRUN
  sweeper:
    n_trials: 2
    direction: minimize
    study_name: study
    storage: sqlite:///study.db
    params:
      x: interval(-1.0, 1.0)
Y
cat > search.py <<'PY'
import hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    return config.x**2


main()
PY
try() { # version of the plugin, how it ends, further packages
    python3 -m venv "env-$1"
    "env-$1/bin/pip" install --quiet "hydra-optuna-sweeper==$1" hydra-core==1.3.8 sqlalchemy==2.1.9 "${@:3}"
    rm -rf study.db multirun
    end=works
    "env-$1/bin/python" search.py > log 2>&1 || end=$(grep -oE '^[A-Za-z]*(Error|Exception)' log | tail -1)
    echo "hydra-optuna-sweeper $1 with optuna $("env-$1/bin/python" -c 'import optuna; print(optuna.__version__)'): $end"
    [ "$end" = "$2" ] || { echo "changed"; tail -20 log; exit 1; }
}
try 1.3.0 AssertionError
try 1.4.0.dev10 InstantiationException optuna==4.9.0
try 1.4.0.dev6 works optuna==4.9.0
