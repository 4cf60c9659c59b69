//! The built-in page: files embedded in the binary, so that it needs neither a build step nor a network.
//!
//! Servers and routers serve the same files.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};

/// The page loads nothing from elsewhere and runs nothing inline.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; \
     connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Pairs each file's path on the server with its text.
macro_rules! files {
    ($($path:literal,)*) => {
        &[$(($path, include_str!(concat!("page", $path))),)*]
    };
}

const SCRIPTS: &[(&str, &str)] = files![
    "/adapters.js",
    "/api.js",
    "/attachments.js",
    "/connection.js",
    "/dom.js",
    "/drop.js",
    "/film.js",
    "/format.js",
    "/gpus.js",
    "/history/card.js",
    "/history/database.js",
    "/history/history_words.js",
    "/history/keeper.js",
    "/history/record.js",
    "/history/replay.js",
    "/history/tab.js",
    "/key.js",
    "/latent_field.js",
    "/media_effects.js",
    "/page.js",
    "/player/feeder.js",
    "/player/jpeg_player.js",
    "/player/mse_player.js",
    "/player/plan.js",
    "/player/source_writer.js",
    "/player/watchdog.js",
    "/protocol.js",
    "/segment_list.js",
    "/servers.js",
    "/session.js",
    "/session/film.js",
    "/session/lifecycle.js",
    "/session/prompts.js",
    "/session/restoring.js",
    "/session/segments.js",
    "/session/story.js",
    "/session/transition.js",
    "/stage.js",
    "/state.js",
    "/store.js",
    "/stories/board.js",
    "/stories/board_memory.js",
    "/stories/board_view.js",
    "/stories/rollout.js",
    "/stories/stories.js",
    "/stories/story_words.js",
    "/stories/storyboard.js",
    "/tabs.js",
    "/theme/early.js",
    "/theme/theme_switch.js",
    "/videos/again.js",
    "/videos/card.js",
    "/videos/follower.js",
    "/videos/image_field.js",
    "/videos/job_list.js",
    "/videos/make_form.js",
    "/videos/media.js",
    "/videos/picture.js",
    "/videos/refusal.js",
    "/videos/requests.js",
    "/videos/submission.js",
    "/videos/tab.js",
    "/view.js",
    "/waiting_list.js",
    "/watch.js",
    "/watch_link.js",
    "/watch_session.js",
    "/words.js",
];

const STYLES: &[(&str, &str)] = files![
    "/history/history.css",
    "/page.css",
    "/stories/stories.css",
    "/theme/colors.css",
    "/theme/small_screens.css",
];

/// Returns the routes of the page for a service with any state.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let pages = Router::new()
        .route(
            "/",
            file("text/html; charset=utf-8", include_str!("page/index.html")),
        )
        .route(
            "/watch",
            file("text/html; charset=utf-8", include_str!("page/watch.html")),
        )
        .route(
            "/favicon.svg",
            file("image/svg+xml", include_str!("page/favicon.svg")),
        );
    let scripts = SCRIPTS
        .iter()
        .map(|(path, text)| (path, file("text/javascript; charset=utf-8", text)));
    let styles = STYLES
        .iter()
        .map(|(path, text)| (path, file("text/css; charset=utf-8", text)));
    scripts
        .chain(styles)
        .fold(pages, |routes, (path, file)| routes.route(path, file))
}

/// Returns whether a route is that of a file of the page.
pub(crate) fn is_file(route: &str) -> bool {
    matches!(route, "/" | "/watch" | "/favicon.svg")
        || [SCRIPTS, STYLES]
            .iter()
            .any(|files| files.iter().any(|(path, _)| *path == route))
}

fn file<S: Clone + Send + Sync + 'static>(
    mime: &'static str,
    text: &'static str,
) -> MethodRouter<S> {
    get(async move || {
        let headers = [
            (header::CONTENT_TYPE, mime),
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (headers, text).into_response()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_script_and_style_of_the_page_is_served() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let present = |folder: &str, extension: &str| -> Vec<String> {
            let files = fs::read_dir(page.join(folder)).unwrap();
            files
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(extension))
                .map(|name| format!("/{folder}{name}"))
                .collect()
        };
        let folders = [
            "", "history/", "player/", "session/", "stories/", "theme/", "videos/",
        ];
        for (files, extension) in [(SCRIPTS, ".js"), (STYLES, ".css")] {
            let mut present = folders.map(|folder| present(folder, extension)).concat();
            present.sort();
            let mut served: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
            served.sort_unstable();
            assert_eq!(served, present);
        }
    }
}
