use fastvideo_proto::checkpoint::Checkpoint;

use super::*;
use crate::session::tests::config;

const PLAIN: PromptAbilities = PromptAbilities {
    write: false,
    filter: None,
};
const WRITES: PromptAbilities = PromptAbilities {
    write: true,
    filter: None,
};
const SCREENS: PromptAbilities = PromptAbilities {
    write: false,
    filter: Some(0),
};
const LOOPING: Switches = Switches {
    looping: true,
    enhancing: false,
    extending: false,
};
const ENHANCING: Switches = Switches {
    looping: false,
    enhancing: true,
    extending: false,
};
const EXTENDING: Switches = Switches {
    looping: false,
    enhancing: false,
    extending: true,
};

fn looping(prompts: &[&str], cap: u32) -> Playlist {
    playlist(prompts, LOOPING, PLAIN, cap)
}

fn playlist(curated: &[&str], switches: Switches, can: PromptAbilities, cap: u32) -> Playlist {
    Playlist::new(prompts(curated), switches, can, cap, 0)
}

fn prompts(list: &[&str]) -> Vec<String> {
    list.iter().map(|&p| p.to_owned()).collect()
}

fn add(playlist: &mut Playlist, prompt: &str, limit: usize) -> bool {
    let request = ValidRequest {
        source: fastvideo_proto::job::PromptSource::User,
        ..ValidRequest::curated(prompt.to_owned(), &config())
    };
    playlist.add(None, request, Instant::now(), limit).is_ok()
}

/// The prompt of the next segment, which runs now.
fn start(playlist: &mut Playlist) -> Option<String> {
    Some(playlist.next(&config(), true)?.request.prompt)
}

/// The prompt of the next segment, which is finished at once.
fn next(playlist: &mut Playlist) -> Option<String> {
    let prompt = start(playlist)?;
    playlist.segment_finished();
    Some(prompt)
}

/// The prompts that are to be made ready, with the names of the tasks.
fn prepared(playlist: &mut Playlist, room: usize) -> Vec<(u64, String, bool)> {
    let prepare = |task: PromptTask| match task.work {
        PromptWork::Prepare { prompt, enhance } => (task.id, prompt, enhance),
        other => panic!("{other:?}"),
    };
    playlist
        .take_prompt_tasks(room)
        .into_iter()
        .map(prepare)
        .collect()
}

