//! The opening message: read, checked whole, with all that came in it.

use fastvideo_proto::client::{ClientMessage, ErrorCode, SessionInit};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::init_image::{self, InitImage, InitImageError};
use super::request::check_prompt;
use super::{Config, Inbound, close};
use crate::store::State;
use crate::store::export::{self, Blobs, Expectation};

/// Messages above this are read on a thread for blocking work.
const LARGE_MESSAGE_BYTES: usize = 64 * 1024;
/// Curated prompts of one session.
pub(super) const MAX_CURATED_PROMPTS: usize = 256;

/// A session that may begin.
#[derive(Debug)]
pub(super) struct Opening {
    /// Without image and state, which are below.
    pub(super) init: SessionInit,
    pub(super) image: Option<InitImage>,
    pub(super) state: Option<State>,
}

/// Why a session does not begin.
#[derive(Debug)]
pub(super) enum NotOpened {
    Gone,
    Timeout,
    Broken { code: u16, reason: &'static str },
    Refused { code: ErrorCode, message: String },
}

/// Waits for the opening message and checks it.
pub(super) async fn read(
    inbound: &mut mpsc::Receiver<Inbound>,
    config: &Config,
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
    if text.len() < LARGE_MESSAGE_BYTES {
        return check(&text, config);
    }
    let config = config.clone();
    match tokio::task::spawn_blocking(move || check(&text, &config)).await {
        Ok(opened) => opened,
        Err(panic) => {
            tracing::error!(%panic, "opening message could not be checked");
            Err(NotOpened::Broken {
                code: close::INTERNAL,
                reason: "internal_error",
            })
        }
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
    let expected = Expectation {
        width: config.format.width,
        height: config.format.height,
    };
    let state = match init.continuation_state.take() {
        Some(state) => match export::import(&state, &Blobs::new(), &expected) {
            Ok(state) => Some(state),
            Err(error) => {
                return Err(NotOpened::Refused {
                    code: ErrorCode::StateIncompatible,
                    message: error.to_string(),
                });
            }
        },
        None => None,
    };
    Ok(Opening { init, image, state })
}

fn refused(why: impl ToString) -> NotOpened {
    NotOpened::Refused {
        code: ErrorCode::InvalidMessage,
        message: why.to_string(),
    }
}
