//! An error together with its causes, for log lines and for messages to operators.

use std::error::Error;
use std::fmt::Write;

/// The error's message, followed by those of its sources. A source whose message is in the text already is left out.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            let _ = write!(text, ": {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot open the store")]
        Silent(#[source] io::Error),
        #[error("cannot open the store: {0}")]
        Telling(#[source] io::Error),
    }

    #[test]
    fn every_cause_is_told_once() {
        let expected = "cannot open the store: disk full";
        let full = || io::Error::other("disk full");
        assert_eq!(with_causes(&Outer::Silent(full())), expected);
        assert_eq!(with_causes(&Outer::Telling(full())), expected);
    }
}
