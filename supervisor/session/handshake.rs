//! Begins a session: receives and checks its opening, then claims the session in the store.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::state::ContinuationState;
use serde_json::{Map, Value};
use tokio::task::JoinError;
use tokio::time::{Instant, timeout};

use super::command::{Have, Inbound, OpenSession, ResumeRequest};
use super::ending::NotOpened;
use super::inbox::Inbox;
use super::moved::MovedSession;
use super::registry::Ticket;
use super::request::{check_adapters, check_former_adapters, check_prompt};
use super::rollout::command::{PresetName, ProjectSetup, RewriteStyle};
use super::{ClientLimits, Config, Context};
use crate::causes::with_causes;
use crate::init_image::{self, InitImage, InitImageError};
use crate::prompt::{MAX_SYSTEM_PROMPT_BYTES, Prompts};
use crate::store::export::Expectation;
use crate::store::{
    ImportFailed, Lease, ResumeError, ResumeToken, SavedSession, SessionStore, State, StoreError,
    import,
};
use crate::traces::Period;

/// Number of curated prompts that one session may have.
pub(super) const MAX_CURATED_PROMPTS: usize = 256;
/// How long the older connection of a session may take to end when the session is resumed over another one.
const TAKE_OVER: Duration = Duration::from_secs(5);

/// An opening that was checked.
#[derive(Debug)]
pub(super) struct Opening {
    /// The request without image, state and resume, which are the fields below.
    pub(super) request: OpenSession,
    /// The adapters that act on the session's segments.
    pub(super) adapters: Vec<Adapter>,
    pub(super) image: Option<InitImage>,
    /// The time in which the image was read.
    pub(super) image_read: Option<Period>,
    pub(super) state: Option<State>,
    pub(super) resume: Option<Resume>,
    /// What the opening was checked with, and what holds for the session.
    pub(super) config: Arc<Config>,
}

/// The stored session to resume.
#[derive(Debug)]
pub(super) struct Resume {
    pub(super) session: SessionId,
    pub(super) token: ResumeToken,
    /// What the client has of it; without this, nothing is sent again.
    pub(super) have: Option<Have>,
    /// Whether it goes on although it has all the segments that it may have.
    pub(super) extend: bool,
}

/// A session that this connection may run.
#[derive(Debug)]
pub(super) struct Claim {
    /// `None` for a session of which nothing is stored.
    pub(super) record: Option<Record>,
    pub(super) snapshot: SavedSession,
}

/// What the store has of a session.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) lease: Lease,
    pub(super) token: ResumeToken,
}

/// Waits for the opening.
///
/// # Errors
/// See [`NotOpened`].
pub(super) async fn receive(inbox: &mut Inbox, limit: Duration) -> Result<OpenSession, NotOpened> {
    match timeout(limit, inbox.recv()).await {
        Err(_) => Err(NotOpened::Timeout(limit)),
        Ok(None | Some(Inbound::Gone | Inbound::Closed | Inbound::Unlinked | Inbound::Release)) => {
            Err(NotOpened::Gone)
        }
        Ok(Some(Inbound::Violation(violation))) => Err(NotOpened::Violation(violation)),
        Ok(Some(Inbound::RuleBroken(reason))) => Err(invalid(reason)),
        Ok(Some(Inbound::Invalid { reason, .. })) => Err(invalid(reason)),
        Ok(Some(Inbound::Command { .. } | Inbound::Ignored(_))) => {
            Err(invalid("the session is not open yet"))
        }
        Ok(Some(Inbound::Open(request))) => Ok(*request),
    }
}

