//! The site that an operator has put at `/`: what browsers get of its folder, and what nobody gets.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use ureq::http::{Request, Response};

use crate::auth::Keys;
use crate::cli::run;
use crate::harness::{PATIENCE, Server};

const GPU: &str = "--gpus=1";

/// A folder with a site in `out`, as an export has it, and what is not to be found around and in it.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for folder in ["out/_next/static/chunks", "out/internal", "out/docs"] {
            fs::create_dir_all(site.place(folder)).unwrap();
        }
        for (name, text) in [
            ("secret.txt", "secret"),
            ("out/index.html", "<script>inline</script>"),
            ("out/404.html", "<h1>Not found</h1>"),
            ("out/internal/replica-monitor.html", "monitor"),
            ("out/docs/index.html", "docs"),
            ("out/_next/static/chunks/main-abc.js", "0123456789"),
            ("out/style.css", "css"),
            ("out/favicon.ico", "ico"),
            ("out/font.woff2", "woff2"),
            ("out/logo.svg", "<svg/>"),
            ("out/index.txt", "text"),
            ("out/.env", "hidden"),
        ] {
            fs::write(site.place(name), text).unwrap();
        }
        symlink("../secret.txt", site.place("out/out.txt")).unwrap();
        symlink(site.place("secret.txt"), site.place("out/far.txt")).unwrap();
        symlink("..", site.place("out/up")).unwrap();
        symlink("docs/index.html", site.place("out/within.html")).unwrap();
        site
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flag(&self) -> String {
        format!("--ui-dir={}", self.place("out").display())
    }

    fn serve(&self) -> Server {
        Server::start(&[GPU, &self.flag()])
    }
}

async fn ask(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Response<String> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.send(request.body(String::new()).unwrap()).await
}

async fn get(server: &Server, path: &str) -> Response<String> {
    ask(server, "GET", path, &[]).await
}

/// The value of a header; empty without one.
fn header<'a>(answer: &'a Response<String>, name: &str) -> &'a str {
    let value = answer.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

