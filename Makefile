# What people type. Everything here works on a bare Debian with git and make: tools/setup.sh installs the rest.
PREFIX ?= /usr/local
BUILD := build/release
DEMO_QUANTISED := build/demo-int4
DEMO_IMAGE := tests/golden/demo_eval/images/002.png
DEMO_PROMPT := What is at the left?
SHELL := /bin/bash

.PHONY: all setup setup-test setup-clients build demo demo-eval check test test-kernels test-asan test-locks test-clients \
        test-replicas test-terminal setup-terminal test-arm setup-arm test-instructions bench format install package

all: build

setup:
	@tools/setup.sh

setup-test:
	@tools/setup.sh test

setup-clients:
	@tools/setup.sh clients

setup-terminal:
	@tools/setup.sh terminal

build: setup
	@cmake --preset release >/dev/null
	@cmake --build --preset release --target gemma4

# The program, its service and documents, and the library (docs/INSTALL.md). It builds nothing: `sudo make install` would
# leave files of root in build.
install:
	@test -x $(BUILD)/gemma4 || { echo "there is no $(BUILD)/gemma4: run make first" >&2; exit 2; }
	@cmake --install $(BUILD) --prefix $(PREFIX)

# A .deb and a portable .tar.gz in build/packages.
package: setup
	@tools/package.sh

# Quantise the demo checkpoint, then ask the quantised model about a picture.
demo: build
	@rm -rf $(DEMO_QUANTISED)
	@$(BUILD)/gemma4 quantize --model-dir models/demo --output $(DEMO_QUANTISED)
	@echo
	@echo "picture:  $(DEMO_IMAGE)"
	@echo "question: $(DEMO_PROMPT)"
	@echo -n "answer:   "
	@$(BUILD)/gemma4 run --model $(DEMO_QUANTISED) --image $(DEMO_IMAGE) --prompt "$(DEMO_PROMPT)" --temperature 0

# 240 questions about pictures and 60 prompts without: the share of answers equal to the reference's.
demo-eval: build
	@rm -rf $(DEMO_QUANTISED)
	@$(BUILD)/gemma4 quantize --model-dir models/demo --output $(DEMO_QUANTISED) 2>/dev/null
	@tools/demo_eval.sh $(BUILD)/gemma4 $(DEMO_QUANTISED)

# The inner loop: all unit tests, this machine's SIMD alone, no sanitizer, no CUDA; compiles only what changed.
check: setup-test
	@start=$$(date +%s); \
	cmake --preset dev >/dev/null && cmake --build --preset dev && ctest --preset dev; code=$$?; \
	echo "make check: $$(( $$(date +%s) - start )) seconds"; exit $$code

# Everything that needs no GPU, from nothing. What CI runs.
test: setup-test
	@echo "make test: about 20 minutes on two cores the first time, 5 with a warm build; 'make check' is the inner loop"
	@start=$$(date +%s); $(MAKE) --no-print-directory test-locks test-kernels test-asan; code=$$?; \
	echo "make test: $$(( $$(date +%s) - start )) seconds"; exit $$code

# Kernels as users run them: every SIMD target, optimised, CUDA where nvcc is; and tidy and the installed library.
test-kernels: setup-test
	@cmake --preset test >/dev/null
	@cmake --build --preset test
	@ctest --preset test

# All tests under AddressSanitizer and UndefinedBehaviorSanitizer.
test-asan: setup-test
	@cmake --preset asan >/dev/null
	@cmake --build --preset asan
	@ctest --preset asan

# Clang takes what g++ takes, and what a mutex guards is only touched while it is held (GUARDED_BY): it compiles nothing.
test-locks: setup-test
	@tools/check_locks.sh

# Real clients from PyPI and a browser on the page, then those that need packages of their own: a folder and a virtual
# environment each.
CLIENT_GROUPS := claude codex agents older open_webui aider lm_eval

test-clients: setup-clients build
	@test -x build/clients/bin/pip || python3 -m venv build/clients
	@build/clients/bin/pip install -q -r tests/clients/requirements.txt
	@GEMMA4_BINARY=$(BUILD)/gemma4 build/clients/bin/pytest -q tests/clients/*.py
	@for group in $(CLIENT_GROUPS); do \
	  venv=build/clients-$$group; \
	  test -x $$venv/bin/pip || python3 -m venv $$venv; \
	  $$venv/bin/pip install -q -r tests/clients/$$group/requirements.txt || exit 1; \
	  GEMMA4_BINARY=$(BUILD)/gemma4 $$venv/bin/pytest -q tests/clients/$$group || exit 1; \
	done

# Two replicas of the demo model behind HAProxy (Debian: haproxy, curl).
test-replicas: build
	@tests/replicas.sh $(BUILD)/gemma4

# The chat of `gemma4 run` in tmux, key by key; completion in bash, zsh and fish; manual pages.
test-terminal: setup-terminal build
	@GEMMA4_BINARY=$(BUILD)/gemma4 /usr/bin/python3 -m pytest -q tests/terminal

setup-arm:
	@tools/setup.sh arm

# Linux on ARM, on Debian on x86-64: compiled with Debian's cross compiler and libraries, run under qemu-user.
test-arm: setup-arm
	@tools/arm_sysroot.sh
	@start=$$(date +%s); \
	cmake --preset arm >/dev/null && cmake --build --preset arm && ctest --preset arm; code=$$?; \
	echo "make test-arm: $$(( $$(date +%s) - start )) seconds"; exit $$code

# Instructions of a prompt and of a decode step, against those in tests/instructions.json. Part of test-kernels.
test-instructions: setup-test
	@cmake --preset test >/dev/null
	@cmake --build --preset test --target gemma4
	@ctest --preset test -R '^instructions$$'

bench: setup-test
	@cmake --preset bench >/dev/null
	@cmake --build --preset bench
	@build/bench/benchmarks

format:
	@clang-format -i $$(git ls-files 'src/*.h' 'src/*.cc' 'src/*.cu' 'src/*.cuh' 'tests/*.h' 'tests/*.cc')