/// Checks the opening.
///
/// # Errors
/// See [`NotOpened`].
pub(super) async fn check(
    mut request: OpenSession,
    config: Arc<Config>,
    store: &SessionStore,
    prompts: &Prompts,
    offered: &[Adapter],
) -> Result<Opening, NotOpened> {
    if let Some(rollouts) = &request.rollouts {
        check_seed_prompts(&rollouts.setup, &config.limits).map_err(invalid)?;
        let screened = prompts.screen_all(rollouts.setup.seeds()).await;
        screened.map_err(|blocked| NotOpened::Blocked(blocked.to_string()))?;
    }
    let prompts = &request.curated_prompts;
    if prompts.len() > MAX_CURATED_PROMPTS {
        return Err(invalid(format!(
            "`curated_prompts` has {} prompts, at most {MAX_CURATED_PROMPTS} are allowed",
            prompts.len()
        )));
    }
    for prompt in prompts {
        check_prompt("curated_prompts", prompt, &config.limits).map_err(invalid)?;
    }
    let adapters = std::mem::take(&mut request.adapters);
    let adapters = match request.resume {
        Some(_) => check_former_adapters(adapters, offered),
        None => check_adapters(adapters, offered),
    };
    let adapters = adapters.map_err(invalid)?;
    let (image, image_read) = match request.initial_image.take() {
        Some(object) if object.is_empty() => (None, None),
        Some(object) => {
            let began = Instant::now();
            let image = check_image(object, &config).await?;
            (image, Some(Period::since(began)))
        }
        None => (None, None),
    };
    let resume = match request.resume.take() {
        Some(resume) => Some(check_resume(resume, request.state.is_some())?),
        None => None,
    };
    let state = match request.state.take() {
        Some(state) => Some(hydrate(state, &config, store).await?),
        None => None,
    };
    Ok(Opening {
        request,
        adapters,
        image,
        image_read,
        state,
        resume,
        config,
    })
}

/// Checks the prompts that a project begins with.
///
/// # Errors
/// Returns what is wrong; the text is safe to show.
pub(super) fn check_seed_prompts(
    setup: &ProjectSetup,
    limits: &ClientLimits,
) -> Result<(), String> {
    check_preset(&setup.preset)?;
    check_style(&setup.style)?;
    let given = setup.seed_prompts.len();
    if given > MAX_CURATED_PROMPTS {
        return Err(format!(
            "`curated_prompts` has {given} prompts, at most {MAX_CURATED_PROMPTS} are allowed"
        ));
    }
    let prompts = setup.seed_prompts.iter().map(|it| ("curated_prompts", it));
    let first = Some(&setup.rollout_prompt).filter(|prompt| !prompt.is_empty());
    let first = first.map(|it| ("initial_rollout_prompt", it));
    let mut all = prompts.chain(first);
    let checked = all.try_for_each(|(field, prompt)| check_prompt(field, prompt, limits));
    checked.map_err(|invalid| invalid.to_string())
}

/// Checks what a project is called.
///
/// # Errors
/// Returns what is wrong; the text is safe to show.
pub(super) fn check_preset(preset: &PresetName) -> Result<(), String> {
    let id = preset.id.as_deref().unwrap_or_default();
    for (field, name) in [("preset_id", id), ("preset_label", &preset.label)] {
        let given = name.chars().count();
        if given > MAX_NAME_CHARS {
            return Err(format!(
                "`{field}` has {given} characters, at most {MAX_NAME_CHARS} are allowed"
            ));
        }
    }
    Ok(())
}

/// Checks how a language model is to write.
///
/// # Errors
/// Returns what is wrong; the text is safe to show.
pub(super) fn check_style(style: &RewriteStyle) -> Result<(), String> {
    for (field, text) in [
        ("rewrite_window_system_prompt", &style.edit_system_prompt),
        ("rewrite_user_system_prompt", &style.new_system_prompt),
    ] {
        let given = text.as_ref().map_or(0, String::len) as u64;
        if given > MAX_SYSTEM_PROMPT_BYTES {
            return Err(format!(
                "`{field}` has {given} bytes, at most {MAX_SYSTEM_PROMPT_BYTES} are allowed"
            ));
        }
    }
    Ok(())
}

/// The most characters of a name that a client gives.
const MAX_NAME_CHARS: usize = 200;

pub(super) async fn check_image(
    object: Map<String, Value>,
    config: &Config,
) -> Result<Option<InitImage>, NotOpened> {
    let limits = init_image::Limits {
        max_bytes: init_image::MAX_BYTES,
        max_pixels: config.limits.max_image_pixels,
        frame: (config.format.width, config.format.height),
    };
    match init_image::accept(object, limits, config.limits.opening_timeout).await {
        Ok(image) => Ok(image),
        Err(error @ InitImageError::Refused { .. }) => Err(invalid(error)),
        Err(InitImageError::Busy) => Err(NotOpened::Unavailable(
            "the server is busy with the images of other clients; try again soon",
        )),
        Err(InitImageError::Panicked(panic)) => Err(panicked(panic)),
        Err(error @ InitImageError::Keep(_)) => {
            tracing::error!(error = with_causes(&error), "initial image cannot be kept");
            Err(NotOpened::Internal(
                "the server cannot keep the initial image at the moment",
            ))
        }
    }
}

