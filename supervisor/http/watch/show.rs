//! What one spectator is sent.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::job::MediaMode;
use fastvideo_proto::stored::{JPEG, StoredMedia, StoredSegment};
use fastvideo_proto::stream_v1::ServerMessage;
use fastvideo_proto::watch::{RouterAsks, WatchMessage};
use futures_util::SinkExt;
use futures_util::stream::SplitSink;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, interval_at, sleep};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::causes::with_causes;
use crate::http::film::document::film_segment;
use crate::ingress::connection::Connection;
use crate::ingress::websocket::WebSocket;
use crate::session::broadcast::{
    Broadcast, LiveSegment, OnAir, Script, SegmentEnd, Spectator, TooManySpectators,
};
use crate::session::{Context, Drain};
use crate::store::FilmView;

/// How many segments a spectator may be behind what is on air.
const MAX_LAG: u32 = 2;
/// How long a session whose client is gone is waited for: that may come back.
const LINGER: Duration = Duration::from_secs(15);
/// How often a session that does not run on this server is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

type Sink = SplitSink<WebSocket, Message>;

/// Why nothing more is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The session is over.
    Over,
    /// The server is going away.
    Draining,
    /// The router of the spectator is to ask another server.
    Moved,
}

/// What one spectator sees, and how far that has come.
#[derive(Debug)]
pub(super) struct Show {
    context: Context,
    session: SessionId,
    token: String,
    /// Present while the session runs on this server.
    air: Option<Air>,
    /// What a router wants to be shown.
    router: Option<RouterAsks>,
    /// The film as it was last looked at.
    view: FilmView,
    /// Whether the spectator's token is valid.
    is_allowed: bool,
    /// The renewals of tokens since which that is known.
    renewals: u32,
    /// The segment to be shown next.
    next: u32,
    /// Whether the spectator has come up with what is on air, so that it is not shown older segments any more.
    has_caught_up: bool,
}

#[derive(Debug)]
struct Air {
    on_air: watch::Receiver<OnAir>,
    _counted: Spectator,
}

/// Why showing stops: the spectator is gone.
struct Gone;

impl From<tungstenite::Error> for Gone {
    fn from(_: tungstenite::Error) -> Self {
        Self
    }
}

/// What became of a segment.
enum Shown {
    Whole,
    /// The next segment to show is another one than that which follows.
    Skipped,
    /// Its media are void.
    Void,
}

/// The spectator's side of its connection.
struct Screen<'a> {
    sink: Sink,
    connection: &'a Connection,
    pings: Interval,
}

impl Screen<'_> {
    async fn text(&mut self, message: &impl Serialize) -> Result<(), Gone> {
        let text = serde_json::to_string(message).expect("strings and numbers are JSON");
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        let _writing = self.connection.write_message();
        Ok(self.sink.send(message).await?)
    }

    /// Pings the spectator for as long as this is waited for.
    async fn ping(&mut self) -> Result<(), Gone> {
        loop {
            self.pings.tick().await;
            self.sink.send(Message::Ping(Bytes::new())).await?;
        }
    }
}

impl Show {
    /// Begins a show at a segment, or else at what is on air.
    ///
    /// # Errors
    /// Returns an error when there are too many spectators.
    pub(super) fn new(
        context: Context,
        session: SessionId,
        token: String,
        view: FilmView,
        from: Option<u32>,
        router: Option<RouterAsks>,
    ) -> Result<Self, TooManySpectators> {
        let mut show = Self {
            air: None,
            router,
            view,
            is_allowed: true,
            renewals: 0,
            next: 0,
            has_caught_up: from.is_none(),
            context,
            session,
            token,
        };
        if let Some(broadcast) = show.context.broadcasts.get(&show.session) {
            show.tune_in(&broadcast)?;
        }
        show.next = from.unwrap_or_else(|| show.live_idx());
        Ok(show)
    }

    pub(super) fn session(&self) -> &SessionId {
        &self.session
    }

    /// Returns whether the session runs on this server.
    pub(super) fn is_on_air(&self) -> bool {
        self.air.is_some()
    }

