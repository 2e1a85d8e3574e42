# Everything a developer runs. `make help` lists the targets.
PYTHON ?= python
DATA ?= ../shared/data
FUZZ_SECONDS ?= 600

.PHONY: help dev lint format sanitize fuzz test bench proto constraints results show-spine show-decoding decoding-fuzz decoding-processors show-tokenizer tokenizer-ablation tokenizer-scale beauty games18 sasrec reasoner reasoner-teachers rl-compressor show-reasoner kernels-code kernels-gpu kernels-serving kernels-lent show-kernels rl show-rl student-clicks server-faults server-comparison show-server quality show-student student-titles student-checks server-overhead server-overload server-memory server-equality student-graphs student-int8 student-encoding student-path

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

dev: ## build the extension in place, with warnings as errors
	cmake --preset dev -DPython_EXECUTABLE="$$($(PYTHON) -c 'import sys; print(sys.executable)')" -Dpybind11_DIR="$$($(PYTHON) -m pybind11 --cmakedir)"
	cmake --build --preset dev

lint: ## ruff, mypy, stubtest, import-linter, clang-format
	ruff check .
	ruff format --check .
	clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cc')
	mypy
	$(PYTHON) -m mypy.stubtest gr2._core
	lint-imports

format: ## rewrite what the linters can mend
	ruff check --fix .
	ruff format .
	clang-format -i $$(git ls-files '*.h' '*.cc')

sanitize: ## the C++ tests under the address, undefined-behaviour and thread sanitizers
	export GR2_ONNXRUNTIME="$$($(PYTHON) -c 'from gr2.serving.models.native_model import find_library; print(find_library())')"; \
	for preset in asan tsan; do cmake --preset $$preset && cmake --build --preset $$preset && ctest --preset $$preset || exit 1; done

