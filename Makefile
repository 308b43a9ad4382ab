# make demo and make test do all the set-up they need; a second call does none. `make help` lists everything.

SHELL := bash
PYTHON ?= python3
BIN := .venv/bin

# The stamp's name holds a checksum of all that decides what is installed, and of the place (a moved folder needs a new set-up).
READY := .venv/.ready-$(shell { cat setup.cfg pyproject.toml Makefile; pwd; } | cksum | tr ' ' '-')

.PHONY: help demo test docs setup clean

help:
	@echo "make demo    train seven methods on glyphs and print their leaderboard"
	@echo "make test    lint, types and tests"
	@echo "make docs    the documentation as a site, in build/docs"
	@echo "make setup   only the set-up that both of them begin with: .venv, with torch (several GB) and learn2learn"
	@echo "make clean   remove .venv and the caches of the tools"
	@echo "PYTHON=...   the Python (>= 3.10) that .venv is made with; now $(PYTHON)"

demo: $(READY)
	@$(BIN)/metazoo leaderboard demo

test: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy metazoo algorithms benchmarks tests
	$(BIN)/python -m pytest -q -n 2

docs: $(READY)
	@$(BIN)/python -m sphinx -W --keep-going -q -E docs build/docs
	@echo "build/docs/index.html"

setup: $(READY)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache

define REQUIREMENTS
import os, shutil, sys, sysconfig
def stop(sentence):
    sys.exit("metazoo: " + sentence)
if sys.version_info < (3, 10):
    stop("this is Python %d.%d and 3.10 or newer is needed; name one, as in: make PYTHON=python3.12 test" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    stop("this Python has no venv module; install it (on Debian and Ubuntu: apt install python3-venv).")
compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
if not shutil.which(compiler):
    stop("no C compiler ('%s') was found and learn2learn needs one; install it (on Debian and Ubuntu: apt install gcc)." % compiler)
if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
    stop("this Python has no C headers and learn2learn needs them; install them (on Debian and Ubuntu: apt install python3-dev).")
endef
export REQUIREMENTS

# pip's own settings (indexes, proxies, caches) are left alone. Of its output we show the large downloads and the long steps,
# and of its stderr everything but the note it repeats for each package that a local index does not hold.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore $(BIN)/python -m pip install --progress-bar off --no-build-isolation
LONG_STEPS := while IFS= read -r line; do case "$$line" in \
	*Downloading*" ("[0-9][0-9]*[MG]"B)") file=$${line\#*Downloading }; printf '    %-24s %s\n' "$${file%%-*}" "$${file\#*" "}";; \
	*"Building wheel for"*started) file=$${line\#*for }; echo "    Building $${file%% *}";; \
	"Installing collected"*) echo "    Installing the packages";; esac; done
SHOWN = 2> >(grep --line-buffered -v "^WARNING: Location .* is ignored" >&2) | $(LONG_STEPS)

# A .venv without a stamp is a set-up that was killed: it is begun afresh.
$(READY):
	@command -v "$(PYTHON)" > /dev/null || { echo "metazoo: there is no '$(PYTHON)' here; install Python >= 3.10, or name one, as in: make PYTHON=python3.12 test" >&2; exit 1; }
	@$(PYTHON) -c "$$REQUIREMENTS"
	@set -eo pipefail; \
	trap 'test $$? = 0 || echo "metazoo: the set-up did not finish; the reason is above. The same command tries again." >&2' EXIT; \
	echo "Setting up .venv (once)."; \
	clear=; ls .venv/.ready-* > /dev/null 2>&1 || clear=--clear; rm -f .venv/.ready-*; \
	$(PYTHON) -m venv $$clear .venv; \
	echo "1/3 build tools"; \
	$(PIP) "pip>=23.1" cython "setuptools>=70" wheel $(SHOWN); \
	echo "2/3 torch, metazoo and what they need: about 3 GB to download the first time, 6 GB on disk; the largest:"; \
	$(PIP) -e ".[dev,docs,figures]" $(SHOWN); \
	echo "3/3 learn2learn, compiled here"; \
	$(PIP) --no-deps --use-pep517 --config-settings=--global-option=build_ext learn2learn==0.2.0 $(SHOWN); \
	$(BIN)/python -W ignore -c "import torch, torchvision, learn2learn" 2> .venv/import.log || { cat .venv/import.log >&2; exit 1; }; \
	touch $(READY); \
	echo "Set-up is done."
