# Two commands to a first result:  make demo  -  make test
#
#   make setup      the virtual environment .venv, from requirements.lock: 3.5 GB of downloads, 7.5 GB on disk
#   make demo       trains a tiny model in three stages on facts that every machine has, exports it and lets it answer
#                   new questions in every mode; ends with out/demo/report.html, where the modes race
#   make demo-eval  evaluates the demo's model: likelihood, every mode, speed of light, tasks; ends with out/demo/eval/report.html
#   make demo-vlm   trains a tiny vision-language model on drawn pictures, and asks it about pictures that it never saw,
#                   in every mode and blindfolded; ends with out/demo_vlm/report.html
#   make demo-sampler  trains a sampler for the demo's model and measures it; ends with out/demo/sampler.html
#   make test       the tests          make test-pure   those without Megatron
#                                      make test-long   what takes minutes: every layout, a hundred kills, ...
#   make test-cluster   all tests on a real Slurm of two nodes; run by root, it installs Debian's packages for it
#   make lint       ruff and mypy      make format      rewrite files as ruff likes them
#   make lock       resolve the dependencies of pyproject.toml again
#   make picture    draw docs/visibility.svg again

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
NLD := .venv/bin/nld
DEMO := out/demo
VLM := out/demo_vlm
# nvidia-resiliency-ext's wheel is tagged for glibc 2.39; it is Python, and runs on older ones.
PLATFORM := x86_64-manylinux_2_39
# Compilers at a time for Transformer Engine: one a core, and 2 GiB of free memory for each. torch starts more than one
# only where it finds ninja.
JOBS := $(shell awk -v cores=$$(nproc) '/MemAvailable/ {jobs = int($$2 / 2097152); if (jobs > cores) jobs = cores; \
  print jobs < 1 ? 1 : jobs}' /proc/meminfo)

.PHONY: setup demo demo-eval demo-sampler demo-vlm test test-pure test-long test-cluster lint format lock picture
.DELETE_ON_ERROR:

setup: .venv/.ready

# uv where it works, else one of our own in .uv
.uv/path:
	@mkdir -p .uv
	@if uv --version >/dev/null 2>&1; then echo uv > $@; else \
	  for python in python3.12 python3 python; do \
	    if $$python -m venv .uv/venv >/dev/null 2>&1; then break; fi; done; \
	  [ -x .uv/venv/bin/pip ] || { echo "make: no Python 3 with venv found; install one, or uv" >&2; exit 1; }; \
	  echo "installing uv into .uv"; .uv/venv/bin/pip install -q uv; echo .uv/venv/bin/uv > $@; fi

.venv/.ready: requirements.lock pyproject.toml | .uv/path
	@uv=$$(cat .uv/path); echo "setting up .venv with $$uv"; \
	[ -x .venv/bin/python ] || $$uv venv -q --python 3.12 .venv; \
	echo "installing 250 packages, 3.5 GB; on a machine's first time Transformer Engine is compiled too, with $(JOBS) jobs:" \
	  "20 to 35 minutes of CPU"; export MAX_JOBS=$(JOBS) PATH="$$PWD/.uv/ninja/bin:$$PATH"; \
	$$uv pip install -q --target .uv/ninja "$$(grep -o '^ninja==[0-9.]*' requirements.lock)"; \
	( while sleep 30; do echo "  ... still installing, $$SECONDS s"; done ) & beat=$$!; trap "kill $$beat" EXIT; \
	$$uv pip sync --compile-bytecode --python-platform $(PLATFORM) requirements.lock; \
	$$uv pip install -q --no-deps -e .; \
	.venv/bin/python -m compileall -q nld_train data_prep recipes
	@touch $@

lock: | .uv/path
	uv=$$(cat .uv/path); $$uv lock -q --upgrade; \
	$$uv export -q --no-emit-project --no-header --no-annotate -o requirements.lock

$(DEMO)/almanac: | .venv/.ready
	$(NLD) data almanac --output $@

$(DEMO)/tokenizer: | $(DEMO)/almanac
	$(NLD) data train-tokenizer $(DEMO)/almanac/text.jsonl --chat-words --output $@

$(DEMO)/data/almanac.idx: | $(DEMO)/tokenizer
	$(NLD) data prepare $(DEMO)/almanac/text.jsonl --tokenizer $(DEMO)/tokenizer --output $(DEMO)/data/almanac

$(DEMO)/data/chat.idx: | $(DEMO)/tokenizer
	$(NLD) data prepare-chat $(DEMO)/almanac/chat.jsonl --tokenizer $(DEMO)/tokenizer --output $(DEMO)/data/chat \
	  --fill-blocks 16

# What the finished model is asked was never trained on: all of held_out.jsonl, and in the race one question of each kind.
DECODE = --max-new-tokens 96 --dtype float32
RACE = $(NLD) generate --model $(DEMO)/hf --chat --mode all --block-length 16 $(DECODE)

# Another run of the same recipes: `make demo SEED=2`, where out/demo is not there yet.
SEEDED = $(if $(SEED),train.seed=$(SEED) data.shuffle_seed=$(SEED) diffusion.noise_seed=$(SEED))

