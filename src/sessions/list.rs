//! Lists the files of a session log.

use std::fs;
use std::io;
use std::path::Path;

use fastvideo_supervisor_core::session::log::{LogEvent as Event, files};

use super::history::{AttemptOutcome, History};
use super::text::{begun, plain, shortened};

/// The number of characters of the first prompt that are shown.
const PROMPT_CHARS: usize = 48;

/// Prints a line for each session of the folder, the newest last: when it began, how long it took, its finished segments,
/// how it ended, its file and its first prompt. Files that are no session's log are left out.
///
/// # Errors
/// Returns an error when the folder cannot be read.
pub(super) fn print(folder: &Path) -> io::Result<String> {
    let mut sessions: Vec<(f64, String)> = Vec::new();
    // A folder that cannot be read is told.
    fs::read_dir(folder)?;
    for path in files(folder) {
        // A file that vanishes meanwhile was too old.
        let Ok(bytes) = fs::read(&path) else { continue };
        if let Some(history) = History::read(&bytes) {
            sessions.push((history.begun_unix, line(&path, &history)));
        }
    }
    sessions.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let lines: Vec<String> = sessions.into_iter().map(|(_, line)| line).collect();
    Ok(match lines.is_empty() {
        true => format!("no session has a log in {}\n", folder.display()),
        false => lines.concat(),
    })
}

fn line(path: &Path, history: &History) -> String {
    let is_finished = |outcome| matches!(outcome, AttemptOutcome::Finished { .. });
    let attempts = history.attempts.iter();
    let finished = attempts.filter(|attempt| is_finished(attempt.outcome));
    let ended = history.known().find_map(|(_, event)| match event {
        Event::Closed { cause, .. } => Some(plain(cause)),
        Event::VideoEnded { code, .. } => Some(plain(code.as_deref().unwrap_or("completed"))),
        _ => None,
    });
    let prompt = history
        .attempts
        .first()
        .map(|attempt| shortened(&attempt.prompt, PROMPT_CHARS));
    let line = format!(
        "{}  {:>8.1} s  {:>4} segments  {:<10}  {}  {}",
        begun(history),
        history.length,
        finished.count(),
        ended.as_deref().unwrap_or("open"),
        plain(&path.display().to_string()),
        prompt.unwrap_or_default()
    );
    line.trim_end().to_owned() + "\n"
}