/// Sends a path as it is, which HTTP clients would tidy up. Returns the whole answer.
async fn raw(server: &Server, target: &str) -> String {
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let reading = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    reading.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn files_have_their_types_and_are_kept_as_long_as_they_may() {
    let site = Site::new();
    let server = site.serve();
    let immutable = "public, max-age=31536000, immutable";
    for (path, mime, caching) in [
        ("/", "text/html; charset=utf-8", "no-cache"),
        (
            "/internal/replica-monitor",
            "text/html; charset=utf-8",
            "no-cache",
        ),
        ("/docs", "text/html; charset=utf-8", "no-cache"),
        ("/docs/", "text/html; charset=utf-8", "no-cache"),
        ("/within", "text/html; charset=utf-8", "no-cache"),
        (
            "/_next/static/chunks/main-abc.js",
            "text/javascript; charset=utf-8",
            immutable,
        ),
        ("/style.css", "text/css; charset=utf-8", "no-cache"),
        ("/favicon.ico", "image/x-icon", "no-cache"),
        ("/font.woff2", "font/woff2", "no-cache"),
        ("/logo.svg", "image/svg+xml", "no-cache"),
        (
            "/index.txt?_rsc=abc",
            "text/plain; charset=utf-8",
            "no-cache",
        ),
    ] {
        let answer = get(&server, path).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(header(&answer, "content-type"), mime, "{path}");
        assert_eq!(header(&answer, "cache-control"), caching, "{path}");
        assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
        let policy = header(&answer, "content-security-policy");
        assert!(!policy.contains("script-src") && !policy.contains("default-src"));

        let tag = header(&answer, "etag");
        assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
        let again = ask(&server, "GET", path, &[("if-none-match", tag)]).await;
        assert_eq!((again.status().as_u16(), again.body().as_str()), (304, ""));
        assert_eq!(header(&again, "etag"), tag);

        let head = ask(&server, "HEAD", path, &[]).await;
        assert_eq!((head.status().as_u16(), head.body().as_str()), (200, ""));
        let length = answer.body().len().to_string();
        assert_eq!(header(&head, "content-length"), length, "{path}");
        assert_eq!(header(&head, "content-type"), mime, "{path}");
    }
    assert_eq!(get(&server, "/").await.body(), "<script>inline</script>");
    assert_eq!(get(&server, "/within").await.body(), "docs");
}

#[tokio::test]
async fn another_edition_of_a_file_is_served_at_once() {
    let site = Site::new();
    let server = site.serve();
    let first = get(&server, "/").await;
    let tag = header(&first, "etag").to_owned();
    fs::write(site.place("new"), "another edition").unwrap();
    fs::rename(site.place("new"), site.place("out/index.html")).unwrap();
    let second = ask(&server, "GET", "/", &[("if-none-match", &tag)]).await;
    assert_eq!(second.status(), 200);
    assert_eq!(second.body(), "another edition");
    assert_ne!(header(&second, "etag"), tag);
}

#[tokio::test]
async fn a_part_of_a_file_can_be_asked_for() {
    let site = Site::new();
    let server = site.serve();
    let path = "/_next/static/chunks/main-abc.js";
    for (range, status, part, told) in [
        ("bytes=2-4", 206, "234", "bytes 2-4/10"),
        ("bytes=-1", 206, "9", "bytes 9-9/10"),
        ("bytes=5-99", 206, "56789", "bytes 5-9/10"),
        ("lines=1-2", 200, "0123456789", ""),
    ] {
        let answer = ask(&server, "GET", path, &[("range", range)]).await;
        let got = (answer.status().as_u16(), answer.body().as_str());
        assert_eq!(got, (status, part), "{range}");
        assert_eq!(header(&answer, "content-range"), told, "{range}");
    }
    let beyond = ask(&server, "GET", path, &[("range", "bytes=10-")]).await;
    assert_eq!(beyond.status(), 416);
    assert_eq!(header(&beyond, "content-range"), "bytes */10");
}

#[tokio::test]
async fn nothing_outside_of_the_folder_and_nothing_hidden_is_served() {
    let site = Site::new();
    let server = site.serve();
    for target in [
        "/../secret.txt",
        "/docs/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E/secret.txt",
        "/.%2e/secret.txt",
        "/..%2fsecret.txt",
        "/..%2Fsecret.txt",
        "/docs%2f..%2f..%2fsecret.txt",
        "/..\\secret.txt",
        "/..%5csecret.txt",
        "/docs/..\\..\\secret.txt",
        "/%252e%252e/secret.txt",
        "//secret.txt",
        "/./index.html",
        "/docs/../index.html",
        "/docs//index.html",
        "/index.html%00.txt",
        "/%00",
        "/%ff",
        "/out.txt",
        "/far.txt",
        "/up/secret.txt",
        "/.env",
        "/%2eenv",
        "/_next",
        "/_next/static/",
        "http://localhost/../secret.txt",
        "/etc/passwd",
        "/../../../../../../etc/passwd",
    ] {
        let answer = raw(&server, target).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "404"].contains(&status), "{target}: {answer}");
        for text in ["secret\r\n", "hidden", "root:", "<script>"] {
            assert!(!answer.contains(text), "{target}: {answer}");
        }
        assert!(!answer.ends_with("secret"), "{target}: {answer}");
    }
    assert_eq!(get(&server, "/docs/index.html").await.status(), 200);
}

#[tokio::test]
async fn what_is_not_there_is_a_page_for_people_and_json_for_programs() {
    let site = Site::new();
    let server = site.serve();
    for path in ["/nowhere", "/_next/static/chunks/old.js", "/v1/nowhere"] {
        let page = ask(&server, "GET", path, &[("accept", "text/html")]).await;
        assert_eq!(page.status(), 404, "{path}");
        assert_eq!(page.body(), "<h1>Not found</h1>", "{path}");
        assert_eq!(header(&page, "cache-control"), "no-cache", "{path}");
        let tag = header(&page, "etag");
        let again = ask(&server, "GET", path, &[("if-none-match", tag)]).await;
        assert_eq!(again.status(), 404, "{path}");
        let head = ask(&server, "HEAD", path, &[]).await;
        assert_eq!((head.status().as_u16(), head.body().as_str()), (404, ""));
    }
    for (method, accept) in [("GET", "application/json"), ("POST", "text/html")] {
        let answer = ask(&server, method, "/nowhere", &[("accept", accept)]).await;
        assert_eq!(answer.status(), 404, "{method}");
        let body: Value = serde_json::from_str(answer.body()).unwrap();
        assert_eq!(body["error"]["code"], "not_found", "{method}");
    }
    fs::remove_file(site.place("out/404.html")).unwrap();
    let answer = get(&server, "/nowhere").await;
    assert_eq!(answer.status(), 404);
    let body: Value = serde_json::from_str(answer.body()).unwrap();
    assert_eq!(body["error"]["code"], "not_found");
}

