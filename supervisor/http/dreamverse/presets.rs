//! The presets of FastVideo's web UI: stories that its users can choose, which are built in or in the operator's file.
//!
//! The file is read with each request, so that what operators write into it is there at once.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use fastvideo_proto::api::dreamverse::{
    DetailErrorBody, NewPreset, Preset, PresetAppended, PresetList,
};
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

use super::error::DetailError;
use crate::causes::with_causes;
use crate::http::app::{App, AppState};
use crate::ingress::extract::Body;

/// FastVideo's web UI shows no preset that has fewer.
const MIN_PROMPTS: usize = 2;
/// The largest file that is read: a hundred presets take 100 KiB.
const MAX_BYTES: u64 = 16 << 20;
/// The id of a preset whose own id has neither letters nor digits.
const NAMELESS: &str = "custom_editable";

/// The built-in presets.
static BUILT_IN: LazyLock<Vec<Preset>> = LazyLock::new(|| {
    let text = include_str!("presets.json");
    serde_json::from_str(text).expect("the built-in presets are valid, as a test makes sure")
});

/// Lets one request after the other change the file. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct PresetsFile(Arc<Mutex<()>>);

/// Why a file of presets is not usable.
#[derive(Debug, thiserror::Error)]
pub(super) enum PresetsError {
    #[error("{path} cannot be read")]
    Unreadable { path: String, source: io::Error },
    #[error("{path}: {message}")]
    Invalid { path: String, message: String },
}

/// Why a preset was not added.
#[derive(Debug, thiserror::Error)]
enum NotAppended {
    #[error("there is a preset with the id `{0}` already")]
    Taken(String),
    #[error("the file would have more than {MAX_BYTES} bytes")]
    Full,
    #[error(transparent)]
    File(#[from] PresetsError),
    #[error("{path} cannot be written")]
    Unwritable { path: String, source: io::Error },
}

/// A file's presets.
#[derive(Debug)]
struct Presets {
    all: Vec<Preset>,
    /// The same with all that the file has of them.
    raw: Vec<Value>,
}

pub(super) fn routes() -> Router<App> {
    Router::new().route("/curated-presets", get(list))
}

pub(super) fn orders() -> Router<App> {
    Router::new().route("/curated-presets/append", post(append))
}

/// Lists the stories that users of FastVideo's web UI can choose.
#[utoipa::path(get, path = "/curated-presets", responses(
    (status = 200, body = PresetList),
    (status = 500, body = DetailErrorBody, description = "the operator's file cannot be read")
))]
pub(in crate::http) async fn list(State(app): AppState) -> Result<Json<PresetList>, DetailError> {
    let file = app.dreamverse.get().presets_file.clone();
    let file_path = file.as_deref().map(shown);
    let presets = match file {
        None => BUILT_IN.clone(),
        Some(path) => {
            let read = spawn_blocking(move || Presets::read(&path)).await;
            read.map_err(|panicked| DetailError::internal(&panicked))??
                .all
        }
    };
    Ok(Json(PresetList {
        count: presets.len(),
        presets,
        file_path,
        fallback_file_path: None,
    }))
}

/// Adds a story to the operator's file, `streaming.dreamverse.presets_file`.
#[utoipa::path(post, path = "/curated-presets/append", request_body = NewPreset, responses(
    (status = 200, body = PresetAppended),
    (status = 400, body = DetailErrorBody, description = "the body or a field of it is wrong"),
    (status = 403, body = DetailErrorBody, description = "the presets are built in; or CSRF guard: another site's page sent the request"),
    (status = 408, body = DetailErrorBody, description = "the body took too long"),
    (status = 409, body = DetailErrorBody, description = "another preset has the id"),
    (status = 413, body = DetailErrorBody, description = "the body is larger than a message may be"),
    (status = 500, body = DetailErrorBody, description = "the file cannot be read or written"),
    (status = 503, body = DetailErrorBody, description = "too much is being received")
))]
pub(in crate::http) async fn append(
    State(app): AppState,
    Body { bytes, share }: Body,
) -> Result<Json<PresetAppended>, DetailError> {
    let Some(path) = app.dreamverse.get().presets_file.clone() else {
        let message = "the presets are built in; `streaming.dreamverse.presets_file` names a file to which they can be added";
        return Err(DetailError::new(StatusCode::FORBIDDEN, message));
    };
    let preset = new_preset(&bytes);
    let preset = preset.map_err(|why| DetailError::new(StatusCode::BAD_REQUEST, why))?;
    drop((bytes, share));
    let file_path = shown(&path);
    let (file, added) = (app.presets_file, preset.clone());
    let appended = spawn_blocking(move || file.append(&path, added)).await;
    let count = appended.map_err(|panicked| DetailError::internal(&panicked))??;
    tracing::info!(id = preset.id, "an operator's order: preset added");
    Ok(Json(PresetAppended {
        kind: "curated_preset_appended".into(),
        preset,
        count,
        file_path,
        fallback_file_path: None,
    }))
}

