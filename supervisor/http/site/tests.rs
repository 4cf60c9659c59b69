//! Which files a site has, and which it has not.

use std::fs;
use std::os::unix::fs::symlink;

use axum::body::to_bytes;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tempfile::TempDir;

use super::*;

/// A folder with a site in `site` and a file beside it.
fn site() -> (TempDir, Site) {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    fs::create_dir_all(place("site/_next/static")).unwrap();
    fs::create_dir_all(place("site/docs")).unwrap();
    fs::create_dir_all(place("site/about")).unwrap();
    for (name, text) in [
        ("secret.txt", "secret"),
        ("site/index.html", "index"),
        ("site/404.html", "nothing"),
        ("site/about.html", "about"),
        ("site/docs/index.html", "docs"),
        ("site/_next/static/a.js", "script"),
        ("site/.env", "hidden"),
    ] {
        fs::write(place(name), text).unwrap();
    }
    symlink("../secret.txt", place("site/out.txt")).unwrap();
    symlink(place("secret.txt"), place("site/far.txt")).unwrap();
    symlink("..", place("site/up")).unwrap();
    symlink("index.html", place("site/in.html")).unwrap();
    symlink("loop", place("site/loop")).unwrap();
    let site = Site::new(place("site"));
    (folder, site)
}

async fn get(site: &Site, path: &str) -> (u16, String) {
    let headers = HeaderMap::new();
    match site.clone().answer(&Method::GET, path, &headers).await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let body = to_bytes(answer.into_body(), 1000).await.unwrap();
            (status, String::from_utf8(body.into()).unwrap())
        }
        Err(refused) => {
            let (status, refused) = refused.into_parts();
            (status.as_u16(), refused.code.to_owned())
        }
    }
}

#[tokio::test]
async fn a_path_has_its_file_its_document_or_its_folder() {
    let (_folder, site) = site();
    for (path, text) in [
        ("/", "index"),
        ("/index.html", "index"),
        ("/index", "index"),
        ("/about", "about"),
        ("/docs", "docs"),
        ("/docs/", "docs"),
        ("/in", "index"),
        ("/_next/static/a.js", "script"),
    ] {
        assert_eq!(get(&site, path).await, (200, text.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn what_is_hidden_or_elsewhere_is_not_there() {
    let (_folder, site) = site();
    for path in [
        "/none",
        "/.env",
        "/%2eenv",
        "/../secret.txt",
        "/out.txt",
        "/far.txt",
        "/up/secret.txt",
        "/loop",
        "/docs/none",
        "/index.html/none",
        "/_next",
        "/_next/",
    ] {
        assert_eq!(
            get(&site, path).await,
            (404, "nothing".to_owned()),
            "{path}"
        );
    }
    let long = format!("/{}", "a".repeat(5000));
    assert_eq!(get(&site, &long).await.0, 404);
}

#[tokio::test]
async fn only_files_with_hashes_in_their_names_are_kept() {
    let (_folder, site) = site();
    for (path, mime, caching) in [
        ("/", "text/html; charset=utf-8", REVALIDATE),
        ("/none", "text/html; charset=utf-8", REVALIDATE),
        (
            "/_next/static/a.js",
            "text/javascript; charset=utf-8",
            IMMUTABLE,
        ),
        (
            "/_next/static/none.js",
            "text/html; charset=utf-8",
            REVALIDATE,
        ),
    ] {
        let headers = HeaderMap::new();
        let answer = site.clone().answer(&Method::GET, path, &headers).await;
        let answer = answer.unwrap();
        assert_eq!(answer.headers()[CONTENT_TYPE], mime, "{path}");
        assert_eq!(answer.headers()[CACHE_CONTROL], caching, "{path}");
    }
}

#[tokio::test]
async fn a_site_that_is_gone_is_told_in_words() {
    let (folder, site) = site();
    fs::remove_file(folder.path().join("site/404.html")).unwrap();
    assert_eq!(get(&site, "/none").await, (404, "not_found".to_owned()));
    fs::remove_dir_all(folder.path().join("site")).unwrap();
    let gone = (503, "site_unreadable".to_owned());
    assert_eq!(get(&site, "/").await, gone);
    fs::create_dir(folder.path().join("site")).unwrap();
    assert_eq!(get(&site, "/").await, (404, "not_found".to_owned()));
    fs::write(folder.path().join("site/index.html"), "again").unwrap();
    assert_eq!(get(&site, "/").await, (200, "again".to_owned()));
}

#[test]
fn json_is_for_who_asks_for_that_and_for_no_page() {
    for (accept, expected) in [
        (None, false),
        (Some("*/*"), false),
        (Some("application/json"), true),
        (Some("application/json, */*;q=0.5"), true),
        (Some("text/html,application/json;q=0.9"), false),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        assert_eq!(wants_json(&headers), expected, "{accept:?}");
    }
}

#[test]
fn a_folder_without_an_index_has_no_site() {
    let folder = tempfile::tempdir().unwrap();
    assert!(check(folder.path()).is_err());
    assert!(check(&folder.path().join("none")).is_err());
    fs::create_dir(folder.path().join(INDEX)).unwrap();
    assert!(check(folder.path()).is_err());
    fs::remove_dir(folder.path().join(INDEX)).unwrap();
    fs::write(folder.path().join(INDEX), "").unwrap();
    assert!(check(folder.path()).is_ok());
}
