//! Points in time as answers show them.

use std::time::SystemTime;

/// The time as RFC 3339 in UTC, with milliseconds.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