/// Makes sure that a file has presets.
///
/// # Errors
/// See [`PresetsError`].
pub(super) fn check(path: &Path) -> Result<(), PresetsError> {
    Presets::read(path).map(drop)
}

impl From<PresetsError> for DetailError {
    fn from(error: PresetsError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, with_causes(&error))
    }
}

impl From<NotAppended> for DetailError {
    fn from(why: NotAppended) -> Self {
        let status = match why {
            NotAppended::Taken(_) => StatusCode::CONFLICT,
            NotAppended::Full => StatusCode::PAYLOAD_TOO_LARGE,
            NotAppended::File(_) | NotAppended::Unwritable { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, with_causes(&why))
    }
}

impl Presets {
    fn read(path: &Path) -> Result<Self, PresetsError> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| {
            let read = file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
            match read as u64 > MAX_BYTES {
                true => Err(io::Error::other(format!(
                    "it has more than {MAX_BYTES} bytes"
                ))),
                false => Ok(()),
            }
        });
        read.map_err(|source| PresetsError::Unreadable {
            path: shown(path),
            source,
        })?;
        Self::parse(&text).map_err(|message| PresetsError::Invalid {
            path: shown(path),
            message,
        })
    }

    /// # Errors
    /// Returns what is wrong with which preset.
    fn parse(text: &str) -> Result<Self, String> {
        let raw: Vec<Value> = serde_json::from_str(text)
            .map_err(|error| format!("it must be a JSON list of presets: {error}"))?;
        let mut all: Vec<Preset> = Vec::new();
        for (index, value) in raw.iter().enumerate() {
            let wrong = |why: String| format!("preset {}: {why}", index + 1);
            if !value.is_object() {
                return Err(wrong("it is no object".to_owned()));
            }
            let preset: Preset = serde_path_to_error::deserialize(value)
                .map_err(|error| wrong(format!("`{}`: {}", error.path(), error.inner())))?;
            check_texts(&preset).map_err(wrong)?;
            if all.iter().any(|other| is_same(&other.id, &preset.id)) {
                return Err(wrong(format!(
                    "`{}` is the id of an earlier one, too",
                    preset.id
                )));
            }
            all.push(preset);
        }
        Ok(Self { all, raw })
    }
}

impl PresetsFile {
    /// Adds a preset to a file, which is replaced as a whole. Returns how many it has then. Blocks.
    fn append(&self, path: &Path, preset: Preset) -> Result<usize, NotAppended> {
        let _alone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Presets { all, mut raw } = Presets::read(path)?;
        if all.iter().any(|other| is_same(&other.id, &preset.id)) {
            return Err(NotAppended::Taken(preset.id));
        }
        raw.push(json!(preset));
        let count = raw.len();
        let text = format!("{:#}\n", Value::Array(raw));
        if text.len() as u64 > MAX_BYTES {
            return Err(NotAppended::Full);
        }
        let written = write(path, &text);
        written.map_err(|source| NotAppended::Unwritable {
            path: shown(path),
            source,
        })?;
        Ok(count)
    }
}

/// Replaces a file, or what it is a link to, at once. Its mode stays.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    let mode = fs::metadata(&path)?.permissions();
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

/// Reads what is to be added.
///
/// # Errors
/// Returns what is wrong with which field.
fn new_preset(body: &[u8]) -> Result<Preset, String> {
    // Only an object, since a list of the fields' values would be taken too.
    let fields: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| format!("the body is no preset in JSON: {error}"))?;
    let new: NewPreset = serde_path_to_error::deserialize(Value::Object(fields))
        .map_err(|error| format!("`{}`: {}", error.path(), error.inner()))?;
    let prompts = new.segment_prompts.iter().map(|prompt| prompt.trim());
    let preset = Preset {
        id: reduced(&new.id),
        label: new.label.trim().to_owned(),
        description: String::new(),
        segment_prompts: prompts
            .filter(|prompt| !prompt.is_empty())
            .map(str::to_owned)
            .collect(),
    };
    check_texts(&preset)?;
    Ok(preset)
}

