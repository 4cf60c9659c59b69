use super::*;
use crate::session::tests::config;

const PLAIN: Abilities = Abilities {
    write: false,
    screen: false,
};
const WRITES: Abilities = Abilities {
    write: true,
    screen: false,
};
const SCREENS: Abilities = Abilities {
    write: false,
    screen: true,
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

fn looping(prompts: &[&str], cap: u32) -> Script {
    script(prompts, LOOPING, PLAIN, cap)
}

fn script(curated: &[&str], switches: Switches, can: Abilities, cap: u32) -> Script {
    Script::new(prompts(curated), switches, can, cap, 0)
}

fn prompts(list: &[&str]) -> Vec<String> {
    list.iter().map(|&p| p.to_owned()).collect()
}

fn add(script: &mut Script, prompt: &str, limit: usize) -> bool {
    let request = ValidRequest {
        source: fastvideo_proto::client::PromptSource::User,
        ..ValidRequest::curated(prompt.to_owned(), &config())
    };
    script.add(request, Instant::now(), limit)
}

/// The prompt of the next segment, which runs now.
fn start(script: &mut Script) -> Option<String> {
    Some(script.next(&config())?.request.prompt)
}

/// The prompt of the next segment, which is finished at once.
fn next(script: &mut Script) -> Option<String> {
    let prompt = start(script)?;
    script.segment_finished();
    Some(prompt)
}

/// The prompts that are to be made ready, with the names of the orders.
fn prepared(script: &mut Script, room: usize) -> Vec<(u64, String, bool)> {
    let prepare = |order: Order| match order.work {
        Work::Prepare { prompt, enhance } => (order.id, prompt, enhance),
        extend @ Work::Extend { .. } => panic!("{extend:?}"),
    };
    script.orders(room).into_iter().map(prepare).collect()
}

/// The follow-on that is to be written.
#[track_caller]
fn extension(script: &mut Script) -> Option<(u64, Vec<String>)> {
    let mut orders = script.orders(4);
    assert!(orders.len() <= 1, "{orders:?}");
    match orders.pop()? {
        Order {
            id,
            work: Work::Extend { story },
        } => Some((id, story)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_go_before_curated_prompts_which_wrap_around() {
    let mut script = looping(&["a", "b"], 100);
    assert_eq!(next(&mut script).as_deref(), Some("a"));
    assert!(add(&mut script, "user 1", 8));
    assert!(add(&mut script, "user 2", 8));
    let order: Vec<_> = (0..5).map(|_| next(&mut script).unwrap()).collect();
    assert_eq!(order, ["user 1", "user 2", "b", "a", "b"]);
}

#[test]
fn nothing_runs_while_paused_and_requests_keep_their_order() {
    let mut script = script(&[], Switches::default(), PLAIN, 100);
    script.paused = true;
    add(&mut script, "1", 8);
    add(&mut script, "2", 8);
    assert_eq!(next(&mut script), None);
    script.paused = false;
    assert_eq!(next(&mut script).as_deref(), Some("1"));
    assert_eq!(next(&mut script).as_deref(), Some("2"));
    assert_eq!(next(&mut script), None);
}

#[test]
fn the_cap_ends_it_and_the_waiting_line_is_bounded() {
    let mut script = looping(&["a"], 2);
    assert!(add(&mut script, "1", 1));
    assert!(!add(&mut script, "2", 1));
    assert_eq!(next(&mut script).as_deref(), Some("1"));
    assert_eq!(next(&mut script).as_deref(), Some("a"));
    assert_eq!(next(&mut script), None);
    assert!(script.is_complete());
}

#[test]
fn a_new_list_starts_at_its_first_prompt() {
    let mut script = looping(&["a", "b"], 100);
    next(&mut script);
    script.set_curated(prompts(&["c", "d"]));
    assert_eq!(next(&mut script).as_deref(), Some("c"));
    script.set_curated(vec![]);
    assert_eq!(next(&mut script), None);
}

#[test]
fn curated_prompts_are_enhanced_a_few_at_a_time_and_each_segment_waits_for_its_own_only() {
    let switches = Switches {
        looping: true,
        ..ENHANCING
    };
    let mut script = script(&["a", "b", "c"], switches, WRITES, 100);
    let orders = prepared(&mut script, 2);
    let named = |orders: &[(u64, String, bool)]| -> Vec<String> {
        orders.iter().map(|(_, prompt, _)| prompt.clone()).collect()
    };
    assert_eq!(named(&orders), ["a", "b"]);
    assert_eq!(prepared(&mut script, 2), []);
    assert_eq!(start(&mut script), None);
    assert!(script.is_writing());
    script.prepared(orders[0].0, Outcome::Enhanced("A".to_owned()));
    let ask = script.next(&config()).unwrap();
    assert_eq!(ask.request.prompt, "A");
    assert_eq!(ask.original_prompt.as_deref(), Some("a"));
    assert!(!ask.by_client);
    assert_eq!(named(&prepared(&mut script, 2)), ["c"]);
    script.segment_finished();
    script.prepared(orders[1].0, Outcome::NotEnhanced);
    assert_eq!(next(&mut script).as_deref(), Some("b"));
    assert_eq!(next(&mut script), None, "c is in work");
}

#[test]
fn requests_are_enhanced_at_once_and_keep_their_order() {
    let mut script = script(&[], ENHANCING, WRITES, 100);
    add(&mut script, "a", 8);
    add(&mut script, "b", 8);
    let orders = prepared(&mut script, 1);
    assert_eq!(orders.len(), 2);
    script.prepared(orders[1].0, Outcome::Enhanced("B".to_owned()));
    assert_eq!(next(&mut script), None, "the first is in work");
    script.prepared(orders[0].0, Outcome::Enhanced("A".to_owned()));
    assert_eq!(next(&mut script).as_deref(), Some("A"));
    assert_eq!(next(&mut script).as_deref(), Some("B"));
}

#[test]
fn a_switch_takes_effect_on_the_next_prompt() {
    let switches = Switches {
        looping: true,
        ..ENHANCING
    };
    let mut script = script(&["a", "b"], switches, WRITES, 100);
    add(&mut script, "user", 8);
    let orders = prepared(&mut script, 4);
    let id = |prompt| orders.iter().find(|(_, p, _)| p == prompt).unwrap().0;
    script.prepared(id("a"), Outcome::Enhanced("A".to_owned()));
    script.set_enhancing(false);
    add(&mut script, "user 2", 8);
    assert_eq!(start(&mut script), None, "requested before the switch");
    script.prepared(id("user"), Outcome::Enhanced("USER".to_owned()));
    let order: Vec<_> = (0..4).map(|_| next(&mut script).unwrap()).collect();
    assert_eq!(order, ["USER", "user 2", "a", "b"]);
    script.set_enhancing(true);
    assert_eq!(next(&mut script).as_deref(), Some("A"));
    script.prepared(id("b"), Outcome::NotEnhanced);
    assert_eq!(next(&mut script).as_deref(), Some("b"));
    script.set_enhancing(true);
    let again = prepared(&mut script, 4);
    assert_eq!(again.len(), 1, "what failed is tried once more: {again:?}");
}

#[test]
fn what_a_model_has_written_is_not_enhanced_again() {
    let mut script = script(&[], ENHANCING, WRITES, 100);
    let request = ValidRequest {
        source: fastvideo_proto::client::PromptSource::Enhanced,
        ..ValidRequest::curated("a".to_owned(), &config())
    };
    script.add(request, Instant::now(), 8);
    assert_eq!(next(&mut script).as_deref(), Some("a"));
}

#[test]
fn no_prompt_is_used_that_nobody_has_looked_at_and_blocked_ones_are_gone() {
    let mut script = script(&["a", "b", "c"], LOOPING, SCREENS, 100);
    assert_eq!(start(&mut script), None);
    add(&mut script, "bad", 8);
    add(&mut script, "good", 8);
    let orders = prepared(&mut script, 8);
    assert_eq!(orders.len(), 5);
    assert!(orders.iter().all(|(_, _, enhance)| !enhance));
    for (id, prompt, _) in orders {
        match prompt.as_str() {
            "a" | "bad" => script.blocked(id),
            _ => script.prepared(id, Outcome::AsWritten),
        }
    }
    let order: Vec<_> = (0..4).map(|_| next(&mut script).unwrap()).collect();
    assert_eq!(order, ["good", "b", "c", "b"]);
}

#[test]
fn a_follow_on_is_asked_for_while_the_segment_before_it_runs() {
    let mut script = script(&[], EXTENDING, WRITES, 100);
    assert_eq!(extension(&mut script), None, "nothing to go on from");
    add(&mut script, "a", 8);
    start(&mut script);
    let (id, story) = extension(&mut script).unwrap();
    assert_eq!(story, ["a"]);
    assert_eq!(extension(&mut script), None, "once");
    script.extended(id, Some("b".to_owned()));
    script.segment_finished();
    let ask = script.next(&config()).unwrap();
    assert_eq!(ask.request.prompt, "b");
    assert_eq!(
        ask.request.source,
        fastvideo_proto::client::PromptSource::AutoExtension
    );
    let (_, story) = extension(&mut script).unwrap();
    assert_eq!(story, ["a", "b"]);
}

#[test]
fn a_request_goes_before_a_follow_on_which_is_written_anew() {
    let mut script = script(&[], EXTENDING, WRITES, 100);
    add(&mut script, "a", 8);
    start(&mut script);
    let (old, _) = extension(&mut script).unwrap();
    add(&mut script, "user", 8);
    script.segment_finished();
    assert_eq!(start(&mut script).as_deref(), Some("user"));
    assert!(!script.awaits(old));
    script.extended(old, Some("b".to_owned()));
    let (new, story) = extension(&mut script).unwrap();
    assert_eq!(story, ["a", "user"]);
    script.extended(new, Some("c".to_owned()));
    script.segment_finished();
    assert_eq!(next(&mut script).as_deref(), Some("c"));
}

#[test]
fn without_a_follow_on_the_last_prompt_runs_again_and_counts_once() {
    let mut script = script(&[], EXTENDING, WRITES, 100);
    add(&mut script, "a", 8);
    start(&mut script);
    let (id, _) = extension(&mut script).unwrap();
    script.extended(id, None);
    script.segment_finished();
    assert_eq!(start(&mut script).as_deref(), Some("a"));
    let (_, story) = extension(&mut script).unwrap();
    assert_eq!(story, ["a", "a"], "the one that runs is the last one");
    script.segment_finished();
    assert_eq!(script.story, ["a"]);
}

#[test]
fn a_follow_on_that_is_blocked_is_written_anew_after_a_rest() {
    let mut script = script(&[], EXTENDING, WRITES, 100);
    add(&mut script, "a", 8);
    start(&mut script);
    let (id, _) = extension(&mut script).unwrap();
    script.blocked(id);
    script.resting = true;
    assert_eq!(extension(&mut script), None);
    script.segment_finished();
    assert_eq!(start(&mut script), None);
    script.resting = false;
    assert!(extension(&mut script).is_some());
}

#[test]
fn a_story_is_told_from_its_last_prompts() {
    let mut script = script(&[], EXTENDING, WRITES, 100);
    for n in 0..20 {
        add(&mut script, &n.to_string(), 8);
        next(&mut script);
    }
    add(&mut script, "last", 8);
    start(&mut script);
    let (_, story) = extension(&mut script).unwrap();
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
        let mut script = script(curated, Switches::default(), WRITES, cap);
        add(&mut script, "first", 8);
        assert_eq!(start(&mut script).as_deref(), Some("first"), "{row:?}");
        script.looping = row.looping;
        script.set_extending(row.extending);
        script.paused = row.paused;
        if row.requested {
            add(&mut script, "request", 8);
        }
        let written = extension(&mut script);
        let loops = row.looping && row.curated;
        let wanted = row.extending && !row.capped && !row.requested && !loops;
        assert_eq!(written.is_some(), wanted, "{row:?}");
        if let Some((order, story)) = written {
            assert_eq!(story, ["first"], "{row:?}");
            script.extended(order, Some("extension".to_owned()));
        }
        match row.cancelled {
            true => script.segment_dropped(),
            false => script.segment_finished(),
        }
        assert_eq!(
            script.is_complete(),
            row.capped && !row.cancelled,
            "{row:?}"
        );
        assert_eq!(start(&mut script).as_deref(), row.second(), "{row:?}");
        // What a pause has held back comes when it ends.
        script.paused = false;
        let resumed = Row {
            paused: false,
            ..row
        };
        if row.paused {
            assert_eq!(start(&mut script).as_deref(), resumed.second(), "{row:?}");
        }
    }
}
