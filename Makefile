# The two commands of the README: each makes .venv, installs, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

# torch comes with torchvision in one pip call: two calls may give two builds that do not fit one another
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[train,cpu,openvino,parquet,tensorrt-rtx,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/edgecls demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

check: $(VENV)/installed
	scripts/check

clean:
	rm -rf $(VENV) build *.egg-info edgecls-demo