fn check_resume(resume: ResumeRequest, has_state: bool) -> Result<Resume, NotOpened> {
    if has_state {
        return Err(invalid(
            "`resume` and `continuation_state` exclude each other: a session that is resumed has a state",
        ));
    }
    match SessionId::parse(&resume.session_id) {
        Some(session) => Ok(Resume {
            session,
            token: ResumeToken::given(resume.token),
            have: resume.have,
            extend: resume.extend,
        }),
        None => Err(invalid("`resume.session_id` is not the id of a session")),
    }
}

/// Reads the state that the session begins with, and the blobs that it refers to.
async fn hydrate(
    state: ContinuationState,
    config: &Config,
    store: &SessionStore,
) -> Result<State, NotOpened> {
    let expected = Expectation {
        width: config.format.width,
        height: config.format.height,
    };
    match import(state, expected, store).await {
        Ok(state) => Ok(state),
        Err(ImportFailed::Refused(error)) => Err(NotOpened::Refused {
            code: ErrorCode::StateIncompatible,
            message: error.to_string(),
        }),
        // Another try would not bring the blobs back.
        Err(ImportFailed::Store(StoreError::Lost(loss))) => {
            tracing::error!(
                error = with_causes(&loss),
                "blobs of a continuation state are lost"
            );
            Err(incompatible(
                "a blob of the continuation state is lost or damaged".to_owned(),
            ))
        }
        Err(ImportFailed::Store(error)) => {
            tracing::error!(
                error = with_causes(&error),
                "blobs of a continuation state not read"
            );
            Err(NotOpened::Unavailable(
                "the blobs of the continuation state cannot be read at the moment; try again soon",
            ))
        }
        Err(ImportFailed::Panicked(panic)) => Err(panicked(panic)),
    }
}

/// Creates a new session in the store, or takes the lease of the one that the client resumes.
///
/// # Errors
/// See [`NotOpened`].
pub(super) async fn claim(
    ticket: &mut Ticket,
    context: &Context,
    opening: &Opening,
    moved: Option<&MovedSession>,
) -> Result<Claim, NotOpened> {
    match &opening.resume {
        Some(stored) => resume(ticket, context, &opening.config, stored, moved).await,
        None if opening.request.rollouts.is_some() => Ok(Claim {
            snapshot: SavedSession::starting_from(None, &ResumeToken::random())
                .of_tenant(context.store.tenant()),
            record: None,
        }),
        None => create(ticket, context, opening.state.clone()).await,
    }
}

async fn create(
    ticket: &Ticket,
    context: &Context,
    state: Option<State>,
) -> Result<Claim, NotOpened> {
    let token = ResumeToken::random();
    let created = context.store.create(ticket.id(), &token, state.as_ref());
    match created.await {
        Ok(lease) => Ok(Claim {
            snapshot: SavedSession::starting_from(state.as_ref(), &token)
                .of_tenant(context.store.tenant()),
            record: Some(Record { lease, token }),
        }),
        Err(error) => {
            // The store's upkeep logs outages.
            tracing::debug!(error = with_causes(&error), "session not created");
            Err(NotOpened::Unavailable(
                "the server cannot keep the state of a new session at the moment; try again soon",
            ))
        }
    }
}

async fn resume(
    ticket: &mut Ticket,
    context: &Context,
    config: &Config,
    stored: &Resume,
    moved: Option<&MovedSession>,
) -> Result<Claim, NotOpened> {
    let Resume { session, token, .. } = stored;
    let fits = |saved: &SavedSession| match moved {
        Some(moved) => moved.check(saved).map_err(|message| Unfit {
            code: ErrorCode::SessionRejected,
            message,
        }),
        None => check_resumed(saved, stored, config),
    };
    let resumed = context.store.resume(session, token, fits).await;
    let refused = |error| match (not_resumed(session, error), moved) {
        (NotOpened::NoSession(message) | NotOpened::Refused { message, .. }, Some(_)) => {
            NotOpened::CannotGoOn(message)
        }
        // The session waits for its store as it does for a worker.
        (NotOpened::Unavailable(_), Some(_)) => NotOpened::NoPlace,
        (why, _) => why,
    };
    let (lease, mut snapshot) = resumed.map_err(refused)?;
    if stored.extend && is_complete(&snapshot, config) {
        lease.extend();
        snapshot.extensions += 1;
    }
    let alone = ticket.take_over(session.clone());
    if timeout(TAKE_OVER, alone).await.is_err() {
        let message = "the session's last connection has not ended yet; try again soon";
        return Err(match moved {
            Some(_) => NotOpened::NoPlace,
            None => NotOpened::Unavailable(message),
        });
    }
    let token = token.clone();
    Ok(Claim {
        record: Some(Record { lease, token }),
        snapshot,
    })
}

