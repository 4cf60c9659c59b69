//! Handles what a client asks of its open session.

use fastvideo_proto::ids::RequestId;
use fastvideo_proto::job::ErrorCode;
use tokio::time::Instant;

use super::command::{
    Inbound, MessageInfo, RequestEdit, RewriteRequest, SegmentRequest, SessionCommand,
};
use super::ending::EndCause;
use super::event::SessionEvent;
use super::handshake::MAX_CURATED_PROMPTS;
use super::live::LiveSession;
use super::prompt_tasks::MAX_PENDING_REWRITES;
use super::request::{ValidRequest, check_prompt};
use super::request_director::RequestDirector;
use super::snapshots::MAX_PENDING_EXPORTS;
use crate::pool::Placement;

/// Number of alternatives to a prompt that may be asked for at once.
const MAX_ALTERNATIVES: u32 = 10;
/// Number of messages accepted from a client whose window is full. Each may have an answer of a few hundred bytes.
const MAX_MESSAGES_WHILE_FULL: u32 = 1000;

/// Answers a message that names a request which is not in the queue.
const NOT_WAITING: &str = "no request with this `request_id` waits";

impl LiveSession {
    /// Handles what the client's connection has received; `None` means that the connection is gone.
    pub(super) fn receive(&mut self, inbound: Option<Inbound>) -> Option<EndCause> {
        let is_report = matches!(
            &inbound,
            Some(Inbound::Command {
                command: SessionCommand::ReportPlayback(_)
                    | SessionCommand::AcknowledgeMedia { .. },
                ..
            })
        );
        if !is_report {
            self.last_activity = Instant::now();
        }
        if let (Some(link), Some(Inbound::Command { .. } | Inbound::Invalid { .. })) =
            (&mut self.link, &inbound)
        {
            link.dealt_with_message();
        }
        match inbound {
            Some(Inbound::Release) => {
                if let Some(link) = &mut self.link {
                    link.release();
                }
                None
            }
            Some(Inbound::Unlinked) => Some(EndCause::Unlinked),
            None | Some(Inbound::Gone) => Some(EndCause::Gone),
            Some(Inbound::Closed) => Some(EndCause::Closed),
            Some(Inbound::Violation(violation)) => Some(EndCause::Violation(violation)),
            Some(Inbound::RuleBroken(reason)) => {
                self.refuse(None, reason);
                Some(EndCause::RuleBroken)
            }
            Some(Inbound::Open(_)) => {
                self.refuse(None, "the session is open already");
                None
            }
            Some(Inbound::Ignored(message)) => self.note_message(message),
            Some(Inbound::Invalid {
                message,
                request,
                reason,
            }) => {
                let end = self.note_message(message);
                if end.is_none() {
                    self.refuse(request, reason);
                }
                end
            }
            Some(Inbound::Command {
                message,
                request,
                command,
            }) => {
                let end = self.note_message(message);
                if end.is_some() {
                    end
                } else {
                    self.obey(request, command)
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

    fn obey(&mut self, id: Option<RequestId>, command: SessionCommand) -> Option<EndCause> {
        match command {
            SessionCommand::RequestSegment(request) => self.request_segment(id, *request),
            SessionCommand::SetCuratedPrompts(prompts) => self.set_curated(id, prompts),
            SessionCommand::SetEnhancement(enabled) => self.direct(|it| it.set_enhancing(enabled)),
            SessionCommand::SetAutoExtension(enabled) => {
                self.direct(|it| it.set_extending(enabled));
            }
            SessionCommand::SetLooping(enabled) => self.direct(|it| it.set_looping(enabled)),
            SessionCommand::SetPaused(paused) => self.direct(|it| it.set_paused(paused)),
            SessionCommand::ExportState => self.export_state(id),
            SessionCommand::CancelSegment => match &mut self.segment {
                Some(segment) => {
                    if segment.run.cancel() {
                        self.segment_cancelled();
                    }
                }
                None => self.refuse_for_now(id, "no segment is running"),
            },
            SessionCommand::WithdrawRequest => self.withdraw_request(id),
            SessionCommand::EditRequest(edit) => self.edit_request(id, edit),
            SessionCommand::RewritePrompt(rewrite) => self.rewrite(id, rewrite),
            SessionCommand::ReportPlayback(report) => {
                self.look_at_viewer();
                self.playback.reported(report, Instant::now());
                self.show_playback();
            }
            SessionCommand::AcknowledgeMedia {
                segment_idx,
                messages,
            } => {
                if let Some(record) = &self.record {
                    record.lease.acknowledge(segment_idx, messages);
                }
            }
            SessionCommand::RenewWatchToken => self.renew_watch_token(id),
            SessionCommand::Rollout(command) => self.obey_rollout(command),
            SessionCommand::Leave => return Some(EndCause::Left),
        }
        None
    }

    /// Changes what comes of the client's requests. Clients of rollouts have other commands.
    fn direct(&mut self, change: impl FnOnce(&mut RequestDirector)) {
        if let Some(director) = self.director.requests_mut() {
            change(director);
        }
    }

    fn request_segment(&mut self, id: Option<RequestId>, request: SegmentRequest) {
        let offered = self.context.pool.offered_adapters();
        let checked = ValidRequest::check(request, &self.config, &self.limits(), &offered);
        let request = match checked {
            Ok(request) => request,
            Err(error) => return self.refuse(id, error),
        };
        if self.drain_deadline.is_some() {
            let message = "the server is going away and takes no new segments";
            return self.error(id, ErrorCode::SessionRejected, message, true);
        }
        if self.placement == Placement::NoWorker {
            let message = "no GPU is left to generate the segment; try again in a minute";
            return self.error(id, ErrorCode::GpuUnavailable, message, true);
        }
        if let Err(retry_after) = self.grant.count_request() {
            return self.emit(SessionEvent::RateLimited {
                request: id,
                retry_after,
            });
        }
        let is_loggable = self.context.prompts.logs_unscreened();
        self.emit(SessionEvent::PromptReceived {
            source: request.source,
            prompt: is_loggable.then(|| request.prompt.clone()),
        });
        let limit = self.limits().max_waiting_requests;
        let Some(director) = self.director.requests_mut() else {
            return;
        };
        let added = director.add(id.clone(), request, Instant::now(), limit);
        if let Err(error) = added {
            self.refuse_for_now(id, error);
        }
    }

    fn withdraw_request(&mut self, id: Option<RequestId>) {
        let director = self.director.requests_mut();
        let withdrawn = id
            .as_ref()
            .zip(director)
            .and_then(|(id, it)| it.withdraw(id));
        match (id, withdrawn) {
            (Some(request), Some(source)) => {
                self.emit(SessionEvent::RequestWithdrawn { request, source });
            }
            (id, _) => self.refuse(id, NOT_WAITING),
        }
    }

    fn edit_request(&mut self, id: Option<RequestId>, edit: RequestEdit) {
        if edit == RequestEdit::default() {
            return self.refuse(id, "`prompt` and `position` are both missing");
        }
        if let Some(prompt) = &edit.prompt
            && let Err(error) = check_prompt("prompt", prompt, &self.limits())
        {
            return self.refuse(id, error);
        }
        let director = self.director.requests_mut();
        let place = id
            .as_ref()
            .zip(director)
            .and_then(|(id, it)| it.edit(id, edit));
        match (id, place) {
            (Some(request), Some(position)) => {
                self.emit(SessionEvent::RequestEdited { request, position });
            }
            (id, _) => self.refuse(id, NOT_WAITING),
        }
    }

    fn set_curated(&mut self, id: Option<RequestId>, prompts: Vec<String>) {
        if prompts.len() > MAX_CURATED_PROMPTS {
            let given = prompts.len();
            return self.refuse(
                id,
                format!(
                    "`seed_prompts` has {given} prompts, at most {MAX_CURATED_PROMPTS} are allowed"
                ),
            );
        }
        let limits = self.limits();
        match prompts
            .iter()
            .try_for_each(|prompt| check_prompt("seed_prompts", prompt, &limits))
        {
            Ok(()) => self.direct(|it| it.set_curated(prompts)),
            Err(error) => self.refuse(id, error),
        }
    }

    fn rewrite(&mut self, id: Option<RequestId>, rewrite: RewriteRequest) {
        let RewriteRequest { prompt, count } = rewrite;
        if self.context.prompts.enhancer().is_none() {
            // Without an error the client would wait for an answer.
            let message = "rewriting has no effect: this server has no prompt enhancer";
            self.refuse(id, message);
        } else if let Err(error) = check_prompt("seed_prompt", &prompt, &self.limits()) {
            self.refuse(id, error);
        } else if !(1..=MAX_ALTERNATIVES).contains(&count) {
            self.refuse(
                id,
                format!("`count` must be from 1 to {MAX_ALTERNATIVES}, got {count}"),
            );
        } else if let Some(director) = self.director.requests_mut()
            && !director.rewrite(id.clone(), prompt, count)
        {
            self.refuse_for_now(
                id,
                format!(
                    "{MAX_PENDING_REWRITES} prompts are being rewritten already, which is the limit"
                ),
            );
        }
    }

    fn renew_watch_token(&mut self, request: Option<RequestId>) {
        if !self.config.watch {
            return self.refuse(request, "nobody may watch sessions of this server");
        }
        let Some(record) = &self.record else {
            return;
        };
        let token = record.lease.renew_watch_token(&record.token);
        self.broadcaster.token_renewed();
        self.emit(SessionEvent::WatchTokenRenewed { request, token });
        self.save();
    }

    fn export_state(&mut self, id: Option<RequestId>) {
        if !self.exports.has_room() {
            self.refuse_for_now(
                id,
                format!("{MAX_PENDING_EXPORTS} snapshots are asked for and not answered yet"),
            );
        } else if self.client_is_full() {
            let message = "too much is unread already; read it, then ask for the snapshot again";
            self.refuse_for_now(id, message);
        } else if self.state.is_none() {
            let message = "there is no continuation state yet: no segment is finished";
            self.error(id, ErrorCode::InternalError, message, false);
        } else {
            self.exports.request(id);
            self.export_next();
        }
    }

    /// Refuses a message that would be refused again.
    pub(super) fn refuse(&self, id: Option<RequestId>, why: impl ToString) {
        self.error(id, ErrorCode::InvalidMessage, why, false);
    }

    /// Refuses a message that may succeed later.
    fn refuse_for_now(&self, id: Option<RequestId>, why: impl ToString) {
        self.error(id, ErrorCode::InvalidMessage, why, true);
    }
}
