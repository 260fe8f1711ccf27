# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the iovirt.host authors
# Thin: each target calls one script, which says what it does and why it stops.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-fast lint unit sanity format bench clean \
        lab-up lab-down lab-status lab-ssh lab-test

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make all that the demo and the tests need; names distribution packages before it installs them
	@tools/setup test

demo: ## from a bare checkout to VFs on vfio-pci, on a virtual host with a real kernel
	@tools/setup demo
	@tools/demo

test: ## every check, with a slice of the boot loaders; the last line counts
	@tools/setup test
	@tools/check --except boot-all

test-all: ## the same with every boot loader and 30 power cuts: hours in emulation
	@tools/setup test
	@IOVIRT_LAB_ALL=1 tools/check --except boot

test-fast: ## lint and units: seconds, no lab, no ansible-test
	@tools/setup fast
	@tools/check --only lint,unit

lint: ## style, types, roles, documentation, licences
	@tools/setup fast
	@tools/check --only lint

unit: ## the unit tests, with the newest ansible-core
	@tools/setup fast
	@tools/check --only unit

sanity: ## ansible-test sanity with the newest and the oldest supported ansible-core
	@tools/setup test
	@tools/check --only sanity

format: ## let ruff sort imports and mend what it can by itself
	@tools/setup fast
	@tools/in ruff check --fix .

bench: ## how fast it is: one number a line
	@tools/setup fast
	@if [ -x tests/bench/run ]; then tools/in tests/bench/run; \
	else echo "error: there is no tests/bench/run, so there is nothing to measure" >&2; exit 1; fi

lab-up: ## start a lab host (builds it the first time)
	@tools/setup demo
	@lab/lab up

lab-down: ## end every lab host
	@lab/lab down

lab-status: ## what runs, and how to log in
	@lab/lab list

lab-ssh: ## log in to the lab host
	@lab/lab ssh

lab-test: ## the lab's share of the tests
	@tools/setup test
	@tools/check --only lab

clean: ## take away all that was built: lab hosts and images, virtual environments, caches
	@tools/clean