/// The follow-on that is to be written.
#[track_caller]
fn extension(playlist: &mut Playlist) -> Option<(u64, Vec<String>)> {
    let mut tasks = playlist.take_prompt_tasks(4);
    assert!(tasks.len() <= 1, "{tasks:?}");
    match tasks.pop()? {
        PromptTask {
            id,
            work: PromptWork::Extend { story },
        } => Some((id, story)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_go_before_curated_prompts_which_wrap_around() {
    let mut playlist = looping(&["a", "b"], 100);
    assert_eq!(next(&mut playlist).as_deref(), Some("a"));
    assert!(add(&mut playlist, "user 1", 8));
    assert!(add(&mut playlist, "user 2", 8));
    let order: Vec<_> = (0..5).map(|_| next(&mut playlist).unwrap()).collect();
    assert_eq!(order, ["user 1", "user 2", "b", "a", "b"]);
}

#[test]
fn nothing_runs_while_paused_and_requests_keep_their_order() {
    let mut playlist = playlist(&[], Switches::default(), PLAIN, 100);
    playlist.paused = true;
    add(&mut playlist, "1", 8);
    add(&mut playlist, "2", 8);
    assert_eq!(next(&mut playlist), None);
    playlist.paused = false;
    assert_eq!(next(&mut playlist).as_deref(), Some("1"));
    assert_eq!(next(&mut playlist).as_deref(), Some("2"));
    assert_eq!(next(&mut playlist), None);
}

#[test]
fn the_cap_ends_it_and_the_waiting_line_is_bounded() {
    let mut playlist = looping(&["a"], 2);
    assert!(add(&mut playlist, "1", 1));
    assert!(!add(&mut playlist, "2", 1));
    assert_eq!(next(&mut playlist).as_deref(), Some("1"));
    assert_eq!(next(&mut playlist).as_deref(), Some("a"));
    assert_eq!(next(&mut playlist), None);
    assert!(playlist.is_complete());
}

#[test]
fn a_new_list_starts_at_its_first_prompt() {
    let mut playlist = looping(&["a", "b"], 100);
    next(&mut playlist);
    playlist.set_curated(prompts(&["c", "d"]));
    assert_eq!(next(&mut playlist).as_deref(), Some("c"));
    playlist.set_curated(vec![]);
    assert_eq!(next(&mut playlist), None);
}

#[test]
fn curated_prompts_are_enhanced_a_few_at_a_time_and_each_segment_waits_for_its_own_only() {
    let switches = Switches {
        looping: true,
        ..ENHANCING
    };
    let mut playlist = playlist(&["a", "b", "c"], switches, WRITES, 100);
    let tasks = prepared(&mut playlist, 2);
    let named = |tasks: &[(u64, String, bool)]| -> Vec<String> {
        tasks.iter().map(|(_, prompt, _)| prompt.clone()).collect()
    };
    assert_eq!(named(&tasks), ["a", "b"]);
    assert_eq!(prepared(&mut playlist, 2), []);
    assert_eq!(start(&mut playlist), None);
    assert!(playlist.is_preparing());
    playlist.prepared(tasks[0].0, PreparedDraft::Enhanced("A".to_owned()));
    let planned = playlist.next(&config(), true).unwrap();
    assert_eq!(planned.request.prompt, "A");
    assert_eq!(planned.original_prompt.as_deref(), Some("a"));
    assert!(!planned.by_client);
    assert_eq!(named(&prepared(&mut playlist, 2)), ["c"]);
    playlist.segment_finished();
    playlist.prepared(tasks[1].0, PreparedDraft::NotEnhanced);
    assert_eq!(next(&mut playlist).as_deref(), Some("b"));
    assert_eq!(next(&mut playlist), None, "c is in work");
}

#[test]
fn requests_are_enhanced_at_once_and_keep_their_order() {
    let mut playlist = playlist(&[], ENHANCING, WRITES, 100);
    add(&mut playlist, "a", 8);
    add(&mut playlist, "b", 8);
    let tasks = prepared(&mut playlist, 1);
    assert_eq!(tasks.len(), 2);
    playlist.prepared(tasks[1].0, PreparedDraft::Enhanced("B".to_owned()));
    assert_eq!(next(&mut playlist), None, "the first is in work");
    playlist.prepared(tasks[0].0, PreparedDraft::Enhanced("A".to_owned()));
    assert_eq!(next(&mut playlist).as_deref(), Some("A"));
    assert_eq!(next(&mut playlist).as_deref(), Some("B"));
}

#[test]
fn a_switch_takes_effect_on_the_next_prompt() {
    let switches = Switches {
        looping: true,
        ..ENHANCING
    };
    let mut playlist = playlist(&["a", "b"], switches, WRITES, 100);
    add(&mut playlist, "user", 8);
    let tasks = prepared(&mut playlist, 4);
    let id = |prompt| tasks.iter().find(|(_, p, _)| p == prompt).unwrap().0;
    playlist.prepared(id("a"), PreparedDraft::Enhanced("A".to_owned()));
    playlist.set_enhancing(false);
    add(&mut playlist, "user 2", 8);
    assert_eq!(start(&mut playlist), None, "requested before the switch");
    playlist.prepared(id("user"), PreparedDraft::Enhanced("USER".to_owned()));
    let order: Vec<_> = (0..4).map(|_| next(&mut playlist).unwrap()).collect();
    assert_eq!(order, ["USER", "user 2", "a", "b"]);
    playlist.set_enhancing(true);
    assert_eq!(next(&mut playlist).as_deref(), Some("A"));
    playlist.prepared(id("b"), PreparedDraft::NotEnhanced);
    assert_eq!(next(&mut playlist).as_deref(), Some("b"));
    playlist.set_enhancing(true);
    let again = prepared(&mut playlist, 4);
    assert_eq!(again.len(), 1, "what failed is tried once more: {again:?}");
}

#[test]
fn what_the_server_cannot_do_any_more_holds_nothing_up() {
    let mut playlist = playlist(&[], ENHANCING, WRITES, 100);
    add(&mut playlist, "a", 8);
    add(&mut playlist, "b", 8);
    let tasks = prepared(&mut playlist, 4);
    assert_eq!(tasks.len(), 2);
    playlist.set_abilities(PLAIN);
    assert_eq!(next(&mut playlist).as_deref(), Some("a"));
    playlist.set_abilities(SCREENS);
    assert_eq!(next(&mut playlist), None, "nobody has looked at it");
    assert!(!playlist.awaits(tasks[1].0), "it began without the filter");
    let tasks = prepared(&mut playlist, 4);
    playlist.prepared(tasks[0].0, PreparedDraft::AsWritten);
    assert_eq!(next(&mut playlist).as_deref(), Some("b"));
}

#[test]
fn another_filter_looks_again_at_what_was_prepared() {
    let mut playlist = playlist(&["a", "b"], LOOPING, SCREENS, 100);
    for (task, ..) in prepared(&mut playlist, 4) {
        playlist.prepared(task, PreparedDraft::AsWritten);
    }
    assert_eq!(start(&mut playlist).as_deref(), Some("a"));
    let edition = playlist.curated_edition();
    playlist.set_abilities(SCREENS);
    assert_eq!(prepared(&mut playlist, 4).len(), 0, "it is the same filter");
    playlist.set_abilities(PromptAbilities {
        filter: Some(1),
        ..SCREENS
    });
    assert_eq!(next(&mut playlist), None);
    assert_ne!(playlist.curated_edition(), edition);
    let again = prepared(&mut playlist, 4);
    assert_eq!(again.len(), 2);
    playlist.prepared(again[0].0, PreparedDraft::AsWritten);
    assert_eq!(next(&mut playlist).as_deref(), Some("b"));
}

#[test]
fn what_a_model_has_written_is_not_enhanced_again() {
    let mut playlist = playlist(&[], ENHANCING, WRITES, 100);
    let request = ValidRequest {
        source: fastvideo_proto::job::PromptSource::Enhanced,
        ..ValidRequest::curated("a".to_owned(), &config())
    };
    playlist.add(None, request, Instant::now(), 8).unwrap();
    assert_eq!(next(&mut playlist).as_deref(), Some("a"));
}

#[test]
fn no_prompt_is_used_that_nobody_has_looked_at_and_blocked_ones_are_gone() {
    let mut playlist = playlist(&["a", "b", "c"], LOOPING, SCREENS, 100);
    assert_eq!(start(&mut playlist), None);
    add(&mut playlist, "bad", 8);
    add(&mut playlist, "good", 8);
    let tasks = prepared(&mut playlist, 8);
    assert_eq!(tasks.len(), 5);
    assert!(tasks.iter().all(|(_, _, enhance)| !enhance));
    for (id, prompt, _) in tasks {
        match prompt.as_str() {
            "a" | "bad" => playlist.blocked(id),
            _ => playlist.prepared(id, PreparedDraft::AsWritten),
        }
    }
    let order: Vec<_> = (0..4).map(|_| next(&mut playlist).unwrap()).collect();
    assert_eq!(order, ["good", "b", "c", "b"]);
}

#[test]
fn a_follow_on_is_asked_for_while_the_segment_before_it_runs() {
    let mut playlist = playlist(&[], EXTENDING, WRITES, 100);
    assert_eq!(extension(&mut playlist), None, "nothing to go on from");
    add(&mut playlist, "a", 8);
    start(&mut playlist);
    let (id, story) = extension(&mut playlist).unwrap();
    assert_eq!(story, ["a"]);
    assert_eq!(extension(&mut playlist), None, "once");
    playlist.extended(id, Some("b".to_owned()));
    playlist.segment_finished();
    let planned = playlist.next(&config(), true).unwrap();
    assert_eq!(planned.request.prompt, "b");
    assert_eq!(
        planned.request.source,
        fastvideo_proto::job::PromptSource::AutoExtension
    );
    let (_, story) = extension(&mut playlist).unwrap();
    assert_eq!(story, ["a", "b"]);
}

#[test]
fn a_request_goes_before_a_follow_on_which_is_written_anew() {
    let mut playlist = playlist(&[], EXTENDING, WRITES, 100);
    add(&mut playlist, "a", 8);
    start(&mut playlist);
    let (old, _) = extension(&mut playlist).unwrap();
    add(&mut playlist, "user", 8);
    playlist.segment_finished();
    assert_eq!(start(&mut playlist).as_deref(), Some("user"));
    assert!(!playlist.awaits(old));
    playlist.extended(old, Some("b".to_owned()));
    let (new, story) = extension(&mut playlist).unwrap();
    assert_eq!(story, ["a", "user"]);
    playlist.extended(new, Some("c".to_owned()));
    playlist.segment_finished();
    assert_eq!(next(&mut playlist).as_deref(), Some("c"));
}

#[test]
fn without_a_follow_on_the_last_prompt_runs_again_and_counts_once() {
    let mut playlist = playlist(&[], EXTENDING, WRITES, 100);
    add(&mut playlist, "a", 8);
    start(&mut playlist);
    let (id, _) = extension(&mut playlist).unwrap();
    playlist.extended(id, None);
    playlist.segment_finished();
    assert_eq!(start(&mut playlist).as_deref(), Some("a"));
    let (_, story) = extension(&mut playlist).unwrap();
    assert_eq!(story, ["a", "a"], "the one that runs is the last one");
    playlist.segment_finished();
    assert_eq!(playlist.story, ["a"]);
}

#[test]
fn a_follow_on_that_is_blocked_is_written_anew_after_a_rest() {
    let mut playlist = playlist(&[], EXTENDING, WRITES, 100);
    add(&mut playlist, "a", 8);
    start(&mut playlist);
    let (id, _) = extension(&mut playlist).unwrap();
    playlist.blocked(id);
    playlist.auto_paused = true;
    assert_eq!(extension(&mut playlist), None);
    playlist.segment_finished();
    assert_eq!(start(&mut playlist), None);
    playlist.auto_paused = false;
    assert!(extension(&mut playlist).is_some());
}

#[test]
fn a_story_is_told_from_its_last_prompts() {
    let mut playlist = playlist(&[], EXTENDING, WRITES, 100);
    for n in 0..20 {
        add(&mut playlist, &n.to_string(), 8);
        next(&mut playlist);
    }
    add(&mut playlist, "last", 8);
    start(&mut playlist);
    let (_, story) = extension(&mut playlist).unwrap();
    assert_eq!(story.len(), 9);
    assert_eq!((story[0].as_str(), story[8].as_str()), ("12", "last"));
}

/// One row of the table: all switches, and what happens to the first segment.
#[derive(Clone, Copy, Debug)]
struct Row {
    looping: bool,
    curated: bool,
    extending: bool,
    paused: bool,
    cancelled: bool,
    /// The first segment is the last one.
    capped: bool,
    requested: bool,
}

impl Row {
    fn all() -> impl Iterator<Item = Self> {
        (0..1 << 7).map(|bits| {
            let bit = |n: u32| bits & (1 << n) != 0;
            Self {
                looping: bit(0),
                curated: bit(1),
                extending: bit(2),
                paused: bit(3),
                cancelled: bit(4),
                capped: bit(5),
                requested: bit(6),
            }
        })
    }

    /// What the second segment shows, by the words of the protocol.
    fn second(self) -> Option<&'static str> {
        if self.paused || (self.capped && !self.cancelled) {
            None
        } else if self.requested {
            Some("request")
        } else if self.looping && self.curated {
            Some("curated")
        } else if self.extending && !self.cancelled {
            Some("extension")
        } else {
            None
        }
    }
}

/// A first segment for a request; then the switches are set while it runs; then it ends.
#[test]
fn every_combination_of_loop_extension_pause_cancel_cap_and_request_does_what_the_protocol_says() {
    for row in Row::all() {
        let curated: &[&str] = match row.curated {
            true => &["curated"],
            false => &[],
        };
        let cap = if row.capped { 1 } else { 3 };
        let mut playlist = playlist(curated, Switches::default(), WRITES, cap);
        add(&mut playlist, "first", 8);
        assert_eq!(start(&mut playlist).as_deref(), Some("first"), "{row:?}");
        playlist.looping = row.looping;
        playlist.set_extending(row.extending);
        playlist.paused = row.paused;
        if row.requested {
            add(&mut playlist, "request", 8);
        }
        let written = extension(&mut playlist);
        let loops = row.looping && row.curated;
        let wanted = row.extending && !row.capped && !row.requested && !loops;
        assert_eq!(written.is_some(), wanted, "{row:?}");
        if let Some((task, story)) = written {
            assert_eq!(story, ["first"], "{row:?}");
            playlist.extended(task, Some("extension".to_owned()));
        }
        match row.cancelled {
            true => playlist.segment_dropped(),
            false => playlist.segment_finished(),
        }
        assert_eq!(
            playlist.is_complete(),
            row.capped && !row.cancelled,
            "{row:?}"
        );
        assert_eq!(start(&mut playlist).as_deref(), row.second(), "{row:?}");
        // What a pause has held back comes when it ends.
        playlist.paused = false;
        let resumed = Row {
            paused: false,
            ..row
        };
        if row.paused {
            assert_eq!(start(&mut playlist).as_deref(), resumed.second(), "{row:?}");
        }
    }
}

/// A request's adapters act from its segment on, on what nobody has asked for too.
#[test]
fn adapters_stay_until_a_request_names_others() {
    let adapter = |name: &str| {
        vec![Adapter {
            name: name.to_owned(),
            strength: 1.0,
        }]
    };
    let mut playlist = Playlist::new(
        vec!["a hill".to_owned()],
        Switches {
            looping: true,
            ..Switches::default()
        },
        PromptAbilities::default(),
        100,
        0,
    );
    playlist.set_adapters(adapter("toon"));
    let next = |playlist: &mut Playlist| {
        let planned = playlist.next(&config(), true).unwrap();
        playlist.segment_finished();
        planned.request.adapters.unwrap()
    };
    assert_eq!(next(&mut playlist), adapter("toon"));
    let request = |adapters| ValidRequest {
        adapters,
        ..ValidRequest::curated("a fox".to_owned(), &config())
    };
    for adapters in [None, Some(adapter("fade")), None] {
        let now = Instant::now();
        playlist.add(None, request(adapters), now, 8).unwrap();
    }
    assert_eq!(next(&mut playlist), adapter("toon"));
    assert_eq!(next(&mut playlist), adapter("fade"));
    assert_eq!(next(&mut playlist), adapter("fade"));
    assert_eq!(next(&mut playlist), adapter("fade"));
    let request = request(Some(Vec::new()));
    playlist.add(None, request, Instant::now(), 8).unwrap();
    assert_eq!(next(&mut playlist), []);
    assert_eq!(next(&mut playlist), []);

    // Another server goes on with those that act.
    playlist.set_adapters(adapter("toon"));
    let mut checkpoint = Checkpoint::default();
    playlist.write(&mut checkpoint, Instant::now());
    let text = serde_json::to_string(&checkpoint).unwrap();
    let checkpoint: Checkpoint = serde_json::from_str(&text).unwrap();
    let curated = playlist.curated();
    let can = PromptAbilities::default();
    let mut moved = Playlist::read(&checkpoint, curated, can, 100, Instant::now());
    assert_eq!(next(&mut moved), adapter("toon"));
}
