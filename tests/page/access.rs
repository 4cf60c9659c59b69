//! The page for viewers with a keyboard, a screen reader, a small screen or a slow network.

use super::*;
use crate::harness::python;

/// What a screen reader and a finger need, of everything that can be seen and used. Returns a list of faults.
pub(super) const FAULTS: &str = "(() => {
    const faults = [];
    const seen = (node) => node.checkVisibility({ opacityProperty: false, visibilityProperty: true });
    const words = (text) => text.replace(/\\s+/g, ' ').trim().toLowerCase();
    const headings = [...document.querySelectorAll('h1')].filter(seen);
    if (headings.length !== 1) faults.push(`${headings.length} headings of level one`);
    const wide = document.documentElement.scrollWidth;
    if (wide > innerWidth) faults.push(`the page is ${wide} wide, the window ${innerWidth}`);
    for (const node of document.querySelectorAll('button, a[href], summary, input, textarea, label.link')) {
        if (!seen(node) || node.matches('.sr, .skip')) continue;
        const { width, height } = node.getBoundingClientRect();
        const name = node.getAttribute('aria-label') ?? '';
        const what = node.id || name || node.textContent;
        if (width < 24 || height < 24) faults.push(`${what} is ${width} by ${height}`);
        const shown = words(node.innerText ?? '');
        if (name && shown && !words(name).includes(shown)) faults.push(`${what}: its name lacks ${shown}`);
        const labelled = node.labels?.length || node.ariaLabel || node.title || shown;
        if (!labelled) faults.push(`${what || node.outerHTML} has no name`);
    }
    return faults;
})()";

/// Loads axe-core, runs all its rules, and keeps what they find.
const AXE: &str = "
    window.violations = null;
    axe.run(document).then(({ violations }) => {
        window.violations = violations.map(({ id, nodes }) => [id, nodes.map(({ target }) => target.join(' '))]);
    });
";

/// What axe-core finds on the page as it is.
pub(super) async fn axe(page: &Browser) -> Value {
    let script = "import axe_core_python, pathlib; \
                  print(pathlib.Path(axe_core_python.__file__).with_name('axe.min.js').read_text())";
    let axe = python().args(["-c", script]).output().unwrap();
    assert!(axe.status.success(), "{axe:?}");
    page.run(&String::from_utf8(axe.stdout).unwrap()).await;
    page.run(AXE).await;
    page.until("axe has looked at everything", "window.violations")
        .await
}

pub(super) const SCREENS: [(u32, u32); 4] = [(320, 568), (360, 740), (740, 360), (1280, 800)];

pub(super) const THEMES: [&str; 2] = ["light", "dark"];

/// Chooses a theme at the foot of the page.
pub(super) async fn choose_theme(page: &Browser, theme: &str) {
    page.click(&format!("#theme label:has([value={theme}])"))
        .await;
    let scheme = page.get("getComputedStyle(document.documentElement).colorScheme");
    assert_eq!(scheme.await, theme);
}

/// Fails if axe-core finds anything in one of the themes.
pub(super) async fn axe_in_both_themes(page: &Browser, what: &str) {
    for theme in THEMES {
        choose_theme(page, theme).await;
        assert_eq!(axe(page).await, json!([]), "{what}, {theme}");
    }
}

/// Windows that are low for their width, where the stage has the least room.
const LOW_WINDOWS: [(u32, u32); 4] = [(1366, 650), (1280, 657), (1024, 600), (1024, 560)];

/// The words and examples of the empty stage that are not seen as a whole.
const CUT_OFF: &str = "(() => {
    const stage = document.querySelector('#stage').getBoundingClientRect();
    const parts = [...document.querySelectorAll('#empty :is(h2, p, button)')].filter((node) => node.checkVisibility());
    return parts.filter((node) => {
        const { top, bottom } = node.getBoundingClientRect();
        return top < stage.top || bottom > stage.bottom;
    }).map((node) => node.textContent);
})()";

#[tokio::test]
async fn every_screen_shows_where_to_begin() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    for (width, height) in SCREENS.into_iter().chain(LOW_WINDOWS) {
        page.resize(width, height).await;
        page.run("scrollTo(0, 0)").await;
        page.screenshot(&format!("empty_{width}x{height}")).await;
        assert_eq!(page.get(FAULTS).await, json!([]), "{width}x{height}");
        assert_eq!(page.get(CUT_OFF).await, json!([]), "{width}x{height}");
        for part in ["#prompt", "#empty h2"] {
            let place = page
                .get(&format!(
                    "(() => {{ const {{ top, bottom }} = document.querySelector('{part}').getBoundingClientRect();
                        return [top, innerHeight - bottom]; }})()"
                ))
                .await;
            let place: [f64; 2] = serde_json::from_value(place).unwrap();
            assert!(
                place.iter().all(|rest| *rest >= 0.0),
                "{part} at {width}x{height}: {place:?}"
            );
        }
    }
    page.has_no_complaints().await;
}

/// Makes a segment and plays its beginning.
async fn show_a_picture(page: &Browser) {
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.until("there is a picture", "video.currentTime > 0.2")
        .await;
}

