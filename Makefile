# The only entry points. Each installs the Debian packages that it needs, or names them when it may not.

BUILD_PACKAGES = libavcodec-dev libavformat-dev libavutil-dev clang libclang-dev pkg-config
TEST_PACKAGES = ffmpeg chromium chromium-driver faketime fasttext g++ redis-server

# What `make demo` starts. A slow engine, so that a segment can be watched while it is generated.
DEMO_GPUS = 2
DEMO_ARGS = --host 127.0.0.1 --generator.synthetic.step_ms 120 --generator.synthetic.frame_ms 15 \
            --streaming.generation_segment_cap 100

# Reads the states that we write, with the libraries that FastVideo uses, and is the S3 that the stores are tested with.
PYTHON = target/python
PYTHON_PACKAGES = tests/data/requirements.txt

# What reads states that nobody vouches for is fuzzed for so long with every test run, in seconds per target.
FUZZ_SECONDS = 20

.PHONY: demo build test check fuzz bench clean python build-packages test-packages

demo: build
	target/release/fastvideo-supervisor --gpus $(DEMO_GPUS) $(DEMO_ARGS) $(ARGS)

build: build-packages
	cargo build --release --workspace --locked

# The integration tests start the worker's binary, which `cargo test` alone would not build. Built together with the
# tests, so that the features of shared dependencies agree and nothing is built twice.
test: build-packages test-packages python
	cargo build --workspace --locked --bins --tests
	cargo test --workspace --locked
	fuzz/run $(FUZZ_SECONDS)

# Goes on from where the last run ended; what it finds lies in target/fuzz/artifacts.
fuzz: FUZZ_SECONDS = 1800
fuzz:
	fuzz/run $(FUZZ_SECONDS)

check: build-packages
	cargo fmt --all -- --check
	cargo fmt --manifest-path fuzz/Cargo.toml -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --workspace check bans licenses sources; \
	else echo "cargo-deny is not installed: licences and sources of dependencies were not checked"; fi

bench: build test-packages
	cargo bench --locked -- $(ARGS)

clean:
	cargo clean

python: $(PYTHON)/$(PYTHON_PACKAGES)

# The copy says what is installed.
$(PYTHON)/$(PYTHON_PACKAGES): $(PYTHON_PACKAGES)
	@python3 -c "import ensurepip" 2>/dev/null || deploy/need-packages python3-venv
	python3 -m venv --clear $(PYTHON)
	$(PYTHON)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	mkdir -p $(@D) && cp $< $@

build-packages:
	@deploy/need-packages $(BUILD_PACKAGES)

test-packages:
	@deploy/need-packages $(TEST_PACKAGES)
