//! A film that grows: what there is of the segment that is being made, and requests that wait for more of it.

use std::time::Duration;

use fastvideo_proto::api::film::PlaylistQuery;
use fastvideo_proto::ids::SessionId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::parts::{PartName, Parts, no_part};
use super::request::FilmRequest;
use crate::http::app::App;
use crate::http::file::File;
use crate::ingress::error::ApiError;
use crate::session::broadcast::OnAir;

/// How often the film of a session that does not run on this server is looked at while a request waits.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How far ahead of the playlist's end a request may wait, in segments.
const MAX_SEGMENTS_AHEAD: u64 = 2;

/// The growing end of a film whose session runs on this server.
#[derive(Debug, Default)]
pub(super) struct LiveEnd {
    /// The segment that is being made, if it has parts that can be played.
    pub(super) parts: Option<Parts>,
    /// The segment that is not listed in parts, because players may have void ones of it: they have to load the whole.
    pub(super) void_idx: Option<u32>,
}

/// What a player waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    segment: u64,
    /// Counted from 0; absent for the whole segment.
    part: Option<u64>,
}

impl Awaited {
    /// Reads the Delivery Directives of a request.
    ///
    /// # Errors
    /// Returns a refusal when they name a part without its segment.
    pub(super) fn read(query: PlaylistQuery) -> Result<Option<Self>, ApiError> {
        let PlaylistQuery {
            hls_msn: segment,
            hls_part: part,
        } = query;
        if segment.is_none() && part.is_some() {
            let message = "`_HLS_part` needs `_HLS_msn`, the segment that the part belongs to";
            return Err(ApiError::invalid_request(message));
        }
        Ok(segment.map(|segment| Self { segment, part }))
    }

    /// Waits for the first segment of a film.
    pub(super) fn first() -> Self {
        Self {
            segment: 0,
            part: None,
        }
    }

    /// Returns whether a film has come so far whose next segment that is not finished is `next`. `live` are the parts of
    /// that one, and `last` those of the one before.
    pub(super) fn is_reached(self, next: u64, last: Option<&Parts>, live: Option<&Parts>) -> bool {
        let count = |parts: Option<&Parts>| parts.map_or(0, Parts::count) as u64;
        let Some(part) = self.part else {
            return self.segment < next;
        };
        // Behind a segment's last part comes the first one of the next segment.
        let (segment, part) = match last {
            Some(_) if self.segment + 1 == next && part >= count(last) => (next, 0),
            _ => (self.segment, part),
        };
        segment < next || segment == next && part < count(live)
    }
}

/// Looks at the growing end of a film; `None` when its session does not run on this server, or the film is not kept.
/// What changes from then on is told to `changes`.
fn live_end(changes: Option<&mut watch::Receiver<OnAir>>) -> Option<LiveEnd> {
    let on_air = changes?.borrow_and_update().clone();
    let void_idx = on_air.void_idx;
    let live = on_air.segment;
    let live = live.filter(|segment| void_idx != Some(segment.at.segment_idx));
    let parts =
        live.and_then(|segment| Parts::of_messages(segment.at, &segment.unread(0).messages));
    Some(LiveEnd { parts, void_idx })
}

/// Begins to listen to a session that runs on this server.
fn tune_in(app: &App, session: &SessionId) -> Option<watch::Receiver<OnAir>> {
    app.context.store.config().recording?;
    let broadcast = app.context.broadcasts.get(session)?;
    Some(broadcast.listen())
}

/// Returns the growing end of the film; with `awaited`, as soon as the film has come so far, is over, or `patience` has
/// passed.
///
/// # Errors
/// Returns a refusal when what is awaited is too far away, or the film cannot be looked at any more.
pub(super) async fn follow(
    app: &App,
    request: &mut FilmRequest,
    awaited: Option<Awaited>,
    patience: Duration,
) -> Result<Option<LiveEnd>, ApiError> {
    let deadline = Instant::now() + patience;
    let mut is_new = true;
    loop {
        let mut changes = tune_in(app, &request.session);
        let mut end = live_end(changes.as_mut());
        // What was on air when the film was looked at may be in it by now.
        if end.is_some() || !is_new {
            request.look_again().await?;
        }
        is_new = false;
        let segments = request.view.film.segments();
        let next = segments
            .last()
            .map_or(0, |last| u64::from(last.segment_idx) + 1);
        if let Some(end) = &mut end {
            let is_next = |parts: &Parts| u64::from(parts.at.segment_idx) == next;
            end.parts = end.parts.take().filter(is_next);
        }
        let Some(awaited) = awaited.filter(|_| !request.view.is_over()) else {
            return Ok(end);
        };
        let live = end.as_ref().and_then(|end| end.parts.as_ref());
        let last = segments.last().and_then(|last| Parts::of_stored(last));
        if awaited.segment >= next + MAX_SEGMENTS_AHEAD {
            return Err(ApiError::invalid_request(format!(
                "`_HLS_msn` is {}, and the next segment of the playlist is {next}",
                awaited.segment
            )));
        }
        if awaited.is_reached(next, last.as_ref(), live) {
            return Ok(end);
        }
        tokio::select! {
            () = changed(changes) => {}
            // A player that gets the list as it was asks again.
            () = sleep_until(deadline) => return Ok(end),
            () = app.ingress.stopping.cancelled() => return Ok(end),
        }
    }
}

/// Waits until something may have changed.
async fn changed(changes: Option<watch::Receiver<OnAir>>) {
    match changes {
        Some(mut changes) => drop(changes.changed().await),
        None => sleep(LOOK_INTERVAL).await,
    }
}

/// Returns a message of the film as a file. The next one of the segment that is being made is waited for.
///
/// # Errors
/// Returns a refusal when there is no such message.
pub(super) async fn part(
    app: &App,
    request: &mut FilmRequest,
    name: PartName,
    patience: Duration,
) -> Result<File, ApiError> {
    let deadline = Instant::now() + patience;
    let mut is_new = true;
    loop {
        let mut changes = tune_in(app, &request.session);
        let is_known = is_new && changes.is_none();
        is_new = false;
        let on_air = changes.as_mut();
        let on_air = on_air.map(|changes| changes.borrow_and_update().clone());
        let live = on_air.and_then(|on_air| on_air.segment);
        let Some(segment) = live.filter(|segment| segment.at == name.at) else {
            if !is_known {
                request.look_again().await?;
            }
            let segment = request.view.film.segment(name.at.segment_idx);
            let file = segment.and_then(|segment| name.of_stored(segment));
            return file.ok_or_else(no_part);
        };
        let unread = segment.unread(0);
        if let Some(file) = name.of_live(&unread.messages) {
            return Ok(file);
        }
        if name.message > unread.messages.len() {
            return Err(no_part());
        }
        tokio::select! {
            () = changed(changes) => {}
            () = sleep_until(deadline) => return Err(no_part()),
            () = app.ingress.stopping.cancelled() => return Err(no_part()),
        }
    }
}