# A stage that was interrupted resumes; a finished one says so.
demo: $(DEMO)/data/almanac.idx $(DEMO)/data/chat.idx
	$(NLD) train tiny_stage1_ar $(SEEDED)
	$(NLD) train tiny_stage2_joint $(SEEDED)
	$(NLD) train tiny_sft $(SEEDED)
	$(NLD) convert export $(DEMO)/sft --to $(DEMO)/hf --overwrite
	$(RACE) --json $(DEMO)/month.json --prompt "Print the calendar of November 2036, which begins on a Saturday."
	$(RACE) --json $(DEMO)/day.json --prompt "Which day is one week after 30 April 2038?"
	$(RACE) --json $(DEMO)/character.json --prompt "What is LATIN SMALL LETTER A WITH DIAERESIS?"
	$(NLD) eval decode $(DEMO)/hf --prompts $(DEMO)/almanac/held_out.jsonl --chat --mode all --block 16 $(DECODE) \
	  --output $(DEMO)/decoded --overwrite
	$(NLD) report $(DEMO)/stage1_ar $(DEMO)/stage2_joint $(DEMO)/sft --data $(DEMO)/data/almanac \
	  --answers $(DEMO)/month.json $(DEMO)/day.json $(DEMO)/character.json --eval $(DEMO)/decoded \
	  --title "The demo: characters, days and months" --html $(DEMO)/report.html

# One page of all evaluations; killed, each goes on where it stopped.
EVALUATE = --output $(DEMO)/eval --dtype float32
PROMPTS = --prompts $(DEMO)/almanac/held_out.jsonl --chat --max-new-tokens 96
demo-eval: | .venv/.ready
	@[ -f $(DEMO)/hf/config.json ] || $(MAKE) demo
	$(NLD) eval likelihood $(DEMO)/hf --data $(DEMO)/data/almanac --held-out 99,1,0 $(EVALUATE)
	$(NLD) eval decode $(DEMO)/hf $(PROMPTS) --mode all --block 8,16 --threshold 0.1,0.2,0.4,0.9 $(EVALUATE)
	$(NLD) eval sol $(DEMO)/hf $(PROMPTS) --block 4,8,16,32 --threshold 0.1,0.2,0.4,0.9 $(EVALUATE)
	$(NLD) eval tasks $(DEMO)/hf --tasks nld_cloze,nld_arithmetic --mode ar,diffusion,self-spec,quadratic $(EVALUATE)

# Its trajectories stand behind questions that nobody trained on; it is measured behind those that `make demo` asks.
SAMPLED = $(DEMO)/hf --chat --max-new-tokens 96 --dtype float32
demo-sampler: | .venv/.ready
	@[ -f $(DEMO)/hf/config.json ] || $(MAKE) demo
	$(NLD) sampler collect $(SAMPLED) --prompts $(DEMO)/almanac/unasked.jsonl --block 8,16 --output $(DEMO)/trajectories
	$(NLD) train tiny_sampler
	$(NLD) convert sampler $(DEMO)/sampler --to $(DEMO)/hf --overwrite
	$(NLD) eval decode $(SAMPLED) --prompts $(DEMO)/almanac/held_out.jsonl --mode diffusion --block 8,16 \
	  --threshold 0.1,0.2,0.3,0.5,0.7,0.9,0.97,0.99 --sampler --output $(DEMO)/sampled
	$(NLD) report $(DEMO)/sampler --eval $(DEMO)/sampled --title "A trained sampler" --html $(DEMO)/sampler.html

$(VLM)/pictures: | .venv/.ready
	$(NLD) data pictures --output $@

$(VLM)/tokenizer: | $(VLM)/pictures
	$(NLD) data train-tokenizer $(VLM)/pictures/text.jsonl --vocab-size 480 --chat-words --output $@

# The sizes and the three tokens of images are those of recipes/tiny_vlm.py.
$(VLM)/data/chat.idx: | $(VLM)/tokenizer
	$(NLD) data prepare-chat $(VLM)/pictures/chat.jsonl --tokenizer $(VLM)/tokenizer --output $(VLM)/data/chat \
	  --fill-blocks 16 --image-tokens "<SPECIAL_12>,<SPECIAL_13>,<SPECIAL_14>" --patch-size 8 --longest-edge 64

ASK = $(NLD) eval decode $(VLM)/hf --prompts $(VLM)/pictures/held_out.jsonl --chat --block 16 --threshold 0.9 \
  --max-new-tokens 96 --dtype float32 --overwrite
demo-vlm: $(VLM)/data/chat.idx
	$(NLD) train tiny_vlm $(SEEDED)
	$(NLD) convert export $(VLM)/sft --to $(VLM)/hf --overwrite
	$(ASK) --mode all --output $(VLM)/decoded
	$(ASK) --mode ar --blank-images --output $(VLM)/blindfolded
	$(NLD) report $(VLM)/sft --eval $(VLM)/decoded $(VLM)/blindfolded --title "The demo: drawn pictures" --html $(VLM)/report.html

# Two test files at a time, one thread each: more would keep each other from the cores.
test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-pure: setup
	.venv/bin/python -m pytest -m "not megatron and not slow and not long"

test-cluster: setup
	NLD_TEST_CLUSTER=1 .venv/bin/python -m pytest -m "not long or long" tests/slurm

test-long: setup
	.venv/bin/python -m pytest -m long

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

picture: setup
	$(NLD) show visibility --length 16 --block-size 4 --svg docs/visibility.svg