fn check_texts(preset: &Preset) -> Result<(), String> {
    if preset.id.trim().is_empty() {
        return Err("`id` must not be blank".to_owned());
    }
    if preset.label.trim().is_empty() {
        return Err("`label` must not be blank".to_owned());
    }
    let prompts = preset.segment_prompts.iter();
    match prompts.filter(|prompt| !prompt.trim().is_empty()).count() {
        0..MIN_PROMPTS => Err(format!(
            "`segment_prompts` must have at least {MIN_PROMPTS} prompts that are not blank"
        )),
        _ => Ok(()),
    }
}

/// Returns an id of small letters, digits and single underscores.
fn reduced(id: &str) -> String {
    let id = id.to_lowercase();
    let words = id.split(|c: char| !matches!(c, 'a'..='z' | '0'..='9'));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    match words.is_empty() {
        true => NAMELESS.to_owned(),
        false => words.join("_"),
    }
}

fn is_same(id: &str, other: &str) -> bool {
    id.trim().eq_ignore_ascii_case(other.trim())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_presets_are_three_stories_of_six_prompts() {
        let presets = Presets::parse(include_str!("presets.json")).unwrap();
        assert_eq!(presets.all.len(), 3);
        for preset in BUILT_IN.iter() {
            assert_eq!(preset.segment_prompts.len(), 6, "{}", preset.id);
            assert_eq!(reduced(&preset.id), preset.id);
            assert!(!preset.description.is_empty());
            for prompt in &preset.segment_prompts {
                assert!((200..900).contains(&prompt.len()), "{prompt}");
            }
        }
    }

    #[test]
    fn an_id_is_reduced_to_letters_digits_and_underscores() {
        for (id, expected) in [
            ("fox", "fox"),
            (" The Fox -- 2! ", "the_fox_2"),
            ("a__b", "a_b"),
            ("Füchse", "f_chse"),
            ("é", NAMELESS),
            ("", NAMELESS),
        ] {
            assert_eq!(reduced(id), expected, "{id:?}");
        }
    }

    #[test]
    fn what_is_no_file_of_presets_is_refused_with_the_place() {
        let check = |text: &str, words: &str| {
            let message = Presets::parse(text).unwrap_err();
            assert!(message.contains(words), "{words} in {message}");
        };
        check("", "JSON list");
        check("{}", "JSON list");
        check("[1]", "preset 1");
        check(
            r#"[{"id": "a", "label": "A", "segment_prompts": ["x", 1]}]"#,
            "`segment_prompts[1]`",
        );
        check(r#"[{"id": "a", "label": "A"}]"#, "segment_prompts");
        check(
            r#"[{"id": " ", "label": "A", "segment_prompts": ["x", "y"]}]"#,
            "`id`",
        );
        check(
            r#"[{"id": "a", "label": "", "segment_prompts": ["x", "y"]}]"#,
            "`label`",
        );
        check(
            r#"[{"id": "a", "label": "A", "segment_prompts": ["x", " "]}]"#,
            "at least 2",
        );
        let twice = r#"[{"id": "a", "label": "A", "segment_prompts": ["x", "y"]},
            {"id": "A", "label": "B", "segment_prompts": ["x", "y"]}]"#;
        check(twice, "preset 2: `A` is the id of an earlier one");
        assert!(Presets::parse("[]").unwrap().all.is_empty());
    }

    #[test]
    fn a_preset_is_added_and_what_the_file_has_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presets.json");
        let first =
            json!([{"id": "a", "label": "A", "segment_prompts": ["x", "y"], "mood": "dark"}]);
        fs::write(&path, first.to_string()).unwrap();
        let link = folder.path().join("link.json");
        std::os::unix::fs::symlink("presets.json", &link).unwrap();
        let body =
            r#"{"id": "B!", "label": " Bee ", "segment_prompts": [" one ", "", "two"], "more": 1}"#;
        let preset = new_preset(body.as_bytes()).unwrap();
        let file = PresetsFile::default();
        assert_eq!(file.append(&link, preset.clone()).unwrap(), 2);
        let text = fs::read_to_string(&path).unwrap();
        let added = json!({"id": "b", "label": "Bee", "description": "", "segment_prompts": ["one", "two"]});
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written, json!([first[0], added]));
        assert!(link.is_symlink());
        assert!(matches!(file.append(&path, preset), Err(NotAppended::Taken(id)) if id == "b"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
