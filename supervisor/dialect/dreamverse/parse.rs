//! Parses client messages into commands.

use std::time::Duration;

use fastvideo_proto::dreamverse::{
    AppendPrompt, ClientMessage, InitialImage, Opening, Rewrite, SimpleGenerate,
};
use tokio::task::spawn_blocking;

use super::image;
use crate::dialect::Parser;
use crate::session::command::{MessageInfo, OpenSession, Protocol, RolloutOpening};
use crate::session::rollout::command::{
    Clip, GivenImage, PresetName, ProjectSetup, ProjectSwitches, RewriteAsk, RewriteStyle,
    RolloutCommand, UserPrompt,
};
use crate::session::{Inbound, SessionCommand};

/// Messages above this size are parsed on a thread for blocking work.
const LARGE_MESSAGE_BYTES: usize = 64 * 1024;
/// How long a client may take to send its opening; then it is taken to ask for nothing in particular.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);
/// The session log's name for a message that is not a command.
const INVALID: &str = "invalid";
/// And for one of a type that it does not know.
const IGNORED: &str = "ignored";
/// The most characters of a client's name for a prompt.
const MAX_PROMPT_ID: usize = 128;

/// Reads the messages of one client. The first one opens the session, whatever its type is.
#[derive(Debug, Default)]
pub(crate) struct DreamverseParser {
    has_first: bool,
}

impl Parser for DreamverseParser {
    async fn text(&mut self, text: impl AsRef<str> + Send + 'static) -> Inbound {
        let bytes = text.as_ref().len();
        let is_first = !std::mem::replace(&mut self.has_first, true);
        let read = move || match is_first {
            true => first(text.as_ref()),
            false => next(text.as_ref()),
        };
        if bytes < LARGE_MESSAGE_BYTES {
            return read();
        }
        match spawn_blocking(read).await {
            Ok(inbound) => inbound,
            Err(panic) => {
                tracing::error!(%panic, "message could not be parsed");
                invalid(INVALID, bytes, "the message could not be parsed")
            }
        }
    }

    fn binary(&mut self) -> Inbound {
        Inbound::RuleBroken("this server takes no binary messages")
    }

    fn silent_opening(&mut self) -> Option<(Duration, Box<OpenSession>)> {
        let opening = open(Opening::default()).ok()?;
        Some((OPENING_PATIENCE, Box::new(opening)))
    }

    fn opened_silently(&mut self) {
        self.has_first = true;
    }
}

fn first(text: &str) -> Inbound {
    let opening = Opening::parse(text).map_err(|error| error.to_string());
    match opening.and_then(open) {
        Ok(opening) => Inbound::Open(Box::new(opening)),
        Err(reason) => invalid(INVALID, text.len(), reason),
    }
}

/// Reads a message after the opening.
fn next(text: &str) -> Inbound {
    let bytes = text.len();
    let message = match ClientMessage::parse(text) {
        Ok(Some(message)) => message,
        Ok(None) => {
            let kind = IGNORED;
            return Inbound::Ignored(MessageInfo { kind, bytes });
        }
        Err(error) => return invalid(INVALID, bytes, error.to_string()),
    };
    let kind = message.kind();
    match command(message) {
        Ok(command) => Inbound::Command {
            message: MessageInfo { kind, bytes },
            request: None,
            command,
        },
        Err(reason) => invalid(kind, bytes, reason),
    }
}

fn command(message: ClientMessage) -> Result<SessionCommand, String> {
    let command = match message {
        ClientMessage::ProjectInit(mut opening) => {
            let image = given_image(opening.initial_image.take())?;
            RolloutCommand::BeginProject(Box::new(setup(*opening)), image)
        }
        ClientMessage::EndProject => RolloutCommand::EndProject,
        ClientMessage::Rewrite(rewrite) => RolloutCommand::Rewrite(Box::new(ask(*rewrite))),
        ClientMessage::AppendPrompt(AppendPrompt { prompt, prompt_id }) => {
            RolloutCommand::Append(user_prompt(prompt, prompt_id)?)
        }
        ClientMessage::SimpleGenerate(asked) => {
            let SimpleGenerate {
                prompt,
                prompt_id,
                enhancement_enabled,
                preset_id,
                preset_label,
                initial_image,
            } = *asked;
            let clip = Clip {
                prompt: user_prompt(prompt, prompt_id)?,
                enhance: enhancement_enabled.unwrap_or(true),
                preset: preset(preset_id, preset_label),
            };
            RolloutCommand::MakeClip(Box::new(clip), given_image(initial_image)?)
        }
        ClientMessage::SetEnhancement(to) => RolloutCommand::SetEnhancing(to.enabled),
        ClientMessage::SetAutoExtension(to) => RolloutCommand::SetExtending(to.enabled),
        ClientMessage::SetLoopGeneration(to) => RolloutCommand::SetLooping(to.enabled),
        ClientMessage::SetGenerationPaused(to) => RolloutCommand::SetPaused(to.paused),
        ClientMessage::ResetToSeedPrompts => RolloutCommand::Reset,
        ClientMessage::RestartGeneration => RolloutCommand::Restart,
        ClientMessage::SetRewriteModel(to) => {
            RolloutCommand::SetRewriteModel(given(to.rewrite_model))
        }
        ClientMessage::SetRewriteTemperature(to) => {
            RolloutCommand::SetRewriteTemperature(to.rewrite_temperature)
        }
        ClientMessage::Leave => return Ok(SessionCommand::Leave),
    };
    Ok(SessionCommand::Rollout(command))
}

fn given_image(image: Option<InitialImage>) -> Result<Option<GivenImage>, String> {
    let object = image::read(image)?;
    Ok(object.map(|object| GivenImage {
        object,
        ..GivenImage::default()
    }))
}

