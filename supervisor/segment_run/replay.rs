//! Compares the media of a repeated attempt with those that were handed out before, so that nothing is shown twice
//! (deduplication of a replay).

use bytes::Bytes;
use fastvideo_proto::job::MediaKind;
use fastvideo_proto::session_link::Digest;

use crate::pool::Media;

/// The media of a segment that were handed out, and the place in them that a repeated attempt has reached.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// One for each message that was handed out, in order.
    handed_out: Vec<Digest>,
    /// Number of the attempt's messages so far.
    position: usize,
    /// The attempt's messages so far while all of them are repetitions: handed out only if a later one differs.
    repeated: Vec<Media>,
}

/// What is to be done with a message of an attempt.
#[derive(Debug)]
pub(super) enum Compared {
    /// It was not handed out before, and follows what was.
    New(Media),
    /// It was handed out before.
    Repeated(RepeatedMedia),
    /// It differs from what was handed out at its place, which is void. These are the attempt's messages so far.
    Differs(Vec<Media>),
}

/// A message that was handed out before.
#[derive(Debug)]
pub(crate) struct RepeatedMedia {
    /// Its place in the attempt's messages, from 0.
    pub(crate) position: usize,
    pub(crate) kind: MediaKind,
    pub(crate) bytes: Bytes,
}

impl Replay {
    /// Goes on after what another server has handed out.
    pub(super) fn after(handed_out: Vec<Digest>) -> Self {
        Self {
            handed_out,
            ..Self::default()
        }
    }

    /// Begins another attempt.
    pub(super) fn begin_attempt(&mut self) {
        self.position = 0;
        self.repeated = Vec::new();
    }

    /// Compares the attempt's next message with what was handed out at its place.
    pub(super) fn compare(&mut self, media: Media) -> Compared {
        let digest = digest(&media);
        let before = self.handed_out.get(self.position).copied();
        self.position += 1;
        match before {
            None => {
                self.handed_out.push(digest);
                Compared::New(media)
            }
            Some(before) if before == digest => {
                let repeated = RepeatedMedia {
                    position: self.position - 1,
                    kind: media.kind.clone(),
                    bytes: media.bytes.clone(),
                };
                if self.position == self.handed_out.len() {
                    self.repeated = Vec::new();
                } else {
                    // Its worker may go on at once.
                    self.repeated.push(media.give_credit_back());
                }
                Compared::Repeated(repeated)
            }
            Some(_) => {
                self.repeated.push(media);
                Compared::Differs(self.replace())
            }
        }
    }

    /// Ends a successful attempt. Returns its messages when it has fewer than were handed out before, which are void
    /// then.
    pub(super) fn finish(&mut self) -> Option<Vec<Media>> {
        (self.position < self.handed_out.len()).then(|| self.replace())
    }

    /// Puts the attempt's messages in place of what was handed out, and returns them.
    fn replace(&mut self) -> Vec<Media> {
        let media = std::mem::take(&mut self.repeated);
        self.handed_out = media.iter().map(digest).collect();
        media
    }
}

fn digest(media: &Media) -> Digest {
    Digest::of(&media.bytes)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fastvideo_proto::job::MediaKind;

    use super::*;
    use crate::pool::testing;

    /// What becomes of the messages of one attempt, each a letter: `+` for a new one, `=` for a repeated one, and
    /// the attempt's messages so far where one differs.
    fn attempt(replay: &mut Replay, messages: &str) -> String {
        replay.begin_attempt();
        let letter = |media: &Media| char::from(media.bytes[0]);
        let outcomes = messages.bytes().map(|letter| {
            let bytes = Bytes::copy_from_slice(&[letter]);
            replay.compare(testing::media(MediaKind::Fragment, bytes))
        });
        let outcomes: Vec<_> = outcomes.collect();
        outcomes
            .iter()
            .map(|outcome| match outcome {
                Compared::New(_) => "+".to_owned(),
                Compared::Repeated(_) => "=".to_owned(),
                Compared::Differs(media) => media.iter().map(letter).collect(),
            })
            .collect()
    }

    #[test]
    fn what_was_handed_out_is_not_handed_out_again() {
        let mut replay = Replay::default();
        assert_eq!(attempt(&mut replay, "abc"), "+++");
        assert_eq!(attempt(&mut replay, "ab"), "==", "lost on its way");
        assert_eq!(attempt(&mut replay, "abcde"), "===++");
        assert!(replay.repeated.is_empty(), "nothing of them is kept");
        assert_eq!(attempt(&mut replay, "abcdef"), "=====+");
        assert!(replay.finish().is_none());
    }

    #[test]
    fn an_attempt_that_differs_replaces_what_was_handed_out() {
        let mut replay = Replay::default();
        assert_eq!(attempt(&mut replay, "abc"), "+++");
        assert_eq!(attempt(&mut replay, "axc"), "=ax+");
        assert_eq!(attempt(&mut replay, "axcd"), "===+");
        assert_eq!(attempt(&mut replay, "zx"), "z+");
        assert_eq!(attempt(&mut replay, "zx"), "==");
        assert!(replay.finish().is_none());
    }

    #[test]
    fn an_attempt_that_ends_too_early_differs() {
        let mut replay = Replay::default();
        assert_eq!(attempt(&mut replay, "abc"), "+++");
        assert_eq!(attempt(&mut replay, "ab"), "==");
        let media = replay.finish().expect("it has fewer messages");
        assert_eq!(media.len(), 2);
        assert!(replay.finish().is_none());
    }
}