fuzz: ## the fuzz targets, FUZZ_SECONDS in all (600)
	cmake --preset fuzz && cmake --build --preset fuzz
	set -e; targets=$$(ls build/fuzz/*_fuzz); \
	for target in $$targets; do $$target $$(($(FUZZ_SECONDS) / $$(echo $$targets | wc -w))); done

test: ## the test suite
	$(PYTHON) -m pytest

bench: ## the benchmarks, each asserting its answer
	$(PYTHON) -m pytest benchmarks --benchmark-enable --benchmark-only --benchmark-columns=median,iqr,ops,rounds --benchmark-group-by=group

proto: ## regenerate gr2/v1 from proto/ (needs grpcio-tools 1.74)
	$(PYTHON) -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. proto/gr2/v1/*.proto

sasrec: ## the pre-ranker on Beauty with the literature's protocol (long); stores its figures
	$(PYTHON) -m benchmarks.spine.quality sasrec

beauty: ## the whole path on Beauty (long); stores its figures
	$(PYTHON) -m benchmarks.spine.quality beauty

games18: ## the whole path on games18 with imported SASRec lists (long); stores its figures
	$(PYTHON) -m benchmarks.spine.quality games18

student-int8: ## what rounding the student to 8 bits costs in quality; from the artefacts of `make beauty`; stores its figures
	$(PYTHON) -m benchmarks.student.int8

student-graphs: ## what the served graphs cost beside the graph as exported; stores its figures
	$(PYTHON) -m benchmarks.student.graphs

student-encoding: ## a history of one token an item against one a code, after `make quality` (long); stores its figures
	$(PYTHON) -m benchmarks.student.encoding

student-path: ## what the path likelihood costs a request, after `make beauty`; stores its figures
	$(PYTHON) -m benchmarks.student.path

student-clicks: ## clicks weighed by propensities, on simulated logs, judged by the truth; stores its figures
	$(PYTHON) -m benchmarks.student.clicks

quality: ## the student against trees and others on Beauty and games18, five seeds (long); stores its figures
	$(PYTHON) -m benchmarks.student.quality

student-titles: ## a cross-encoder over titles, after `make quality` (long); stores its figures
	$(PYTHON) -m benchmarks.student.titles

student-checks: ## the served student beside the reasoner, after `make beauty` and `make reasoner`; stores its figures
	$(PYTHON) -m benchmarks.student.checks

show-student: ## every figure of the student, one line each; exit code 1 if one is short
	$(PYTHON) -m benchmarks.student.show

results: ## docs/results.md and README's table from the stored figures
	$(PYTHON) -m benchmarks.results
	$(PYTHON) -m benchmarks.headline

show-spine: ## every figure of the end-to-end path, one line each; exit code 1 if one is short
	$(PYTHON) -m benchmarks.spine.show

decoding-fuzz: ## the fuzz targets for ten minutes; stores what they found
	$(PYTHON) -m benchmarks.decoding.fuzz --seconds 600

decoding-processors: ## the C++ tests on emulated older processors (needs qemu-user); stores the outcome
	$(PYTHON) -m benchmarks.decoding.processors

show-decoding: ## every figure of the decoding core, one line each; exit code 1 if one is short
	$(PYTHON) -m benchmarks.decoding.show

reasoner: ## mid-training and fine-tuning on Beauty, from scratch (long); stores its figures
	$(PYTHON) -m benchmarks.reasoner.quality

rl-compressor: ## the compressor on Beauty, after `make reasoner`; stores its figures
	$(PYTHON) -m benchmarks.rl.compressor

show-reasoner: ## every figure of the reasoner, one line each; exit code 1 if one is short
	$(PYTHON) -m benchmarks.reasoner.show

reasoner-teachers: ## the teachers on Beauty and against endpoints that misbehave; stores its figures
	$(PYTHON) -m benchmarks.reasoner.teachers

rl: ## reinforcement learning on Beauty, after `make reasoner` (long); stores its figures
	$(PYTHON) -m benchmarks.rl.quality --jobs 2

show-rl: ## every figure of reinforcement learning, one line each; exit code 1 if one is short
	$(PYTHON) -m benchmarks.rl.show

tokenizer-ablation: ## the tokenizer's switches on Beauty, after `make beauty` (long); stores its figures
	$(PYTHON) -m benchmarks.tokenizer.ablation --seeds 0

tokenizer-scale: ## IDs for up to ten million synthetic items (long); stores its figures
	$(PYTHON) -m benchmarks.tokenizer.scale --items 100000 1000000 10000000

show-tokenizer: ## every figure of the tokenizer, one line each; exit code 1 if one is short
	$(PYTHON) -m benchmarks.tokenizer.show

kernels-code: ## registers, spills and warps of every search's kernels on three generations of GPU; some minutes, no GPU
	$(PYTHON) -m benchmarks.kernels.machine_code

kernels-gpu: ## the Triton kernels on this machine's GPU: checked and timed; stores their figures
	$(PYTHON) -m benchmarks.kernels.gpu

kernels-serving: ## the engine on this machine's GPU: its order, its phases, its throughput; stores its figures
	$(PYTHON) -m benchmarks.kernels.serving

kernels-lent: ## build, then both of the above within eight minutes of a GPU; records and logs go to build/lent (WHEELS=folder, DRY=1 without a GPU)
	$(PYTHON) -m benchmarks.kernels.lent $(if $(WHEELS),--wheels $(WHEELS)) $(if $(DRY),--dry --out build/dry)

show-server: ## every figure of the server, one line each; exit code 1 if one is short
	$(PYTHON) -m benchmarks.server.show

server-overhead: ## what a request costs beside the model, over an empty call; stores its figures
	$(PYTHON) -m benchmarks.server.overhead

server-overload: ## twice the capacity offered; stores what is still answered in time
	$(PYTHON) -m benchmarks.server.overload

server-memory: ## the server's memory over half an hour of overload (long); stores its growth
	$(PYTHON) -m benchmarks.server.overload --minutes 30

server-equality: ## 100,000 replies over 50 connections against the in-process engine's (long); stores the count
	$(PYTHON) -m benchmarks.server.equality

server-comparison: ## our server beside mosec, LitServe, BentoML and Ray Serve, in environments of their own; stores its figures
	$(PYTHON) -m benchmarks.server.comparison

show-kernels: ## every figure of the kernels, one line each; exit code 1 if one is short
	$(PYTHON) -m benchmarks.kernels.show

server-faults: ## the server under load while things break; stores what callers saw
	$(PYTHON) -m benchmarks.server.faults