/// Why this server cannot go on with a stored session. The message is safe to show.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Unfit {
    code: ErrorCode,
    message: String,
}

/// Returns whether a session has all the segments that it may have.
fn is_complete(snapshot: &SavedSession, config: &Config) -> bool {
    snapshot.progress.segments >= config.segment_cap(snapshot.extensions)
}

/// Checks whether this server can go on with a stored session. One that is complete is opened for a client that says what
/// it has, too: it gets what it lacks, and then the session ends.
fn check_resumed(snapshot: &SavedSession, stored: &Resume, config: &Config) -> Result<(), Unfit> {
    let is_permitted = match stored.extend {
        true => snapshot.extensions < config.cap_extensions,
        false => stored.have.is_some(),
    };
    if is_complete(snapshot, config) && !is_permitted {
        let segments = snapshot.progress.segments;
        let why = match (stored.extend, config.cap_extensions) {
            (false, 1..) => "`extend` in the opening message continues it".to_owned(),
            (_, 0) => "this server continues no complete session".to_owned(),
            (true, limit) => format!("it was continued {limit} times, which is the limit"),
        };
        let message = format!("the session is complete with {segments} segments; {why}");
        let code = ErrorCode::SessionRejected;
        return Err(Unfit { code, message });
    }
    let format = &config.format;
    match snapshot.state.as_ref().and_then(|s| s.header().frames) {
        Some(frames) if (frames.width, frames.height) != (format.width, format.height) => {
            let message = format!(
                "the session was made with {}x{} pixels, this server makes {}x{}",
                frames.width, frames.height, format.width, format.height
            );
            let code = ErrorCode::StateIncompatible;
            Err(Unfit { code, message })
        }
        _ => Ok(()),
    }
}

fn not_resumed(session: &SessionId, error: ResumeError<Unfit>) -> NotOpened {
    match error {
        missing @ ResumeError::NotFound(_) => NotOpened::NoSession(missing.to_string()),
        ResumeError::Unfit(Unfit { code, message }) => NotOpened::Refused { code, message },
        // Another try would not bring it back.
        ResumeError::Lost(loss) => {
            tracing::error!(error = with_causes(&loss), session_id = %session, "session cannot be resumed any more");
            NotOpened::Refused {
                code: ErrorCode::SessionRejected,
                message: "what the server has stored of the session is lost or damaged".to_owned(),
            }
        }
        ResumeError::Store(newer @ StoreError::Newer(_)) => {
            tracing::warn!(error = with_causes(&newer), session_id = %session, "session not resumed");
            NotOpened::Unavailable("only a newer server can resume the session; try again soon")
        }
        ResumeError::Store(error) => {
            tracing::debug!(error = with_causes(&error), session_id = %session, "session not resumed");
            NotOpened::Unavailable("the session cannot be resumed at the moment; try again soon")
        }
    }
}

fn invalid(why: impl ToString) -> NotOpened {
    NotOpened::Refused {
        code: ErrorCode::InvalidMessage,
        message: why.to_string(),
    }
}

fn incompatible(message: String) -> NotOpened {
    NotOpened::Refused {
        code: ErrorCode::StateIncompatible,
        message,
    }
}

fn panicked(panic: JoinError) -> NotOpened {
    tracing::error!(%panic, "opening could not be checked");
    NotOpened::Internal("the server could not check the opening message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DataLoss;
    use crate::store::ids::BlobId;

    #[test]
    fn only_a_store_that_does_not_answer_is_worth_another_try() {
        let session = SessionId::random();
        let unavailable = || StoreError::Unavailable("no route".into());
        let why = not_resumed(
            &session,
            StoreError::from(DataLoss::MissingBlob(BlobId::of(b"gone"))).into(),
        );
        assert!(
            matches!(
                why,
                NotOpened::Refused {
                    code: ErrorCode::SessionRejected,
                    ..
                }
            ),
            "{why:?}"
        );
        let why = not_resumed(&session, unavailable().into());
        assert!(matches!(why, NotOpened::Unavailable(_)), "{why:?}");
    }
}
