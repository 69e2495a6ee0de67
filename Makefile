# Targets for people. `make test` and `make demo` need Go and Debian packages, which they install when they run as root;
# otherwise they name them in one line.

SHELL := /bin/bash
parts := appliance ftlink hvd image

.PHONY: help test check pure nested packages demo bench sim flips matrix soak-pair soak torture kernel image bundle fmt
.NOTPARALLEL: # two emulated hosts on one core would run into their time limits

help:
	@echo 'make test             all tests: check, pure, nested'
	@echo 'make check            formatting, go vet, staticcheck'
	@echo 'make pure             the tests that start no emulated hosts'
	@echo 'make nested           the tests in emulated hosts, one after the other'
	@echo 'make demo [SEED=n] [KEEP=1]   a pair in QEMU whose hosts are killed under load'
	@echo 'make sim [SEEDS=n]    seeded histories of a simulated pair; SEED=n [VARY=n KEEP=steps] plays one, with a trace;'
	@echo '                      HOURS=1000 plays heartbeats that come late, and wants no suspicion'
	@echo 'make flips [N=n] [SEED=s]    bits flipped in a simulated secondary: each found, or dead, and repaired'
	@echo 'make matrix [CELLS=regexp]   everything that can break on a pair, one thing after another (an hour)'
	@echo 'make soak-pair [FAILOVERS=n] one guest that changes hosts again and again, and what the hosts use meanwhile'
	@echo 'make soak [RUNS=n] [SEED=s]   record and replay unmodified guests at work until something differs'
	@echo 'make torture          inputs at every exit, trap and instruction of a small guest, replayed (hours)'
	@echo 'make bench            benchmarks: log, link and iSCSI here, a guest in an emulated host by instructions;'
	@echo '                      PROFILE=file writes where hvd spends them while it records'
	@echo 'make image [OUT=FILE] the disk image of all hosts, duet.img'
	@echo 'make bundle [OUT=FILE]        the same as a signed update, duet.gaf; image/README.md tells how to make its keys'
	@echo 'make kernel           rebuild image/kernel/vmlinuz'
	@echo 'make fmt              format all sources'

test: packages check pure nested

check:
	@files=$$(go tool gofumpt -l $(parts)) && test -z "$$files" || { echo "not formatted (make fmt does it):" $$files; exit 1; }
	go vet ./...
	go tool staticcheck ./...

pure:
	go run ./image/gotest -count=1 -timeout 10m ./appliance/... ./ftlink/... ./hvd/...
	go run ./image/gotest -count=1 -timeout 5m -tags faultinject ./hvd/machine

nested: packages
	DUET_TEST_GUEST_BUILD=1 go run ./image/gotest -count=1 -p 1 -timeout 40m ./image/...

packages:
	@go run ./image packages

demo:
	go run ./image/demo $(if $(SEED),-seed $(SEED)) $(if $(KEEP),-keep)

sim:
	go test -count=1 -timeout 24h -v ./hvd/sim $(if $(HOURS),-run TestNoFalse -sim.hours $(HOURS),$(if $(SEED),-run 'TestSeed$$' -sim.seed $(SEED) $(if $(KEEP),-sim.keep $(KEEP)) $(if $(VARY),-sim.vary $(VARY)) $(if $(SINGLE),-sim.single),-run 'TestSeeds$$|TestOneFault|TestSame' $(if $(SEEDS),-sim.seeds $(SEEDS))))

flips:
	go test -count=1 -timeout 24h -v -tags faultinject -run TestToyFlips ./hvd/machine $(if $(N),-toyflips $(N)) $(if $(SEED),-toyseed $(SEED))

soak:
	go run ./image/soak $(if $(RUNS),-runs $(RUNS)) $(if $(SEED),-seed $(SEED))

matrix: packages
	go test -count=1 -timeout 24h -v -run 'TestMatrix$$' ./image/boottest -cells '$(or $(CELLS),.)'

soak-pair: packages
	go test -count=1 -timeout 24h -v -run 'TestSoakPair$$' ./image/boottest -failovers $(or $(FAILOVERS),100)

torture:
	DUET_TEST_ARGS=-torture.full go test -count=1 -timeout 24h -v -run TestInHost/hvd/torture ./image/boottest

bench:
ifdef PROFILE
	go run ./image/bench -profile $(PROFILE)
else
	go test -run '^$$' -bench . -benchmem ./hvd/event ./ftlink/session ./ftlink/wire ./hvd/iscsi
	go run ./image/bench
endif

image:
	go run ./image build -o $(or $(OUT),duet.img)

bundle:
	go run ./image bundle $(if $(OUT),-o $(OUT))

kernel:
	image/kernel/build.sh

fmt:
	go tool gofumpt -w $(parts)
