//! Headless Chromium, driven through chromedriver.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::harness::{PATIENCE, Server, until};

/// One browser at a time: on a small machine two of them make each other's video stall.
static STAGE: Mutex<()> = Mutex::const_new(());

// Keys, as WebDriver names them.
pub(crate) const ENTER: &str = "\u{E007}";
pub(crate) const ARROW_LEFT: &str = "\u{E012}";
pub(crate) const ARROW_UP: &str = "\u{E013}";
pub(crate) const ARROW_RIGHT: &str = "\u{E014}";
pub(crate) const ARROW_DOWN: &str = "\u{E015}";

/// A browser that shows the page of one server. Killed with all its processes when dropped.
pub(crate) struct Browser {
    client: Client,
    driver: Driver,
    folder: TempDir,
    _stage: MutexGuard<'static, ()>,
}

impl Browser {
    /// Opens the server's page and waits until its script runs.
    pub(crate) async fn open(server: &Server) -> Self {
        Self::open_at(server, "").await
    }

    /// Opens another page of the server.
    pub(crate) async fn open_at(server: &Server, path: &str) -> Self {
        let stage = STAGE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let driver = Driver::start();
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities(folder.path()))
            .connect(&driver.address)
            .await
            .expect("chromedriver starts chromium");
        let browser = Self {
            client,
            driver,
            folder,
            _stage: stage,
        };
        let address = format!("http://{}/{path}", server.address);
        browser.resize(1280, 800).await;
        browser.client.goto(&address).await.unwrap();
        browser
            .until("the page's script runs", "window.fastvideo")
            .await;
        browser.run(RECORD).await;
        browser
    }

    /// Loads the page anew.
    pub(crate) async fn reload(&self) {
        self.run("window.isOld = true").await;
        self.client.refresh().await.unwrap();
        self.until(
            "the page's script runs again",
            "!window.isOld && window.fastvideo",
        )
        .await;
        self.run(RECORD).await;
    }

    /// Makes the page's part of the window this large.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let frame = self
            .get("[outerWidth - innerWidth, outerHeight - innerHeight]")
            .await;
        let [x, y]: [u32; 2] = serde_json::from_value(frame).unwrap();
        let resized = self.client.set_window_size(width + x, height + y);
        resized.await.unwrap();
    }

    /// What a script returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// The value of an expression.
    pub(crate) async fn get(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}")).await
    }

    /// Waits in the page until the expression holds, and returns its value.
    pub(crate) async fn until(&self, what: &str, expression: &str) -> Value {
        let script = format!(
            "const done = arguments[0], end = Date.now() + {};
            (function look() {{
                const found = {expression};
                if (found || Date.now() > end) done(found || null);
                else setTimeout(look, 20);
            }})()",
            PATIENCE.as_millis()
        );
        let found = self.client.execute_async(&script, Vec::new()).await;
        match found.expect("the page can be asked") {
            Value::Null => panic!(
                "waited in vain until {what}: {:#}",
                self.get(EVERYTHING).await
            ),
            found => found,
        }
    }

    /// Waits until an element's text holds these words.
    pub(crate) async fn until_says(&self, css: &str, words: &str) -> Value {
        let text = format!("document.querySelector({})", json!(css));
        let words = json!(words);
        let expression = format!(
            "{text}?.checkVisibility() && {text}.textContent.includes({words}) && {text}.textContent"
        );
        self.until(&format!("{css} says {words}"), &expression)
            .await
    }

    /// Waits until a part has had a state since the page was opened. Parts are named by their `data-testid`.
    pub(crate) async fn until_state(&self, part: &str, state: &str) {
        let expression = format!("window.states[{}]?.includes({})", json!(part), json!(state));
        self.until(&format!("{part} is {state}"), &expression).await;
    }

    /// All states that a part has had, in order.
    pub(crate) async fn states(&self, part: &str) -> Vec<String> {
        let states = self.get(&format!("window.states[{}]", json!(part))).await;
        serde_json::from_value(states).unwrap()
    }

    pub(crate) async fn find(&self, css: &str) -> Element {
        let found = self.client.find(Locator::Css(css)).await;
        found.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    pub(crate) async fn click(&self, css: &str) {
        let clicked = self.find(css).await.click().await;
        clicked.unwrap_or_else(|error| panic!("{css}: {error}"));
    }

    /// Presses keys in an element; gives a file's path to one that takes files.
    pub(crate) async fn keys(&self, css: &str, keys: &str) {
        self.find(css).await.send_keys(keys).await.unwrap();
    }

    /// Types a prompt and sends it.
    pub(crate) async fn prompt(&self, prompt: &str) {
        self.keys("#prompt", prompt).await;
        self.click("#send").await;
    }

    /// Ends the session and waits until the video has played to its very end.
    pub(crate) async fn play_out(&self) {
        self.click("#leave").await;
        let ended = "document.querySelector('video').ended";
        self.until("the video has ended", ended).await;
    }

    /// Saves what is seen under `target/page`, for people.
    pub(crate) async fn screenshot(&self, name: &str) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("page");
        fs::create_dir_all(&folder).unwrap();
        let picture = self.client.screenshot().await.unwrap();
        fs::write(folder.join(name).with_extension("png"), picture).unwrap();
    }

    /// The bytes of a file that the page saves. Takes it away, so that the next one is found too.
    pub(crate) async fn downloaded(&self, extension: &str) -> Vec<u8> {
        until("the download is there", async || {
            let files = fs::read_dir(self.folder.path().join("downloads")).ok()?;
            let file = files
                .map(|file| file.unwrap().path())
                .find(|path| path.extension().is_some_and(|found| found == extension))?;
            // Until the file is whole, an empty one keeps its name.
            let bytes = fs::read(&file).ok().filter(|bytes| !bytes.is_empty())?;
            fs::remove_file(&file).unwrap();
            Some(bytes)
        })
        .await
    }

    /// A folder for files that the page is to read.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the buffered video begins and ends; it has no holes.
    pub(crate) async fn only_range(&self) -> [f64; 2] {
        let ranges = self.get("fastvideo.buffered()").await;
        let [range] = serde_json::from_value(ranges).expect("one range");
        range
    }

    /// Fails if the browser has complained: of an exception, a file that is not there, or the security policy.
    pub(crate) async fn has_no_complaints(&self) {
        let session = self.client.session_id().await.unwrap().unwrap();
        let url = format!("{}/session/{session}/se/log", self.driver.address);
        let log = tokio::task::spawn_blocking(move || {
            let request = ureq::post(&url).content_type("application/json");
            let mut response = request.send(r#"{"type": "browser"}"#).unwrap();
            response.body_mut().read_to_string().unwrap()
        });
        let log: Value = serde_json::from_str(&log.await.unwrap()).unwrap();
        assert_eq!(log["value"], json!([]));
    }
}

