# One-liners over the command line; `make help` lists them.
PYTHON ?= >=3.11
RUN = .venv/bin/python -m medreason

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint layers smoke matrix rehearse bench sft grpo rarl report ui tiny clean

# What a stopped command says to type; of these targets alone, since `make test` reads what commands say.
demo smoke matrix rehearse bench sft grpo rarl report: export MEDREASON_COMMAND = make $(MAKECMDGOALS)$(if $(MAKEOVERRIDES), $(MAKEOVERRIDES))

help:  ## this list
	@grep -hE '^[a-z ]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: .venv/ready  ## make .venv from requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@command -v uv >/dev/null || python3 -m pip install --quiet uv
	@echo "setting up .venv from requirements.lock, about a minute"
	uv venv --quiet --clear --python "$(PYTHON)" .venv
	uv pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements.lock
	uv pip install --quiet --python .venv/bin/python --no-deps -e .
	@touch $@

demo: setup  ## base, SFT, GRPO and RARL on phantoms with the tiny model, on CPU, then the report
	$(RUN) experiment=smoke/demo runs.show_table=false
	$(RUN) action=report sweep=demo

test: setup  ## every test that needs no GPU
	.venv/bin/pytest -q

lint: setup  ## ruff, the order of the layers, pyright
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/lint-imports --no-logo
	.venv/bin/pyright

layers: setup  ## which package imports which, as a graph in DOT; cycles would be dashed
	.venv/bin/import-linter drawgraph medreason --show-import-totals --show-lazy-imports --show-cycle-breakers

smoke: setup  ## the demo's four methods for a few steps: does everything still run?
	$(RUN) experiment=smoke/quick

matrix: setup  ## all 40 cells and methods, then the report; EXPERIMENT=smoke/matrix, again to resume
	$(RUN) experiment=$(or $(EXPERIMENT),smoke/matrix) $(ARGS)
	$(RUN) experiment=$(or $(EXPERIMENT),smoke/matrix) $(ARGS) action=report

rehearse: setup  ## every recipe of Med-R1 and RARL to its end, small, on drawn images; which table is which: experiments/README.md
	$(RUN) action=rehearse $(ARGS)

bench: setup  ## grouped GRPO against stock TRL on CPU: seconds, equality, memory
	$(RUN) action=bench model=random_33m method=grpo prompt=no_think data.train_images=4 data.test_images=1 \
	    hardware.per_device_prompts=1 method.prompts_per_step=1 method.trl.num_generations=8 $(ARGS)

sft grpo rarl: setup  ## one method; ARGS="model=qwen2_vl_2b hardware=gpu ..."
	$(RUN) method=$@ $(ARGS)

report: setup  ## tables, heat maps and one HTML page of a sweep; SWEEP=demo
	$(RUN) action=report sweep=$(or $(SWEEP),runs) $(ARGS)

ui: setup  ## MLflow pages for outputs/mlflow.db; prints the address of the newest sweep with results, or of SWEEP=NAME
	.venv/bin/python -m medreason.tracking.pages $(if $(SWEEP),--sweep "$(SWEEP)")

tiny: setup  ## rebuild the embedded model
	.venv/bin/python -m medreason.models.tiny.build

clean:  ## remove .venv/; and outputs/ with all trained models, with OUTPUTS=remove
	rm -rf .venv $(if $(filter remove,$(OUTPUTS)),outputs)