#[tokio::test]
async fn routes_come_first_and_the_built_in_page_is_in_its_folder() {
    let site = Site::new();
    for name in ["health", "status", "watch", "openapi.json"] {
        fs::write(site.place("out").join(name), "of the site").unwrap();
    }
    fs::write(site.place("out/page.css"), "of the site").unwrap();
    fs::create_dir(site.place("out/operator")).unwrap();
    fs::write(site.place("out/operator/index.html"), "of the site").unwrap();
    let server = site.serve();
    for path in ["/health", "/status", "/openapi.json"] {
        let answer = get(&server, path).await;
        assert_eq!(header(&answer, "content-type"), "application/json");
    }
    for path in ["/operator", "/operator/", "/operator/watch", "/watch"] {
        let page = get(&server, path).await;
        assert_eq!(page.status(), 200, "{path}");
        let policy = header(&page, "content-security-policy");
        assert!(policy.contains("default-src 'self'"), "{path}");
        assert!(page.body().contains("data-server=\"../\""), "{path}");
    }
    assert!(get(&server, "/watch").await.body().contains("watch.js"));
    let script = get(&server, "/operator/session/film.js").await;
    assert_eq!(script.status(), 200);
    // The site may have files of these names.
    assert_eq!(get(&server, "/page.css").await.body(), "of the site");
    assert_eq!(get(&server, "/page.js").await.status(), 404);
}

#[tokio::test]
async fn a_site_is_for_everybody_where_others_need_a_key() {
    let site = Site::new();
    let server = Keys::new().serve(&[&site.flag()]);
    for path in ["/", "/style.css", "/operator/", "/watch"] {
        assert_eq!(get(&server, path).await.status(), 200, "{path}");
    }
    assert_eq!(get(&server, "/nowhere").await.status(), 404);
    assert_eq!(get(&server, "/v1/sessions").await.status(), 401);
}

#[tokio::test]
async fn operators_at_an_address_of_their_own_have_no_site() {
    let site = Site::new();
    let server = Server::start(&[GPU, &site.flag(), "--server.admin_port=0"]);
    assert_eq!(get(&server, "/").await.status(), 200);
    let admin = server.admin().await;
    let mut socket = TcpStream::connect(&admin).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let reading = timeout(PATIENCE, socket.read_to_string(&mut answer)).await;
    reading.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn an_emptied_and_a_vanished_folder_are_told_in_words() {
    let site = Site::new();
    let server = site.serve();
    fs::remove_dir_all(site.place("out")).unwrap();
    fs::create_dir(site.place("out")).unwrap();
    let check = async |status: u16, code: &str| {
        let answer = get(&server, "/").await;
        assert_eq!(answer.status(), status, "{}", answer.body());
        let body: Value = serde_json::from_str(answer.body()).unwrap();
        assert_eq!(body["error"]["code"], code);
    };
    check(404, "not_found").await;
    fs::remove_dir(site.place("out")).unwrap();
    check(503, "site_unreadable").await;
    assert_eq!(get(&server, "/health").await.status(), 200);
    fs::create_dir(site.place("out")).unwrap();
    fs::write(site.place("out/index.html"), "back").unwrap();
    assert_eq!(get(&server, "/").await.body(), "back");
}

#[tokio::test]
async fn without_an_index_the_server_does_not_start() {
    let site = Site::new();
    fs::remove_file(site.place("out/index.html")).unwrap();
    let refused = async |flag: &str, words: &str| {
        for command in [
            &["--gpus=1", "--port=0"][..],
            &["check", "--engine=synthetic"],
        ] {
            let (code, stdout, stderr) = run(&[command, &[flag]].concat()).await;
            assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
            for word in ["`server.ui_dir`", "index.html", words] {
                assert!(stderr.contains(word), "{word} in {stderr}");
            }
        }
    };
    refused(&site.flag(), "No such file").await;
    refused("--ui-dir=/nonexistent", "No such file").await;
    fs::create_dir(site.place("out/index.html")).unwrap();
    refused(&site.flag(), "is no file").await;
}