/// Keeps the states that parts of the page pass through; some last only for a moment.
const RECORD: &str = "
    window.states = {};
    const look = (node) => {
        const { testid, state } = node.dataset;
        if (!testid || !state) return;
        const seen = window.states[testid] ??= [];
        if (seen.at(-1) !== state) seen.push(state);
    };
    document.querySelectorAll('[data-state]').forEach(look);
    new MutationObserver((changes) => changes.forEach(({ target }) => look(target)))
        .observe(document.body, { subtree: true, attributeFilter: ['data-state', 'data-testid'] });
";

/// For the message of a failure.
const EVERYTHING: &str = "({
    status: document.querySelector('#status')?.textContent,
    error: document.querySelector('#error')?.textContent,
    board: document.querySelector('#board')?.textContent,
    time: document.querySelector('video')?.currentTime,
    readyState: document.querySelector('video')?.readyState,
    paused: document.querySelector('video')?.paused,
    buffered: window.fastvideo?.buffered(),
    states: window.states,
    ...window.fastvideo,
})";

/// chromedriver and all that it starts.
struct Driver {
    /// The shell around it. Its input ends with this process, however that ends.
    child: Child,
    address: String,
}

impl Driver {
    fn start() -> Self {
        let script = r#"{ chromedriver --port=0; echo "ended with $?"; } & read -r _; kill -9 0"#;
        #[expect(clippy::disallowed_methods, reason = "tests drive a browser")]
        let mut child = Command::new("sh")
            .args(["-c", script])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell starts");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut driver = Self {
            child,
            address: String::new(),
        };
        let mut lines = stdout.lines().map_while(Result::ok);
        let port = lines.by_ref().find_map(|line| {
            assert!(
                !line.starts_with("ended"),
                "chromedriver {line} (make test installs it)"
            );
            let (_, port) = line.split_once("successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        driver.address = format!(
            "http://127.0.0.1:{}",
            port.expect("chromedriver names its port")
        );
        thread::spawn(move || lines.count());
        driver
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn capabilities(folder: &Path) -> serde_json::Map<String, Value> {
    let profile = folder.join("profile");
    let args = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--autoplay-policy=no-user-gesture-required",
        // Otherwise an element still scrolls into view when it is clicked.
        "--force-prefers-reduced-motion",
        "--hide-scrollbars",
        &format!("--user-data-dir={}", profile.display()),
    ];
    let capabilities = json!({
        "goog:chromeOptions": {
            "binary": chromium(),
            "args": args,
            "prefs": {"download.default_directory": folder.join("downloads")},
        },
        "goog:loggingPrefs": {"browser": "ALL"},
        "timeouts": {"script": 2 * PATIENCE.as_millis()},
    });
    match capabilities {
        Value::Object(capabilities) => capabilities,
        _ => unreachable!("written as an object"),
    }
}

fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("chromium"))
        .find(|file| file.exists())
        .expect("chromium is installed (make test does)")
}
