//! The filter of the log: a level, or directives as in `RUST_LOG`.
//!
//! The library that filters takes an unknown word for the name of a crate, so a misspelt level would silence the whole
//! log. Here it is an error.

use std::fmt;
use std::str::FromStr;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{Directive, EnvFilter, FilterFn, LevelFilter, ParseError};

/// The filter without configuration: state changes, warnings and errors.
const DEFAULT: &str = "info";

/// Who has given which order is always told.
const AUDIT: &str = "audit=info";

/// What a filter must be, for messages.
pub(super) const EXPECTED: &str = "a level (off, error, warn, info, debug or trace), or directives such as `info,fastvideo_supervisor_core=debug`";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The beginning of the names of this program's own crates.
const OWN: &str = "fastvideo";

/// Crates that log, besides our own, as far as their names do not show that they are names of crates.
const LIBRARIES: [&str; 12] = [
    "axum",
    "hyper",
    "log",
    "mio",
    "redb",
    "redis",
    "reqwest",
    "rustls",
    "tokio",
    "tracing",
    "tungstenite",
    "ureq",
];

/// The lowest similarity (0 to 1) of a level that may have been meant.
const MIN_LIKENESS: f64 = 0.5;

/// Whether a line is not held back.
pub(super) type ShownLines = Box<dyn Fn(&Metadata<'_>) -> bool + Send + Sync>;

/// A checked filter.
#[derive(Debug)]
pub(super) struct Filter {
    directives: EnvFilter,
    /// The targets that the operator has named.
    named: Vec<String>,
}

/// Why a text is no filter.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error("it has no directive")]
    Empty,
    #[error("`{word}` is neither a level nor a crate of this program{}", Suggestion(*.meant))]
    Unknown {
        word: String,
        meant: Option<&'static str>,
    },
    #[error(
        "it names neither a level nor a crate of this program, so that nothing would be logged"
    )]
    Silent,
    #[error("{0}")]
    Syntax(#[from] ParseError),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut named = Vec::new();
        let mut logs = false;
        let directives = text.split(',').map(str::trim);
        let directives = directives.filter(|directive| !directive.is_empty());
        let directives: Vec<&str> = directives.collect();
        for directive in &directives {
            match directive.split_once(['=', '[']) {
                None if directive.parse::<LevelFilter>().is_ok() => logs = true,
                None if !is_crate(directive) => {
                    return Err(FilterError::Unknown {
                        word: (*directive).to_owned(),
                        meant: level_like(directive),
                    });
                }
                None => {
                    logs |= is_ours(directive);
                    named.push((*directive).to_owned());
                }
                // A span or a field instead of a target.
                Some(("", _)) => logs = true,
                Some((target, _)) => {
                    logs |= is_ours(target);
                    named.push(target.to_owned());
                }
            }
        }
        if directives.is_empty() {
            return Err(FilterError::Empty);
        }
        // Without the blanks, which the library miscounts.
        let directives = EnvFilter::try_new(directives.join(","))?;
        let directives = directives.add_directive(audit());
        match logs {
            true => Ok(Self { directives, named }),
            false => Err(FilterError::Silent),
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            directives: EnvFilter::new(DEFAULT).add_directive(audit()),
            named: Vec::new(),
        }
    }
}

impl Filter {
    /// Returns the filter as two layers. The second one holds back what libraries log at level TRACE unless the
    /// operator has named the library: those lines have whole messages in them, with prompts and resume tokens.
    pub(super) fn into_layers(self) -> (EnvFilter, FilterFn<ShownLines>) {
        let named = self.named;
        let is_shown = move |line: &Metadata<'_>| {
            *line.level() < Level::TRACE
                || line.target().starts_with(OWN)
                || named.iter().any(|name| line.target().starts_with(name))
        };
        (self.directives, FilterFn::new(Box::new(is_shown)))
    }
}

/// Returns the directive by which no filter holds back who has given which order.
fn audit() -> Directive {
    AUDIT.parse().expect("the directive is well formed")
}

/// Returns whether a word may be the name of a crate or of a module.
fn is_crate(word: &str) -> bool {
    word.contains("::") || word.contains('_') || word == OWN || LIBRARIES.contains(&word)
}

/// Returns whether lines of this program itself may have this target, which is compared as a prefix.
fn is_ours(target: &str) -> bool {
    const CRATES: [&str; 2] = ["fastvideo_supervisor_core", "fastvideo_worker"];
    CRATES
        .iter()
        .any(|name| name.starts_with(target) || target.starts_with(name))
}

fn level_like(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    let likeness = |level: &&str| strsim::normalized_damerau_levenshtein(level, &word);
    let best = (LEVELS.into_iter()).max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) >= MIN_LIKENESS).then_some(best)
}

struct Suggestion(Option<&'static str>);

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .map_or(Ok(()), |level| write!(f, "; did you mean `{level}`?"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_and_directives() {
        for good in [
            "off",
            "error",
            "WARN",
            "info",
            "trace",
            "5",
            "info,hyper=trace",
            "info, fastvideo_supervisor_core::pool=debug",
            "fastvideo=debug",
            "fastvideo_supervisor_core",
            "info,hyper",
            "warn,some_other_program=debug",
            "warn,[session]=trace",
            "[session]",
        ] {
            assert!(good.parse::<Filter>().is_ok(), "{good}");
        }
    }

    #[test]
    fn a_word_that_would_silence_the_log_is_refused() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check(
            "inof",
            "`inof` is neither a level nor a crate of this program; did you mean `info`?",
        );
        check("warning", "did you mean `warn`?");
        check("DEBGU", "did you mean `debug`?");
        check("verbose", "`verbose` is neither");
        check("info debug", "`info debug` is neither");
        check("info;hyper=debug", "names neither a level nor a crate");
        check("info,inof", "`inof` is neither");
        check("info,fastvideo=debgu", "expected one of");
        check("other_program=debug", "names neither a level nor a crate");
        check(
            "fastvideo_supervizor=debug",
            "names neither a level nor a crate",
        );
        check("inf_o", "names neither a level nor a crate");
        check(",", "it has no directive");
        check(" ", "it has no directive");
        check("info,=,", "invalid filter directive");
    }
}
