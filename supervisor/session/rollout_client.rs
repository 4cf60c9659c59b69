//! Handles what a client asks of its open session that makes rollouts.

use fastvideo_proto::job::ErrorCode;
use tokio::task::JoinSet;

use super::ending::NotOpened;
use super::event::SessionEvent;
use super::handshake::{check_image, check_preset, check_seed_prompts, check_style};
use super::live::LiveSession;
use super::playback::Playback;
use super::request::check_prompt;
use super::rollout::Said;
use super::rollout::command::{GivenImage, RolloutCommand};
use super::rollout_director::RolloutDirector;
use crate::init_image::InitImage;

/// A client's image that is being checked for a command.
#[derive(Debug)]
pub(super) struct ImageCheck {
    check: JoinSet<Result<Option<InitImage>, NotOpened>>,
    command: RolloutCommand,
}

impl ImageCheck {
    /// Waits until the image is checked.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn ended(&mut self) -> Result<Option<InitImage>, NotOpened> {
        const LOST: NotOpened = NotOpened::Internal("the server could not check the image");
        match self.check.join_next().await {
            Some(Ok(checked)) => checked,
            Some(Err(panic)) => {
                tracing::error!(%panic, "image could not be checked");
                Err(LOST)
            }
            None => Err(LOST),
        }
    }
}

impl LiveSession {
    pub(super) fn obey_rollout(&mut self, mut command: RolloutCommand) {
        if let Err(why) = self.check_rollout(&command) {
            return self.refuse(None, why);
        }
        if self.drain_deadline.is_some() {
            let message = "the server is going away and makes nothing new";
            return self.error(None, ErrorCode::SessionRejected, message, true);
        }
        if is_work(&command)
            && let Err(retry_after) = self.grant.count_request()
        {
            let request = None;
            return self.emit(SessionEvent::RateLimited {
                request,
                retry_after,
            });
        }
        match take_image(&mut command) {
            Some(image) => self.check_image_of(command, image),
            None => self.obey_checked(command, None),
        }
    }

    fn obey_checked(&mut self, command: RolloutCommand, image: Option<InitImage>) {
        let limit = self.limits().max_waiting_requests;
        if let Some(director) = self.director.rollouts_mut() {
            director.obey(command, image, limit);
        }
        self.do_said();
    }

    /// Checks the prompts of a command.
    fn check_rollout(&self, command: &RolloutCommand) -> Result<(), String> {
        let limits = self.limits();
        let check = |field, prompt: &str| {
            check_prompt(field, prompt, &limits).map_err(|invalid| invalid.to_string())
        };
        match command {
            RolloutCommand::BeginProject(setup, _) => check_seed_prompts(setup, &limits),
            RolloutCommand::Append(prompt) => check("prompt", &prompt.text),
            RolloutCommand::MakeClip(clip, _) => {
                check_preset(&clip.preset)?;
                check("prompt", &clip.prompt.text)
            }
            RolloutCommand::Rewrite(ask) => {
                check_style(&ask.style)?;
                if !ask.instruction.is_empty() {
                    check("rewrite_instruction", &ask.instruction)?;
                }
                let window = ask.window.iter().filter(|it| !it.trim().is_empty());
                window
                    .clone()
                    .try_for_each(|it| check("prompt_window_prompts", it))?;
                match window.count() {
                    0..=MAX_WINDOW => Ok(()),
                    given => Err(format!(
                        "`prompt_window_prompts` has {given} prompts, at most {MAX_WINDOW} are allowed"
                    )),
                }
            }
            _ => Ok(()),
        }
    }

    fn check_image_of(&mut self, command: RolloutCommand, image: GivenImage) {
        let config = self.config.clone();
        let mut check = JoinSet::new();
        check.spawn(async move {
            let GivenImage { object, share } = image;
            let checked = check_image(object, &config).await;
            drop(share);
            checked
        });
        self.image_check = Some(Box::new(ImageCheck { check, command }));
    }

    /// Obeys the command that has waited for its image.
    pub(super) fn image_checked(&mut self, checked: Result<Option<InitImage>, NotOpened>) {
        let Some(check) = self.image_check.take() else {
            return;
        };
        match checked {
            Ok(image) => self.obey_checked(check.command, image),
            Err(NotOpened::Refused { message, .. }) => self.refuse(None, message),
            Err(NotOpened::Unavailable(why) | NotOpened::Internal(why)) => {
                self.error(None, ErrorCode::InternalError, why, true);
            }
            Err(why) => tracing::error!(?why, "an image was refused for an unknown reason"),
        }
    }

    /// Does what the director has said.
    pub(super) fn do_said(&mut self) {
        while let Some(said) = self.director.take_said() {
            match said {
                Said::Tell(event) => self.emit(SessionEvent::Rollout(Box::new(event))),
                Said::BeginAnew => self.begin_anew(),
            }
        }
    }

    /// Cancels the current segment if nobody wants it any more, and the client has nothing of it or would have to wait for a
    /// worker for the rest.
    pub(super) fn cancel_in_vain(&mut self) {
        if let Some(segment) = &mut self.segment
            && (segment.kept == 0 || segment.run.waits_for_worker())
            && !segment.run.is_cancelled()
            && self.director.is_running_in_vain()
            && segment.run.cancel()
        {
            self.segment_cancelled();
        }
    }

    /// Returns whether the current segment was cancelled since nobody wants it: what comes of it nevertheless is not for the client.
    pub(super) fn is_unwanted(&self) -> bool {
        let segment = self.segment.as_ref();
        segment.is_some_and(|segment| segment.kept == 0 && segment.run.is_cancelled())
            && self.director.is_running_in_vain()
    }

    /// Forgets what the session has made: its next segment is the first one, on the same worker.
    fn begin_anew(&mut self) {
        if self.state.take().is_some() {
            self.binding.forget_state();
        }
        if let Some(image) =
            (self.director.rollouts_mut()).and_then(RolloutDirector::take_next_image)
        {
            self.image = image;
        }
        self.start_frame = 0;
        self.playback = Playback::default();
        self.show_playback();
        let session = self.ticket.id().clone();
        self.broadcaster = (self.context.broadcasts).begin(session, 0, self.media_mode);
    }
}

/// Number of prompts that may be rewritten at once.
const MAX_WINDOW: usize = 256;

/// Returns whether a command makes the server work.
fn is_work(command: &RolloutCommand) -> bool {
    matches!(
        command,
        RolloutCommand::BeginProject(..)
            | RolloutCommand::Rewrite(_)
            | RolloutCommand::Append(_)
            | RolloutCommand::MakeClip(..)
    )
}

/// Takes the image out of a command.
fn take_image(command: &mut RolloutCommand) -> Option<GivenImage> {
    match command {
        RolloutCommand::BeginProject(_, image) | RolloutCommand::MakeClip(_, image) => image.take(),
        _ => None,
    }
}