    /// Shows everything, and returns the sink and why it is over; `None` when the spectator is gone.
    pub(super) async fn play(
        mut self,
        sink: Sink,
        connection: &Connection,
        ping_interval: Duration,
    ) -> Option<(Sink, Ending)> {
        let mut screen = Screen {
            sink,
            connection,
            pings: interval_at(Instant::now() + ping_interval, ping_interval),
        };
        let ending = self.run(&mut screen).await.ok()?;
        Some((screen.sink, ending))
    }

    async fn run(&mut self, screen: &mut Screen<'_>) -> Result<Ending, Gone> {
        let format = self.context.config.get().format;
        let start = WatchMessage::WatchStart {
            session_id: self.session.to_string(),
            live: self.view.goes_on(),
            width: format.width,
            height: format.height,
            fps: format.fps,
            mime: self.mime(),
            from: self.next,
        };
        screen.text(&start).await?;
        loop {
            let on_air = self.on_air();
            if on_air.renewals != self.renewals {
                self.renewals = on_air.renewals;
                self.look_at_film().await;
            }
            if !self.is_allowed {
                screen.text(&WatchMessage::WatchEnd).await?;
                return Ok(Ending::Over);
            }
            self.skip_if_late(screen).await?;
            let live = self.on_air().segment;
            if let Some(segment) = live.filter(|segment| segment.at.segment_idx == self.next) {
                self.has_caught_up = true;
                if let Shown::Whole = self.show_live(&segment, screen).await? {
                    self.next += 1;
                }
            } else if let Some(segment) = self.next_of_film().await {
                if let Shown::Whole = self.show_stored(&segment, screen).await? {
                    self.next += 1;
                }
            } else if let Some(ending) = self.wait(screen).await? {
                if ending == Ending::Over {
                    screen.text(&WatchMessage::WatchEnd).await?;
                }
                return Ok(ending);
            }
        }
    }

    fn mime(&self) -> String {
        let broadcast = self.context.broadcasts.get(&self.session);
        if broadcast.is_some_and(|broadcast| broadcast.mode() == MediaMode::LegacyJpeg) {
            return JPEG.to_owned();
        }
        let last = self.view.film.segments().last();
        last.map_or_else(|| "video/mp4".to_owned(), |segment| segment.mime.clone())
    }

    /// Returns what is on air now; the next change is seen.
    fn on_air(&mut self) -> OnAir {
        match &mut self.air {
            Some(air) => air.on_air.borrow_and_update().clone(),
            None => OnAir {
                is_over: true,
                ..OnAir::default()
            },
        }
    }

    /// Returns the index of the segment that is on air, or else of the next one.
    fn live_idx(&mut self) -> u32 {
        match &self.air {
            Some(_) => {
                let on_air = self.on_air();
                let live = on_air.segment.map(|segment| segment.at.segment_idx);
                live.unwrap_or(on_air.next_idx)
            }
            None => {
                let last = self.view.film.segments().last();
                last.map_or(0, |segment| segment.segment_idx + 1)
            }
        }
    }

    fn tune_in(&mut self, broadcast: &Broadcast) -> Result<(), TooManySpectators> {
        let counted = broadcast.join(&self.context.broadcasts)?;
        self.renewals = broadcast.listen().borrow().renewals;
        self.air = Some(Air {
            on_air: broadcast.listen(),
            _counted: counted,
        });
        Ok(())
    }

    /// Moves a spectator that has fallen too far behind to what is on air.
    async fn skip_if_late(&mut self, screen: &mut Screen<'_>) -> Result<(), Gone> {
        let live = self.live_idx();
        if self.has_caught_up && live > self.next + (MAX_LAG - 1) {
            self.skip_to(live, screen).await?;
        }
        Ok(())
    }

    async fn skip_to(&mut self, segment_idx: u32, screen: &mut Screen<'_>) -> Result<(), Gone> {
        self.next = segment_idx;
        screen
            .text(&WatchMessage::WatchSkipped { segment_idx })
            .await
    }

