//! The opening message: read, checked whole, with all that came in it.

use fastvideo_proto::ids::SessionId;
use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::stream_v1::{ClientMessage, Resume, SessionInit};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::init_image::{self, InitImage, InitImageError};
use super::request::check_prompt;
use super::{Config, Inbound, close};
use crate::store::export::Expectation;
use crate::store::{ImportFailed, ResumeToken, SessionStore, State, import};

/// Messages above this are read on a thread for blocking work.
const LARGE_MESSAGE_BYTES: usize = 64 * 1024;
/// Curated prompts of one session.
pub(super) const MAX_CURATED_PROMPTS: usize = 256;

/// A session that may begin.
#[derive(Debug)]
pub(super) struct Opening {
    /// Without image, state and resume, which are below.
    pub(super) init: SessionInit,
    pub(super) image: Option<InitImage>,
    pub(super) state: Option<State>,
    /// The session to go on with.
    pub(super) resume: Option<(SessionId, ResumeToken)>,
}

/// Why a session does not begin.
#[derive(Debug)]
pub(super) enum NotOpened {
    Gone,
    Timeout,
    Broken {
        code: u16,
        reason: &'static str,
    },
    Refused {
        code: ErrorCode,
        message: String,
    },
    /// The store does not answer or is full. The text is safe to show.
    Unavailable(&'static str),
}

/// Waits for the opening message and checks it.
pub(super) async fn read(
    inbound: &mut mpsc::Receiver<Inbound>,
    config: &Config,
    store: &SessionStore,
) -> Result<Opening, NotOpened> {
    let text = match timeout(config.opening_timeout, inbound.recv()).await {
        Err(_) => return Err(NotOpened::Timeout),
        Ok(None | Some(Inbound::Gone)) => return Err(NotOpened::Gone),
        Ok(Some(Inbound::Broken { code, reason })) => {
            return Err(NotOpened::Broken { code, reason });
        }
        Ok(Some(Inbound::Binary)) => {
            return Err(refused(
                "the first message must be a session_init_v2, got binary",
            ));
        }
        Ok(Some(Inbound::Text(text))) => text,
    };
    let is_small = text.len() < LARGE_MESSAGE_BYTES;
    let mut opening = match is_small {
        true => check(&text, config)?,
        false => {
            let config = config.clone();
            match tokio::task::spawn_blocking(move || check(&text, &config)).await {
                Ok(opened) => opened?,
                Err(panic) => return Err(broken(&panic)),
            }
        }
    };
    if let Some(state) = opening.init.continuation_state.take() {
        opening.state = Some(hydrate(state, config, store).await?);
    }
    Ok(opening)
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
        Err(ImportFailed::Store(error)) => {
            tracing::error!(%error, "blobs of a continuation state not read");
            Err(NotOpened::Unavailable(
                "the blobs of the continuation state cannot be read at the moment; try again soon",
            ))
        }
        Err(ImportFailed::Panicked(panic)) => Err(broken(&panic)),
    }
}

fn broken(panic: &tokio::task::JoinError) -> NotOpened {
    tracing::error!(%panic, "opening message could not be checked");
    NotOpened::Broken {
        code: close::INTERNAL,
        reason: "internal_error",
    }
}

fn check(text: &str, config: &Config) -> Result<Opening, NotOpened> {
    let mut init = match ClientMessage::parse(text) {
        Ok(ClientMessage::SessionInit(init)) => *init,
        Ok(_) => return Err(refused("the first message must be a session_init_v2")),
        Err(error) => return Err(refused(error)),
    };
    if init.curated_prompts.len() > MAX_CURATED_PROMPTS {
        return Err(refused(format!(
            "`curated_prompts` has {} prompts, at most {MAX_CURATED_PROMPTS} are allowed",
            init.curated_prompts.len()
        )));
    }
    for prompt in &init.curated_prompts {
        check_prompt("curated_prompts", prompt, config).map_err(refused)?;
    }
    let limits = init_image::Limits {
        max_bytes: init_image::MAX_BYTES,
        max_pixels: config.max_image_pixels,
    };
    let image = match init.initial_image.take() {
        Some(object) => init_image::accept(&object, &limits).map_err(|error| match error {
            InitImageError::Refused { .. } => refused(error),
            InitImageError::Keep(error) => {
                tracing::error!(%error, "initial image cannot be kept");
                NotOpened::Refused {
                    code: ErrorCode::InternalError,
                    message: "the server cannot keep the initial image".to_owned(),
                }
            }
        })?,
        None => None,
    };
    let resume = match init.resume.take() {
        Some(resume) => Some(check_resume(resume, init.continuation_state.is_some())?),
        None => None,
    };
    Ok(Opening {
        init,
        image,
        state: None,
        resume,
    })
}

fn check_resume(resume: Resume, has_state: bool) -> Result<(SessionId, ResumeToken), NotOpened> {
    if has_state {
        return Err(refused(
            "`resume` and `continuation_state` exclude each other: a session that is resumed has a state",
        ));
    }
    match SessionId::parse(&resume.session_id) {
        Some(session) => Ok((session, ResumeToken::given(resume.token))),
        None => Err(refused("`resume.session_id` is not the id of a session")),
    }
}

fn refused(why: impl ToString) -> NotOpened {
    NotOpened::Refused {
        code: ErrorCode::InvalidMessage,
        message: why.to_string(),
    }
}