#[tokio::test]
async fn every_screen_shows_the_session() {
    let server = Server::start(&["--gpus=2"]);
    let page = Browser::open(&server).await;
    show_a_picture(&page).await;
    for (width, height) in SCREENS {
        page.resize(width, height).await;
        page.screenshot(&format!("session_{width}x{height}")).await;
        assert_eq!(page.get(FAULTS).await, json!([]), "{width}x{height}");
    }
    page.has_no_complaints().await;
}

#[tokio::test]
async fn axe_finds_nothing() {
    let server = Server::start(&["--gpus=2"]);
    let page = Browser::open(&server).await;
    for (width, height) in SCREENS {
        page.resize(width, height).await;
        assert_eq!(axe(&page).await, json!([]), "empty, {width}x{height}");
    }
    page.resize(1280, 800).await;
    axe_in_both_themes(&page, "empty").await;
    show_a_picture(&page).await;
    for (width, height) in SCREENS {
        page.resize(width, height).await;
        assert_eq!(axe(&page).await, json!([]), "session, {width}x{height}");
    }
    // It does look.
    page.run("document.documentElement.removeAttribute('lang')")
        .await;
    assert_eq!(axe(&page).await, json!([["html-has-lang", ["html"]]]));
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_theme_stays_after_a_reload_and_follows_the_system_again() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    let before = page
        .get("getComputedStyle(document.body).backgroundColor")
        .await;
    choose_theme(&page, "light").await;
    let light = page
        .get("getComputedStyle(document.body).backgroundColor")
        .await;
    page.reload().await;
    let shown = page.get(
        "[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]",
    );
    assert_eq!(shown.await, json!(["light", light]));
    page.click("#theme label:has([value=system])").await;
    let shown = page
        .get("getComputedStyle(document.body).backgroundColor")
        .await;
    assert_eq!(shown, before);
    page.has_no_complaints().await;
}

#[tokio::test]
async fn the_button_that_turns_the_sound_on_covers_no_picture() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    show_a_picture(&page).await;
    // As a browser does that allows no sound yet.
    page.run("video.muted = true").await;
    page.until(
        "the button is shown",
        "document.querySelector('#unmute').checkVisibility()",
    )
    .await;
    for (width, height) in SCREENS {
        page.resize(width, height).await;
        let boxes = "['#unmute', '#controls'].map((part) => {
            const { left, top, right, bottom } = document.querySelector(part).getBoundingClientRect();
            return [left, top, -right, -bottom];
        })";
        let boxes: [[f64; 4]; 2] = serde_json::from_value(page.get(boxes).await).unwrap();
        let [button, bar] = boxes;
        assert!(
            button.iter().zip(bar).all(|(inner, outer)| *inner >= outer),
            "{width}x{height}: {button:?} is not in {bar:?}"
        );
        let hides_middle = page
            .get(
                "(() => {
                    const { left, top, width, height } = document.querySelector('#stage').getBoundingClientRect();
                    const node = document.elementFromPoint(left + width / 2, top + height / 2);
                    return Boolean(node?.closest('#controls'));
                })()",
            )
            .await;
        assert_eq!(hides_middle, false, "{width}x{height}");
    }
    page.click("#unmute").await;
    page.until("there is sound", "!video.muted").await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn the_player_has_keys() {
    let server = Server::start(&["--default_request.sampling.num_frames=48"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.until("the video plays", "video.currentTime > 0.2")
        .await;
    // What is typed into a field is text.
    page.keys("#prompt", "milk jar").await;
    assert_eq!(
        page.get("[document.querySelector('#prompt').value, video.muted]")
            .await,
        json!(["milk jar", false])
    );
    for (key, expected) in [
        ("m", "video.muted"),
        ("M", "!video.muted"),
        (browser::ARROW_DOWN, "Math.abs(video.volume - 0.9) < 0.01"),
        (browser::ARROW_UP, "video.volume === 1"),
        ("j", "video.currentTime < 0.5"),
        ("k", "video.paused"),
        (browser::ARROW_RIGHT, "video.currentTime > 1.5"),
        (browser::ARROW_LEFT, "video.currentTime < 0.1"),
        ("l", "video.currentTime > 1.5"),
        (" ", "!video.paused"),
        ("f", "document.fullscreenElement?.id === 'stage'"),
        ("f", "!document.fullscreenElement"),
    ] {
        page.keys("#stage", key).await;
        page.until(&format!("{key:?} works"), expected).await;
    }
    page.has_no_complaints().await;
}

#[tokio::test]
async fn a_switch_that_has_no_effect_stays_off() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    let [on, disabled] = ["checked", "disabled"];
    let switch = |what| format!("document.querySelector('#t-enhancement').{what}");
    page.until("the server's features are known", &switch(disabled))
        .await;
    page.click("label:has(#t-enhancement)").await;
    assert_eq!(page.get(&switch(on)).await, false);
    page.click("#connect").await;
    page.until_says("#status", "Ready for a prompt").await;
    assert_eq!(page.get(&switch(disabled)).await, true);
    page.has_no_complaints().await;
}