    /// Returns the next segment if it is finished; its media may be lost.
    async fn next_of_film(&mut self) -> Option<Arc<StoredSegment>> {
        let on_air = self.on_air();
        if !on_air.is_over && on_air.next_idx <= self.next {
            return None;
        }
        if let Some(segment) = self.view.film.segment(self.next) {
            return Some(segment.clone());
        }
        self.look_at_film().await;
        // The first segments may be forgotten.
        let mut segments = self.view.film.segments().iter();
        let next = segments.find(|segment| segment.segment_idx >= self.next);
        next.cloned()
    }

    async fn look_at_film(&mut self) {
        match self.context.store.film(&self.session, &self.token).await {
            Ok(Some(view)) => self.view = view,
            // The session was dropped, or the token is not valid any more.
            Ok(None) => self.is_allowed = false,
            Err(error) => {
                let error = with_causes(&error);
                tracing::debug!(error, "film not read for a spectator");
            }
        }
    }

    /// Waits until there may be more to show. Returns why there is nothing more.
    async fn wait(&mut self, screen: &mut Screen<'_>) -> Result<Option<Ending>, Gone> {
        if let Some(air) = &mut self.air
            && !air.on_air.borrow().is_over
        {
            tokio::select! {
                _ = air.on_air.changed() => {}
                gone = screen.ping() => gone?,
            }
            return Ok(None);
        }
        self.air = None;
        let since = Instant::now();
        loop {
            if *self.context.drain.borrow() != Drain::No {
                return Ok(Some(Ending::Draining));
            }
            if let Some(broadcast) = self.context.broadcasts.get(&self.session) {
                return Ok(match self.tune_in(&broadcast) {
                    Ok(()) => None,
                    Err(_) => Some(Ending::Over),
                });
            }
            self.look_at_film().await;
            if !self.is_allowed || self.view.film.segment(self.next).is_some() {
                return Ok(None);
            }
            if self.is_elsewhere() {
                return Ok(Some(Ending::Moved));
            }
            if !self.view.goes_on() && since.elapsed() > LINGER {
                return Ok(Some(Ending::Over));
            }
            tokio::select! {
                () = sleep(LOOK_INTERVAL) => {}
                gone = screen.ping() => gone?,
            }
        }
    }

    /// Returns whether the router of the spectator finds the session at another server, or is to look for it there.
    fn is_elsewhere(&self) -> bool {
        match self.router {
            Some(RouterAsks::OnAir) => true,
            Some(RouterAsks::Film) => self.view.is_elsewhere,
            None => false,
        }
    }

