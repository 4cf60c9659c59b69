//! Handles what a client asks of its open session.

use fastvideo_proto::job::ErrorCode;
use tokio::time::Instant;

use super::command::{Inbound, MessageInfo, SegmentRequest, SessionCommand};
use super::ending::EndCause;
use super::event::SessionEvent;
use super::handshake::MAX_CURATED_PROMPTS;
use super::live::LiveSession;
use super::prompt_tasks::MAX_PENDING_REWRITES;
use super::request::{ValidRequest, check_prompt};
use super::snapshots::MAX_PENDING_EXPORTS;
use crate::pool::Placement;

/// Number of alternatives to a prompt that may be asked for at once.
const MAX_ALTERNATIVES: u32 = 10;
/// Number of messages accepted from a client whose window is full. Each may have an answer of a few hundred bytes.
const MAX_MESSAGES_WHILE_FULL: u32 = 1000;

impl LiveSession {
    /// Handles what the client's connection has received; `None` means that the connection is gone.
    pub(super) fn receive(&mut self, inbound: Option<Inbound>) -> Option<EndCause> {
        self.last_activity = Instant::now();
        match inbound {
            None | Some(Inbound::Gone) => Some(EndCause::Gone),
            Some(Inbound::Violation(violation)) => Some(EndCause::Violation(violation)),
            Some(Inbound::RuleBroken(reason)) => {
                self.error(ErrorCode::InvalidMessage, reason, false);
                Some(EndCause::RuleBroken)
            }
            Some(Inbound::Open(_)) => {
                self.invalid("the session is open already");
                None
            }
            Some(Inbound::Invalid { message, reason }) => {
                let end = self.note_message(message);
                if end.is_none() {
                    self.invalid(reason);
                }
                end
            }
            Some(Inbound::Command { message, command }) => {
                let end = self.note_message(message);
                if end.is_some() {
                    end
                } else {
                    self.obey(command)
                }
            }
        }
    }

    /// Counts a message. Ends the session of a client that leaves its window full and keeps sending.
    fn note_message(&mut self, message: MessageInfo) -> Option<EndCause> {
        self.messages_while_full = match self.client_is_full() {
            true => self.messages_while_full + 1,
            false => 0,
        };
        if self.messages_while_full > MAX_MESSAGES_WHILE_FULL {
            return Some(EndCause::SlowClient);
        }
        self.emit(SessionEvent::MessageReceived(message));
        None
    }

    fn obey(&mut self, command: SessionCommand) -> Option<EndCause> {
        match command {
            SessionCommand::RequestSegment(request) => self.request_segment(*request),
            SessionCommand::SetCuratedPrompts(prompts) => self.set_curated(prompts),
            SessionCommand::SetEnhancement(enabled) => self.director.set_enhancing(enabled),
            SessionCommand::SetAutoExtension(enabled) => self.director.set_extending(enabled),
            SessionCommand::SetLooping(enabled) => self.director.set_looping(enabled),
            SessionCommand::SetPaused(paused) => self.director.set_paused(paused),
            SessionCommand::ExportState => self.export_state(),
            SessionCommand::CancelSegment => match &mut self.segment {
                Some(segment) => {
                    if segment.run.cancel() {
                        self.segment_cancelled();
                    }
                }
                None => self.invalid("no segment is running"),
            },
            SessionCommand::RewritePrompt { prompt, count } => self.rewrite(prompt, count),
            SessionCommand::Leave => return Some(EndCause::Left),
        }
        None
    }

    fn request_segment(&mut self, request: SegmentRequest) {
        let request = match ValidRequest::check(request, &self.context.config) {
            Ok(request) => request,
            Err(error) => return self.invalid(error),
        };
        if self.drain_deadline.is_some() {
            let message = "the server is going away and takes no new segments";
            return self.error(ErrorCode::SessionRejected, message, true);
        }
        if self.placement == Placement::NoWorker {
            let message = "no GPU is left to generate the segment; try again in a minute";
            return self.error(ErrorCode::GpuUnavailable, message, true);
        }
        let is_loggable = self.context.prompts.logs_unscreened();
        self.emit(SessionEvent::PromptReceived {
            source: request.source,
            prompt: is_loggable.then(|| request.prompt.clone()),
        });
        let limit = self.context.config.max_waiting_requests;
        if !self.director.add(request, Instant::now(), limit) {
            self.invalid(format!("{limit} requests wait already, which is the limit"));
        }
    }

    fn set_curated(&mut self, prompts: Vec<String>) {
        if prompts.len() > MAX_CURATED_PROMPTS {
            let given = prompts.len();
            return self.invalid(format!(
                "`seed_prompts` has {given} prompts, at most {MAX_CURATED_PROMPTS} are allowed"
            ));
        }
        let config = &self.context.config;
        match prompts
            .iter()
            .try_for_each(|prompt| check_prompt("seed_prompts", prompt, config))
        {
            Ok(()) => self.director.set_curated(prompts),
            Err(error) => self.invalid(error),
        }
    }

    fn rewrite(&mut self, prompt: String, count: u32) {
        if self.context.prompts.enhancer().is_none() {
            // Without an error the client would wait for an answer.
            let message = "rewriting has no effect: this server has no prompt enhancer";
            self.error(ErrorCode::InvalidMessage, message, false);
        } else if let Err(error) = check_prompt("seed_prompt", &prompt, &self.context.config) {
            self.invalid(error);
        } else if !(1..=MAX_ALTERNATIVES).contains(&count) {
            self.invalid(format!(
                "`count` must be from 1 to {MAX_ALTERNATIVES}, got {count}"
            ));
        } else if !self.director.rewrite(prompt, count) {
            self.invalid(format!(
                "{MAX_PENDING_REWRITES} prompts are being rewritten already, which is the limit"
            ));
        }
    }

    fn export_state(&mut self) {
        if !self.exports.has_room() {
            self.invalid(format!(
                "{MAX_PENDING_EXPORTS} snapshots are asked for and not answered yet"
            ));
        } else if self.client_is_full() {
            self.invalid("too much is unread already; read it, then ask for the snapshot again");
        } else if self.state.is_none() {
            let message = "there is no continuation state yet: no segment is finished";
            self.error(ErrorCode::InternalError, message, false);
        } else {
            self.exports.request();
            self.export_next();
        }
    }

    fn invalid(&self, why: impl ToString) {
        self.error(ErrorCode::InvalidMessage, why, true);
    }
}
