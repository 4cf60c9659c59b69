//! Formats points in time for answers.

use std::time::SystemTime;

/// Formats the time as RFC 3339 in UTC, with milliseconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
