//! The built-in page: files embedded in the binary, so that it needs neither a build step nor a network.
//!
//! Servers and routers serve the same files. They are at `/` unless the operator has put a site there (`server.ui_dir`), and
//! always in `/operator/`.

use std::future::ready;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Redirect};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;

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
    "/address.js",
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

/// Documents by their paths.
const DOCUMENTS: [(&str, &str); 2] = [
    ("/", include_str!("page/index.html")),
    ("/watch", include_str!("page/watch.html")),
];
/// How a document says where the server is, seen from it.
const BESIDE_SERVER: &str = "data-server=\"\"";
const BELOW_SERVER: &str = "data-server=\"../\"";

const STYLES: &[(&str, &str)] = files![
    "/history/history.css",
    "/page.css",
    "/stories/stories.css",
    "/theme/colors.css",
    "/theme/small_screens.css",
];
const ICON: (&str, &str) = ("/favicon.svg", include_str!("page/favicon.svg"));

/// The folder in which the page always is.
const FOLDER: &str = "/operator";

/// Returns the routes of the page for a service with any state: at `/`, and in its folder.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    served("").merge(in_folder())
}

/// Returns the routes of the page where a site has all paths that are no routes. Links to films lead on.
pub(crate) fn routes_beside_site<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let to_folder = get(async || Redirect::temporary("operator/watch"));
    in_folder().route("/watch", to_folder)
}

fn in_folder<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // Relative, since a proxy may serve everything below a path.
    served(FOLDER).route(FOLDER, get(async || Redirect::temporary("operator/")))
}

/// Returns the routes of all files below a path.
fn served<S: Clone + Send + Sync + 'static>(below: &str) -> Router<S> {
    let mut routes = Router::new();
    for (path, text) in DOCUMENTS {
        let text = match below {
            "" => text.to_owned(),
            _ => text.replacen(BESIDE_SERVER, BELOW_SERVER, 1),
        };
        let file = file("text/html; charset=utf-8", text.into());
        routes = routes.route(&format!("{below}{path}"), file);
    }
    let of = |mime, files: &'static [(&str, &str)]| files.iter().map(move |file| (mime, *file));
    let icon = [("image/svg+xml", ICON)];
    let styles = of("text/css; charset=utf-8", STYLES);
    let scripts = of("text/javascript; charset=utf-8", SCRIPTS);
    for (mime, (path, text)) in icon.into_iter().chain(styles).chain(scripts) {
        let file = file(mime, Bytes::from_static(text.as_bytes()));
        routes = routes.route(&format!("{below}{path}"), file);
    }
    routes
}

/// Returns whether a route is that of a file of the page.
pub(crate) fn is_file(route: &str) -> bool {
    let path = match route.strip_prefix(FOLDER) {
        Some("") => return true,
        Some(path) => path,
        None => route,
    };
    let has = |(of, _): &(&str, &str)| *of == path;
    let mut rest = SCRIPTS.iter().chain(STYLES);
    DOCUMENTS.iter().any(has) || has(&ICON) || rest.any(has)
}

fn file<S: Clone + Send + Sync + 'static>(mime: &'static str, text: Bytes) -> MethodRouter<S> {
    get(move || {
        let headers = [
            (header::CONTENT_TYPE, mime),
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        ready((headers, text.clone()).into_response())
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

    #[test]
    fn documents_say_where_the_server_is() {
        for (path, text) in DOCUMENTS {
            assert_eq!(text.matches(BESIDE_SERVER).count(), 1, "{path}");
        }
    }

    #[test]
    fn files_are_known_at_both_places_and_nothing_else_is() {
        for path in ["/", "/watch", "/page.css", "/session/film.js"] {
            assert!(
                is_file(path) && is_file(&format!("/operator{path}")),
                "{path}"
            );
        }
        assert!(is_file("/operator"));
        for path in [
            "",
            "/v1/stream",
            "/operator/v1/stream",
            "/operators",
            "/operator/operator/",
        ] {
            assert!(!is_file(path), "{path}");
        }
    }
}
