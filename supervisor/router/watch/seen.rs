//! What a spectator has seen, and what follows from that for each message of a server. It does no I/O.

use std::borrow::Cow;

use fastvideo_proto::session_link::Digest;
use serde::Deserialize;
use tokio_tungstenite::tungstenite::Message;

/// What is to be done with a message of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The spectator is to have it.
    New,
    /// The spectator has it.
    Known,
    /// The spectator has something else in its place: what it has of this segment is void.
    Differs(u32),
}

/// How far a spectator has come.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The segment that comes next, or of which the spectator has a part; `None` before the first message.
    segment: Option<u32>,
    /// One for each message that the spectator has of this segment, in order.
    messages: Vec<Digest>,
    /// Number of them that this server has sent.
    position: usize,
    has_ended: bool,
}

/// What matters here of a text message.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    segment_idx: Option<u32>,
    #[serde(default)]
    restarting: bool,
    from: Option<u32>,
}

impl Seen {
    /// Returns the segment with which another server has to begin; `None` when that is what is on air.
    pub(super) fn segment(&self) -> Option<u32> {
        self.segment
    }

    /// Returns whether the spectator knows that nothing follows.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes note that another server begins.
    pub(super) fn begin_server(&mut self) {
        self.position = 0;
    }

    /// Judges the next message of the server. A new one counts as seen.
    pub(super) fn judge(&mut self, message: &Message) -> Verdict {
        let text = match message {
            Message::Binary(media) => return self.compare(Digest::of(media)),
            Message::Text(text) => text.as_str(),
            _ => return Verdict::Known,
        };
        let Ok(head) = serde_json::from_str::<Head<'_>>(text) else {
            return Verdict::New;
        };
        match (&*head.kind, head.segment_idx) {
            ("watch_start", _) => {
                if self.segment.is_some() {
                    return Verdict::Known;
                }
                self.segment = head.from;
            }
            ("ltx2_segment_start", Some(segment)) => {
                if self.messages.is_empty() {
                    self.segment = Some(segment);
                }
                return self.compare(Digest::of(text.as_bytes()));
            }
            ("media_init" | "media_segment_complete", _) => {
                return self.compare(Digest::of(text.as_bytes()));
            }
            ("film_segment", Some(segment)) => {
                if self.position < self.messages.len() {
                    return self.differs();
                }
                self.go_to(segment + 1);
            }
            ("watch_skipped", Some(segment)) => self.go_to(segment),
            ("error", Some(segment)) if head.restarting => self.go_to(segment),
            ("watch_end", _) => self.has_ended = true,
            _ => {}
        }
        Verdict::New
    }

    fn compare(&mut self, message: Digest) -> Verdict {
        let known = self.messages.get(self.position).copied();
        match known {
            None => self.messages.push(message),
            Some(known) if known != message => return self.differs(),
            Some(_) => {}
        }
        self.position += 1;
        match known {
            None => Verdict::New,
            Some(_) => Verdict::Known,
        }
    }

    fn differs(&mut self) -> Verdict {
        let segment = self.segment.unwrap_or_default();
        self.go_to(segment);
        Verdict::Differs(segment)
    }

    /// The spectator has nothing of the segment that comes next.
    fn go_to(&mut self, segment: u32) {
        self.segment = Some(segment);
        self.messages.clear();
        self.position = 0;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A message by its short name: `<2` begins segment 2, `a` to `z` are media, `i` tells of them, `.` completes them,
    /// `=2` is what is known of segment 2, `!2` makes it void, `>2` skips to it, `^2` begins a show, `$` ends it.
    fn message(name: &str) -> Message {
        let (kind, segment) = name.split_at(1);
        let segment: Option<u32> = segment.parse().ok();
        let text = match kind {
            "<" => json!({"type": "ltx2_segment_start", "segment_idx": segment, "prompt": "a fox"}),
            "i" => json!({"type": "media_init", "segment_idx": 2}),
            "." => json!({"type": "media_segment_complete", "segment_idx": 2}),
            "=" => json!({"type": "film_segment", "segment_idx": segment}),
            "!" => json!({"type": "error", "segment_idx": segment, "restarting": true}),
            ">" => json!({"type": "watch_skipped", "segment_idx": segment}),
            "^" => json!({"type": "watch_start", "from": segment}),
            "$" => json!({"type": "watch_end"}),
            media => return Message::binary(media.as_bytes().to_vec()),
        };
        Message::text(text.to_string())
    }

    /// What a spectator gets of the messages of one server: those that are new, and `x` where one differs. Then the server
    /// is left.
    fn server(seen: &mut Seen, messages: &str) -> String {
        seen.begin_server();
        let mut got = Vec::new();
        for name in messages.split(' ') {
            match seen.judge(&message(name)) {
                Verdict::New => got.push(name.to_owned()),
                Verdict::Known => {}
                Verdict::Differs(segment) => {
                    got.push(format!("x{segment}"));
                    break;
                }
            }
        }
        got.join(" ")
    }

    #[test]
    fn a_segment_goes_on_where_the_last_server_was_lost() {
        let whole = "^2 <2 i a b c . =2 <3 i d";
        let names: Vec<&str> = whole.split(' ').collect();
        for cut in 1..names.len() {
            for again in cut..names.len() {
                let mut seen = Seen::default();
                let first = server(&mut seen, &names[..cut].join(" "));
                let from = seen.segment().unwrap();
                let rest = match from {
                    2 => format!("^2 {}", names[1..].join(" ")),
                    _ => format!("^3 {}", names[8..].join(" ")),
                };
                let seen_again = again - cut;
                let part: Vec<&str> = rest.split(' ').take(seen_again.max(1)).collect();
                let second = server(&mut seen, &part.join(" "));
                let third = match seen.segment() {
                    Some(2) => format!("^2 {}", names[1..].join(" ")),
                    _ => format!("^3 {}", names[8..].join(" ")),
                };
                let third = server(&mut seen, &third);
                let got = [first, second, third];
                let got: Vec<&str> = got.iter().flat_map(|got| got.split_whitespace()).collect();
                assert_eq!(got, names, "{cut} {again}");
            }
        }
    }

    #[test]
    fn a_segment_that_differs_begins_anew() {
        for (before, then, expected) in [
            // Other media, fewer media, another prompt's segment.
            ("^2 <2 i a b", "^2 <2 i a x", "x2"),
            ("^2 <2 i a b", "^2 <2 i a .", "x2"),
            ("^2 <2 i a b", "^2 <2 i a =2", "x2"),
            ("^2 <2 i a b", "^3 <3 i a b", "x2"),
        ] {
            let mut seen = Seen::default();
            server(&mut seen, before);
            assert_eq!(server(&mut seen, then), expected, "{before} | {then}");
            assert_eq!(seen.segment(), Some(2));
            assert_eq!(server(&mut seen, "^2 <2 i a x y"), "<2 i a x y");
        }
    }

    #[test]
    fn what_is_void_or_skipped_is_not_compared() {
        let mut seen = Seen::default();
        server(&mut seen, "^2 <2 i a !2");
        assert_eq!(server(&mut seen, "^2 <2 i a b"), "<2 i a b");
        assert_eq!(server(&mut seen, "^2 >4 <4 i c"), ">4 <4 i c");
        assert_eq!(seen.segment(), Some(4));
        assert!(!seen.has_ended());
        assert_eq!(server(&mut seen, "^4 <4 i c . =4 $"), ". =4 $");
        assert!(seen.has_ended());
    }
}
