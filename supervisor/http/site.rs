//! The site that an operator has put at `/` (`server.ui_dir`), such as an exported web UI: the files of a folder, wherever no
//! route answers.
//!
//! `path` says which files a request can mean, `mime` what types they have, and `tags` what tells their contents apart. The
//! folder is looked at with every request, so that another edition of the site takes effect at once.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;
use tokio_util::io::ReaderStream;

use self::tags::Tags;
use super::app::AppState;
use super::file::Head;
use super::file::conditions::EntityTag;
use crate::ingress::error::ApiError;

mod mime;
mod path;
mod tags;
#[cfg(test)]
mod tests;

/// The document of a folder.
const INDEX: &str = "index.html";
/// What is shown where there is nothing else.
const NOT_FOUND: &str = "404.html";
/// Files below have names that change with their contents.
const IMMUTABLE_FOLDER: &str = "_next/static";

const IMMUTABLE: &str = "public, max-age=31536000, immutable";
const REVALIDATE: &str = "no-cache";

/// The most that is read of a file at once.
const READ_BYTES: usize = 64 << 10;

/// A site. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Site {
    folder: Arc<Path>,
    tags: Tags,
}

/// A file that was opened.
#[derive(Debug)]
struct SiteFile {
    file: File,
    size: u64,
    tag: EntityTag,
    mime: &'static str,
    caching: &'static str,
}

/// What there is at a path.
#[derive(Debug)]
enum Found {
    File(SiteFile),
    /// Nothing; this says so.
    NotFoundPage(SiteFile),
    Nothing,
}

/// Returns whether a folder has a site in it.
///
/// # Errors
/// Returns why it has none that can be read.
pub(super) fn check(folder: &Path) -> io::Result<()> {
    let index = File::open(folder.join(INDEX))?;
    match index.metadata()?.is_file() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{INDEX} is no file"))),
    }
}

/// Answers what no route does: with the site, where there is one.
pub(super) async fn answer(State(app): AppState, request: Request) -> Result<Response, ApiError> {
    match app.site {
        Some(site) if matches!(*request.method(), Method::GET | Method::HEAD) => {
            let (head, _) = request.into_parts();
            site.answer(&head.method, head.uri.path(), &head.headers)
                .await
        }
        _ => Err(nothing_here()),
    }
}

/// Answers that there is nothing at this address.
pub(super) fn nothing_here() -> ApiError {
    ApiError::not_found("there is nothing here; see /openapi.json")
}

impl Site {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder: folder.into(),
            tags: Tags::default(),
        }
    }

    /// # Errors
    /// Returns a refusal when there is nothing at that path, or what is there cannot be read.
    async fn answer(
        self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, ApiError> {
        let candidates = path::candidates(path);
        let found = spawn_blocking(move || self.find(&candidates)).await;
        match found.map_err(|panicked| ApiError::internal(&panicked))?? {
            Found::File(file) => file.answer(method, headers),
            Found::NotFoundPage(page) if !wants_json(headers) => {
                // Without the request's conditions, which are about another file.
                let mut answer = page.answer(method, &HeaderMap::new())?;
                *answer.status_mut() = StatusCode::NOT_FOUND;
                Ok(answer)
            }
            Found::NotFoundPage(_) | Found::Nothing => Err(nothing_here()),
        }
    }

    /// Looks for the first of these files that is there. Blocks.
    fn find(&self, candidates: &[PathBuf]) -> Result<Found, ApiError> {
        let folder = self.folder.canonicalize().map_err(|error| {
            unreadable(format!("the folder of this site cannot be read: {error}"))
        })?;
        for name in candidates {
            if let Some(file) = self.open(&folder, name)? {
                return Ok(Found::File(file));
            }
        }
        let page = self.open(&folder, Path::new(NOT_FOUND))?;
        Ok(page.map_or(Found::Nothing, Found::NotFoundPage))
    }

    /// Opens a file; `None` where there is none, or a link leads out of the folder.
    fn open(&self, folder: &Path, name: &Path) -> Result<Option<SiteFile>, ApiError> {
        let Ok(path) = folder.join(name).canonicalize() else {
            return Ok(None);
        };
        // Opening a pipe would wait for who writes to it.
        if !path.starts_with(folder) || !path.is_file() {
            return Ok(None);
        }
        let open = || {
            let tag = self.tags.of(&path)?;
            let file = File::open(&path)?;
            let size = file.metadata()?.len();
            Ok((tag, file, size))
        };
        let (tag, file, size) = match open() {
            Ok(opened) => opened,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => {
                return Err(unreadable(format!("this file cannot be read: {error}")));
            }
        };
        let caching = match name.starts_with(IMMUTABLE_FOLDER) {
            true => IMMUTABLE,
            false => REVALIDATE,
        };
        Ok(Some(SiteFile {
            file,
            size,
            tag,
            mime: mime::of(name),
            caching,
        }))
    }
}

impl SiteFile {
    /// Answers a request with what it wants of the file.
    fn answer(self, method: &Method, headers: &HeaderMap) -> Result<Response, ApiError> {
        let head = Head {
            size: self.size,
            tag: &self.tag,
            mime: self.mime,
            caching: self.caching,
        };
        let (mut answer, range) = head.answer(method, headers);
        let given = answer.headers_mut();
        // The site's own scripts may be inline, unlike those of the built-in page.
        let policy = HeaderValue::from_static("frame-ancestors 'self'");
        given.insert(CONTENT_SECURITY_POLICY, policy);
        let referrer = HeaderValue::from_static("same-origin");
        given.insert(REFERRER_POLICY, referrer);
        if let Some(range) = range {
            *answer.body_mut() = body(self.file, range)
                .map_err(|error| unreadable(format!("this file cannot be read: {error}")))?;
        }
        Ok(answer)
    }
}

/// Returns a part of a file as a body, which reads it as the client takes it.
fn body(mut file: File, range: Range<u64>) -> io::Result<Body> {
    file.seek(SeekFrom::Start(range.start))?;
    let part = tokio::fs::File::from_std(file).take(range.end - range.start);
    Ok(Body::from_stream(ReaderStream::with_capacity(
        part, READ_BYTES,
    )))
}

/// Returns whether a request asks for JSON, as programs do, and not for a page.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter();
    let accepted: Vec<&str> = accepted.filter_map(|value| value.to_str().ok()).collect();
    let accepts = |mime: &str| accepted.iter().any(|value| value.contains(mime));
    accepts("application/json") && !accepts("text/html")
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn unreadable(message: String) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "site_unreadable", message)
}
