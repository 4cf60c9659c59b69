//! The name under which a browser saves a film.

use axum::http::HeaderValue;

const EXTENSION: &str = ".mp4";

/// The longest name without its extension, in bytes. File systems take 255 in all.
const MAX_STEM_BYTES: usize = 200;

/// Returns the `Content-Disposition` (RFC 6266) that makes a browser save an MP4 file under a name. Separators of paths
/// and control characters are not part of it.
pub(super) fn disposition(name: &str) -> HeaderValue {
    let name: String = (name.chars())
        .filter(|c| !c.is_control())
        .map(|c| if matches!(c, '/' | '\\') { '_' } else { c })
        .collect();
    let stem = name.strip_suffix(EXTENSION).unwrap_or(&name);
    let stem = stem.trim_matches(|c: char| c == '.' || c.is_whitespace());
    let stem = &stem[..stem.floor_char_boundary(MAX_STEM_BYTES)];
    let stem = if stem.is_empty() { "film" } else { stem };
    // Old browsers decode `%` here, and some do not unescape what is escaped.
    let is_plain = |c: char| (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '%');
    let plain: String = (stem.chars())
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    let mut disposition = format!("attachment; filename=\"{plain}{EXTENSION}\"");
    if plain != stem {
        let encoded: String = stem.bytes().map(encode).collect();
        disposition.push_str(&format!("; filename*=UTF-8''{encoded}{EXTENSION}"));
    }
    HeaderValue::try_from(disposition).expect("printable ASCII is a header's value")
}

/// Encodes a byte of an extended value (RFC 8187).
fn encode(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_safe() {
        for (name, expected) in [
            ("fox.mp4", "filename=\"fox.mp4\""),
            ("my fox", "filename=\"my fox.mp4\""),
            ("", "filename=\"film.mp4\""),
            (".mp4", "filename=\"film.mp4\""),
            ("../../etc/passwd", "filename=\"_.._etc_passwd.mp4\""),
            ("a\r\nx: y\0\u{7f}\u{85}", "filename=\"ax: y.mp4\""),
            (
                "a\"b\\c.mp4",
                "filename=\"a_b_c.mp4\"; filename*=UTF-8''a%22b_c.mp4",
            ),
            (
                "100%.mp4",
                "filename=\"100_.mp4\"; filename*=UTF-8''100%25.mp4",
            ),
            (
                "füchse €.mp4",
                "filename=\"f_chse _.mp4\"; filename*=UTF-8''f%C3%BCchse%20%E2%82%AC.mp4",
            ),
        ] {
            let expected = format!("attachment; {expected}");
            assert_eq!(disposition(name), expected.as_str(), "{name:?}");
        }
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let long = "é".repeat(5000);
        let value = disposition(&long);
        let value = value.to_str().unwrap();
        let encoded = value.split("UTF-8''").nth(1).unwrap();
        assert_eq!(encoded, format!("{}.mp4", "%C3%A9".repeat(100)));
    }
}