    /// Shows a segment while it is made.
    async fn show_live(
        &mut self,
        segment: &LiveSegment,
        screen: &mut Screen<'_>,
    ) -> Result<Shown, Gone> {
        let (idx, attempt) = (segment.at.segment_idx, segment.at.attempt);
        screen
            .text(&self.segment_start(idx, attempt, &segment.script))
            .await?;
        let mut shown = 0;
        loop {
            // A change after this is seen below.
            if self.on_air().renewals != self.renewals {
                screen.text(&ServerMessage::void(idx)).await?;
                return Ok(Shown::Void);
            }
            let unread = segment.unread(shown);
            if shown == 0 && !unread.messages.is_empty() {
                let init = self.media_init(idx, attempt, unread.mime.as_deref());
                screen.text(&init).await?;
            }
            for message in unread.messages {
                shown += 1;
                if !self.show_unless_late(message, idx, screen).await? {
                    return Ok(Shown::Skipped);
                }
            }
            match unread.end {
                Some(SegmentEnd::Finished(finished)) => {
                    self.finished(&finished, shown, screen).await?;
                    return Ok(Shown::Whole);
                }
                Some(SegmentEnd::Void) => {
                    screen.text(&ServerMessage::void(idx)).await?;
                    return Ok(Shown::Void);
                }
                None => {}
            }
            let changed = async {
                match &mut self.air {
                    // A segment that is over has an end.
                    Some(air) => drop(air.on_air.changed().await),
                    None => pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                gone = screen.ping() => gone?,
            }
        }
    }

    /// Shows a message. Returns false when the spectator has not taken it by the time at which it is too late.
    async fn show_unless_late(
        &self,
        message: Bytes,
        idx: u32,
        screen: &mut Screen<'_>,
    ) -> Result<bool, Gone> {
        let mut on_air = self.air.as_ref().map(|air| air.on_air.clone());
        let too_late = async {
            let is_late = |on_air: &OnAir| on_air.next_idx >= idx + MAX_LAG;
            let late = match &mut on_air {
                Some(on_air) => on_air.wait_for(is_late).await.is_ok(),
                None => false,
            };
            if !late {
                pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            sent = screen.send(Message::Binary(message)) => sent.map(|()| true),
            () = too_late => Ok(false),
        }
    }

    /// Shows a segment of the film.
    async fn show_stored(
        &mut self,
        segment: &Arc<StoredSegment>,
        screen: &mut Screen<'_>,
    ) -> Result<Shown, Gone> {
        let idx = segment.segment_idx;
        if idx != self.next {
            self.skip_to(idx, screen).await?;
        }
        let Some(media) = &segment.media else {
            self.skip_to(idx + 1, screen).await?;
            return Ok(Shown::Skipped);
        };
        let script = Script {
            prompt: segment.prompt.clone(),
            original_prompt: segment.original_prompt.clone(),
            source: segment.source,
            total_steps: segment.num_inference_steps,
        };
        let start = self.segment_start(idx, segment.attempt, &script);
        screen.text(&start).await?;
        let mime = (!segment.is_pictures()).then_some(&*segment.mime);
        screen
            .text(&self.media_init(idx, segment.attempt, mime))
            .await?;
        let StoredMedia { messages, .. } = media;
        let mut at = 0;
        for length in messages {
            let end = at + u64::from(*length);
            // One message at a time, so that many spectators of old segments take little memory.
            let message = match self.context.store.media_range(segment, at..end).await {
                Ok(message) => message.join(),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::debug!(error, segment_idx = idx, "media not read for a spectator");
                    screen.text(&ServerMessage::void(idx)).await?;
                    self.skip_to(idx + 1, screen).await?;
                    return Ok(Shown::Skipped);
                }
            };
            at = end;
            screen.send(Message::Binary(message)).await?;
        }
        self.finished(segment, messages.len(), screen).await?;
        Ok(Shown::Whole)
    }

    async fn finished(
        &self,
        segment: &StoredSegment,
        messages: usize,
        screen: &mut Screen<'_>,
    ) -> Result<(), Gone> {
        screen
            .text(&ServerMessage::MediaSegmentComplete {
                segment_idx: segment.segment_idx,
                stream_id: self.stream_id(segment.segment_idx, segment.attempt),
                chunks: segment.chunks(messages),
                duration_ms: segment.duration.as_secs_f64() * 1000.0,
                pts_base_ms: segment.start.as_secs_f64() * 1000.0,
            })
            .await?;
        let facts = film_segment(segment);
        screen
            .text(&WatchMessage::FilmSegment(Box::new(facts)))
            .await
    }

    fn segment_start(&self, segment_idx: u32, attempt: u32, script: &Script) -> ServerMessage {
        ServerMessage::SegmentStart {
            segment_idx,
            prompt: script.prompt.clone(),
            total_steps: script.total_steps,
            source: script.source,
            original_prompt: script.original_prompt.clone(),
            attempt,
            replayed: false,
            request_id: None,
        }
    }

    fn media_init(&self, segment_idx: u32, attempt: u32, mime: Option<&str>) -> ServerMessage {
        ServerMessage::MediaInit {
            segment_idx,
            mime: mime.unwrap_or(JPEG).to_owned(),
            stream_id: self.stream_id(segment_idx, attempt),
            mode: match mime {
                Some(_) => MediaMode::AvFmp4,
                None => MediaMode::LegacyJpeg,
            },
        }
    }

    fn stream_id(&self, segment_idx: u32, attempt: u32) -> String {
        format!("{}-{segment_idx}-{attempt}", self.session)
    }
}