fn open(mut opening: Opening) -> Result<OpenSession, String> {
    let initial_image: Option<InitialImage> = opening.initial_image.take();
    let initial_image = image::read(initial_image)?;
    let setup = setup(opening);
    Ok(OpenSession {
        protocol: Protocol::Dreamverse,
        preset: setup.preset.id.clone(),
        initial_image,
        single_segment: setup.single_clip,
        rollouts: Some(Box::new(RolloutOpening {
            setup,
            time_limit: None,
        })),
        ..OpenSession::default()
    })
}

/// Returns a project without its image.
fn setup(opening: Opening) -> ProjectSetup {
    let Opening {
        preset_id,
        preset_label,
        curated_prompts,
        segment_prompts: _,
        initial_rollout_prompt,
        initial_image: _,
        single_clip_mode,
        enhancement_enabled,
        auto_extension_enabled,
        loop_generation_enabled,
        rewrite_model,
        rewrite_temperature,
        rewrite_window_system_prompt,
        rewrite_user_system_prompt,
    } = opening;
    ProjectSetup {
        preset: preset(preset_id, preset_label),
        seed_prompts: curated_prompts,
        rollout_prompt: given(initial_rollout_prompt).unwrap_or_default(),
        single_clip: single_clip_mode.unwrap_or(false),
        switches: ProjectSwitches {
            enhancing: enhancement_enabled.unwrap_or(true),
            extending: auto_extension_enabled.unwrap_or(false),
            looping: loop_generation_enabled.unwrap_or(false),
        },
        style: style(
            rewrite_model,
            rewrite_temperature,
            rewrite_window_system_prompt,
            rewrite_user_system_prompt,
        ),
    }
}

fn ask(rewrite: Rewrite) -> RewriteAsk {
    let Rewrite {
        rewrite_instruction,
        prompt_window_prompts,
        rewrite_model,
        rewrite_temperature,
        rewrite_window_system_prompt,
        rewrite_user_system_prompt,
    } = rewrite;
    RewriteAsk {
        instruction: given(rewrite_instruction).unwrap_or_default(),
        window: prompt_window_prompts,
        style: style(
            rewrite_model,
            rewrite_temperature,
            rewrite_window_system_prompt,
            rewrite_user_system_prompt,
        ),
    }
}

fn style(
    model: Option<String>,
    temperature: Option<f64>,
    edit_system_prompt: Option<String>,
    new_system_prompt: Option<String>,
) -> RewriteStyle {
    RewriteStyle {
        model: given(model),
        temperature: temperature.map(|it| it.clamp(0.0, 2.0)),
        edit_system_prompt: given(edit_system_prompt),
        new_system_prompt: given(new_system_prompt),
    }
}

fn preset(id: Option<String>, label: Option<String>) -> PresetName {
    PresetName {
        id: given(id),
        label: given(label).unwrap_or_default(),
    }
}

fn user_prompt(prompt: String, id: Option<String>) -> Result<UserPrompt, String> {
    let id = given(id).unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    match id.chars().count() {
        0..=MAX_PROMPT_ID => Ok(UserPrompt {
            id,
            text: prompt.trim().to_owned(),
        }),
        given => Err(format!(
            "`prompt_id` has {given} characters, at most {MAX_PROMPT_ID} are allowed"
        )),
    }
}

/// Returns a text without blanks around it, unless it is blank.
fn given(text: Option<String>) -> Option<String> {
    let text = text?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn invalid(kind: &'static str, bytes: usize, reason: impl Into<String>) -> Inbound {
    Inbound::Invalid {
        message: MessageInfo { kind, bytes },
        request: None,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_message_opens_whatever_its_type_is() {
        for text in [
            r#"{"type":"session_init_v2","curated_prompts":["a fox"],"rewrite_temperature":7}"#,
            r#"{"type":"leave","segment_prompts":["a fox"]}"#,
        ] {
            let mut parser = DreamverseParser::default();
            let Inbound::Open(opening) = parser.text(text).await else {
                panic!("{text} opens nothing");
            };
            let setup = opening.rollouts.unwrap().setup;
            assert_eq!(setup.seed_prompts, ["a fox"]);
            assert!(setup.switches.enhancing && !setup.switches.looping);
            let second = parser.text(text).await;
            let is_ignored = matches!(second, Inbound::Ignored(_));
            assert_ne!(is_ignored, text.contains("leave"), "{second:?}");
        }
        let mut parser = DreamverseParser::default();
        let first = parser.text("[]").await;
        assert!(matches!(first, Inbound::Invalid { .. }), "{first:?}");
        assert!(matches!(parser.binary(), Inbound::RuleBroken(_)));
    }

    #[tokio::test]
    async fn commands_say_what_is_wrong_with_them() {
        let mut parser = DreamverseParser::default();
        parser.opened_silently();
        for (text, expected) in [
            (r#"{"type":"append_prompt"}"#, None),
            (r#"{"type":"append_prompt","prompt":null}"#, Some("prompt")),
            (
                r#"{"type":"project_init_v1","initial_image":{"data_url":"fox"}}"#,
                Some("not a base64 data URL"),
            ),
        ] {
            match (parser.text(text).await, expected) {
                (Inbound::Command { .. }, None) => {}
                (Inbound::Invalid { reason, .. }, Some(expected)) => {
                    assert!(reason.contains(expected), "{text}: {reason}");
                }
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
        let long = format!(
            r#"{{"type":"append_prompt","prompt":"a","prompt_id":"{}"}}"#,
            "x".repeat(129)
        );
        let read = parser.text(long).await;
        assert!(matches!(read, Inbound::Invalid { .. }), "{read:?}");
    }
}
