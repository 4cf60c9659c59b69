use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::command::*;
use super::event::*;
use super::rewriting::RewriteEnd;
use super::*;
use crate::session::playlist::{PromptTask, PromptWork};
use crate::session::prompt_draft::PreparedDraft;
use crate::session::tests::config;

mod table;

const PLAIN: PromptAbilities = PromptAbilities {
    write: false,
    filter: None,
};
const SCREENS: PromptAbilities = PromptAbilities {
    write: false,
    filter: Some(1),
};
const WRITES: PromptAbilities = PromptAbilities {
    write: true,
    filter: None,
};
const CAP: u32 = 6;

/// Rollouts, and what they have said.
struct Stage {
    rollouts: Rollouts,
    /// The prompt of the running segment.
    running: Option<String>,
}

fn seeds(texts: &[&str]) -> ProjectSetup {
    ProjectSetup {
        seed_prompts: texts.iter().map(|&text| text.to_owned()).collect(),
        ..ProjectSetup::default()
    }
}

fn from_prompt(prompt: &str) -> ProjectSetup {
    ProjectSetup {
        rollout_prompt: prompt.to_owned(),
        ..ProjectSetup::default()
    }
}

fn prompt(id: &str, text: &str) -> UserPrompt {
    UserPrompt {
        id: id.to_owned(),
        text: text.to_owned(),
    }
}

impl Stage {
    fn new(setup: ProjectSetup, can: PromptAbilities) -> Self {
        Self {
            rollouts: Rollouts::new(setup, can, CAP, 4000),
            running: None,
        }
    }

    /// A session that has its worker.
    fn live(setup: ProjectSetup, can: PromptAbilities) -> Self {
        let mut stage = Self::new(setup, can);
        stage.rollouts.begin();
        stage
    }

    /// A word or two for each thing that was said.
    fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(next) = self.rollouts.take_said() {
            said.push(words(next));
        }
        said
    }

    /// Begins the next segment, if there is one, as a session does.
    fn start(&mut self) -> bool {
        assert_eq!(self.running, None, "a segment runs");
        self.rollouts.at_boundary();
        let planned = self.rollouts.next(&config(), true);
        self.running = planned.map(|planned| planned.request.prompt);
        self.running.is_some()
    }

    fn finish(&mut self) {
        assert!(self.running.take().is_some(), "no segment runs");
        self.rollouts.segment_finished();
    }

    /// Makes segments for as long as there are some, and returns their prompts.
    fn play(&mut self) -> Vec<String> {
        let mut prompts = Vec::new();
        while self.start() {
            prompts.extend(self.running.clone());
            self.finish();
        }
        prompts
    }

    fn task(&mut self) -> PromptTask {
        let mut tasks = self.rollouts.take_tasks();
        assert_eq!(tasks.len(), 1, "{tasks:?}");
        tasks.remove(0)
    }

    /// Ends the rewrite that runs, with these prompts.
    fn rewrite_to(&mut self, prompts: &[&str]) {
        let task = self.task();
        assert!(matches!(task.work, PromptWork::Rollout { .. }), "{task:?}");
        let by = RewrittenBy::Nobody {
            model: String::new(),
            latency: Duration::ZERO,
            reason: "no model".to_owned(),
        };
        let prompts = prompts.iter().map(|&text| text.to_owned()).collect();
        (self.rollouts).rewritten(task.id, RewriteEnd::Written(by, prompts), Duration::ZERO);
    }

    fn rewrite(&mut self, instruction: &str) {
        self.rollouts.rewrite(RewriteAsk {
            instruction: instruction.to_owned(),
            ..RewriteAsk::default()
        });
    }
}

fn words(said: Said) -> String {
    use RolloutEvent as E;
    let event = match said {
        Said::BeginAnew => return "anew".to_owned(),
        Said::Tell(event) => event,
    };
    match event {
        E::Started(started) => format!("start {}/{}", started.loop_iteration, started.seed_prompts),
        E::SeedPrompts { prompts, .. } => format!("seeds {}", prompts.len()),
        E::Reset {
            reason, dropped, ..
        } => format!("reset {reason:?} {}+{}", dropped.raw, dropped.ready),
        E::ResetPending { .. } => "reset pending".to_owned(),
        E::Restarted { .. } => "restarted".to_owned(),
        E::Planned(planned) => {
            let PlannedPrompt {
                segment_idx,
                origin,
                text,
                ..
            } = planned;
            format!("segment {segment_idx} {origin:?} {text}")
        }
        E::Completed => "complete".to_owned(),
        E::Idle(dropped) => format!("idle {}+{}", dropped.raw, dropped.ready),
        E::PromptReceived { id, queue_depth } => format!("received {id} {queue_depth}"),
        E::PromptEnhancing { id } => format!("enhancing {id}"),
        E::PromptReady(ready) => format!("ready {} {:?}", ready.id, ready.origin),
        E::PromptFallback { prompt, .. } => format!("fallback {}", prompt.id),
        E::Blocked { segment_idx } => format!("dry {segment_idx}"),
        E::Resumed { source, .. } => format!("resumed {source:?}"),
        E::ExtensionFailed { segment_idx, .. } => format!("no extension {segment_idx}"),
        E::RewriteStarted { .. } => "rewriting".to_owned(),
        E::Rewritten(rewritten) => format!("rewritten {}", rewritten.prompts.len()),
        E::RewriteBlocked { .. } => "rewrite blocked".to_owned(),
        E::EnhancementSet(on) => format!("enhancement {on}"),
        E::ExtensionSet(on) => format!("extension {on}"),
        E::LoopSet(on) => format!("loop {on}"),
        E::PausedSet(on) => format!("paused {on}"),
        E::RewriteModelSet(model) => format!("model {model}"),
        E::RewriteTemperatureSet(temperature) => format!("temperature {temperature}"),
        E::Refused(why) => format!("refused: {why}"),
    }
}

#[test]
fn a_session_with_seed_prompts_plays_them_and_runs_dry() {
    let mut stage = Stage::new(seeds(&["a", "b"]), PLAIN);
    assert!(!stage.start() && stage.said().is_empty(), "no worker yet");
    stage.rollouts.begin();
    let opening = ["loop false", "paused false", "anew", "start 1/2", "seeds 2"];
    assert_eq!(stage.said(), opening);
    assert_eq!(stage.play(), ["a", "b"]);
    assert_eq!(
        stage.said(),
        ["segment 0 Seed a", "segment 1 Seed b", "dry 2"]
    );
    assert!(!stage.start() && stage.said().is_empty(), "told once");
    stage.rollouts.append(prompt("p", "c"), 8);
    assert_eq!(stage.play(), ["c"]);
    assert_eq!(
        stage.said(),
        [
            "received p 1",
            "ready p User",
            "resumed User",
            "segment 2 User c",
            "dry 3"
        ]
    );
}

#[test]
fn a_prompt_is_written_out_first() {
    let mut stage = Stage::live(from_prompt("a fox"), PLAIN);
    assert_eq!(stage.said(), ["loop false", "paused true", "rewriting"]);
    assert!(!stage.start());
    stage.rollouts.append(prompt("p", "c"), 8);
    assert!(stage.said()[0].starts_with("refused: "));
    stage.rewrite_to(&["1", "2", "3", "4", "5", "6"]);
    assert_eq!(stage.said(), ["paused false", "rewritten 6"]);
    assert_eq!(stage.play(), ["1", "2", "3", "4", "5", "6"]);
    let said = stage.said();
    assert_eq!(said[..3], ["anew", "start 1/6", "reset InitialRewrite 0+0"]);
    assert_eq!(said.last().unwrap(), "complete");
    assert!(
        stage.play().is_empty() && stage.said().is_empty(),
        "it waits"
    );
}

#[test]
fn a_prompt_that_is_blocked_leaves_a_way_on() {
    let mut stage = Stage::live(from_prompt("bad"), PLAIN);
    stage.said();
    let task = stage.task().id;
    let end = RewriteEnd::Blocked("not that".to_owned());
    stage.rollouts.rewritten(task, end, Duration::ZERO);
    assert_eq!(stage.said(), ["rewrite blocked", "complete"]);
    stage.rewrite("");
    assert_eq!(stage.said(), ["refused: there is nothing to rewrite"]);
    stage.rewrite("a fox");
    assert_eq!(stage.said(), ["rewriting"]);
    stage.rewrite_to(&["1"; 6]);
    assert_eq!(stage.play().len(), 6);
    let said = stage.said();
    assert_eq!(said[..2], ["paused false", "rewritten 6"]);
    assert_eq!(said[4], "reset InitialRewrite 0+0");
}

#[test]
fn a_rewrite_after_the_cap_begins_another_rollout_and_the_count_anew() {
    let mut stage = Stage::live(seeds(&["a"; 6]), PLAIN);
    assert_eq!(stage.play().len(), 6);
    assert_eq!(stage.said().last().unwrap(), "complete");
    stage.rewrite("at night");
    stage.rewrite("at night");
    let said = stage.said();
    assert_eq!(
        said,
        [
            "rewriting",
            "refused: the prompts are being rewritten already"
        ]
    );
    stage.rewrite_to(&["b"; 6]);
    assert_eq!(stage.play(), ["b"; 6]);
    let said = stage.said();
    assert_eq!(
        said[..4],
        [
            "rewritten 6",
            "anew",
            "start 2/6",
            "reset RewriteRollout 0+0"
        ]
    );
    assert_eq!(said.last().unwrap(), "complete");
    stage.rewrite("bad");
    let task = stage.task().id;
    let end = RewriteEnd::Blocked("not that".to_owned());
    stage.rollouts.rewritten(task, end, Duration::ZERO);
    assert_eq!(stage.said(), ["rewriting", "rewrite blocked"]);
}

#[test]
fn a_rewrite_during_a_segment_holds_the_next_one_back_and_makes_the_running_one_vain() {
    let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
    assert!(stage.start());
    stage.rewrite("at night");
    assert!(
        !stage.rollouts.is_running_in_vain(),
        "nothing is written yet"
    );
    stage.finish();
    assert!(!stage.start(), "it waits for the rewrite");
    stage.said();
    stage.rewrite_to(&["c", "d"]);
    assert_eq!(stage.play(), ["c", "d"]);
    let said = stage.said();
    assert_eq!(
        said[..4],
        [
            "rewritten 2",
            "anew",
            "start 2/2",
            "reset RewriteDuringGeneration 0+0"
        ]
    );
    stage.rollouts.append(prompt("p", "e"), 8);
    assert!(stage.start());
    stage.rewrite("");
    stage.rewrite_to(&["f"]);
    assert!(stage.rollouts.is_running_in_vain());
    stage.rollouts.segment_cancelled();
    stage.running = None;
    assert_eq!(stage.play(), ["f"]);
}

#[test]
fn a_rewrite_while_paused_is_only_stored() {
    let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
    assert!(stage.start());
    stage.rollouts.set_paused(Some(true));
    stage.finish();
    stage.rewrite("");
    stage.rewrite_to(&["c", "d"]);
    stage.said();
    assert!(!stage.start() && stage.said().is_empty());
    stage.rollouts.set_paused(Some(false));
    assert_eq!(stage.play(), ["d"], "the rollout goes on where it was");
}

#[test]
fn a_loop_begins_again_until_the_cap() {
    let mut setup = seeds(&["a", "b"]);
    setup.switches.looping = true;
    let mut stage = Stage::live(setup, PLAIN);
    assert_eq!(stage.play(), ["a", "b", "a", "b", "a", "b"]);
    let said = stage.said();
    let starts = said
        .iter()
        .filter(|it| it.starts_with("start"))
        .collect::<Vec<_>>();
    assert_eq!(starts, ["start 1/2", "start 2/2", "start 3/2"]);
    assert_eq!(said.iter().filter(|it| *it == "reset Loop 0+0").count(), 2);
    assert_eq!(said.last().unwrap(), "complete");
    assert_eq!(said.iter().filter(|it| *it == "complete").count(), 1);
}

#[test]
fn the_clients_prompts_come_first_but_for_the_first_seed_after_a_reset() {
    let mut stage = Stage::live(seeds(&["a", "b", "c"]), PLAIN);
    assert!(stage.start());
    stage.rollouts.append(prompt("p", "x"), 8);
    stage.finish();
    assert!(stage.start());
    assert_eq!(
        stage.running.as_deref(),
        Some("x"),
        "a seed is not consumed by it"
    );
    stage.rollouts.append(prompt("q", "y"), 8);
    stage.rollouts.reset();
    stage.finish();
    stage.said();
    stage.rollouts.at_boundary();
    assert_eq!(stage.said()[2], "reset ManualReset 0+1");
    stage.rollouts.append(prompt("r", "z"), 8);
    assert_eq!(stage.play(), ["a", "z", "b", "c"]);
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let mut stage = Stage::live(seeds(&["a"]), PLAIN);
    stage.said();
    stage.rollouts.begin_another(seeds(&["b"]));
    stage.rollouts.append(prompt("p", "x"), 1);
    stage.rollouts.append(prompt("q", "y"), 1);
    let said = stage.said();
    assert!(
        said[0].starts_with("refused: a project is running"),
        "{said:?}"
    );
    assert_eq!(said[1..3], ["received p 1", "ready p User"]);
    assert_eq!(
        said[3],
        "refused: 1 prompts wait already, which is the limit"
    );
    stage.rollouts.append(prompt("p", "x"), 8);
    assert!(stage.said()[0].contains("`prompt_id`"));
    stage.rollouts.end_project();
    stage.rollouts.at_boundary();
    assert_eq!(stage.said(), ["anew", "complete", "idle 0+1"]);
    stage.rollouts.append(prompt("p", "x"), 8);
    stage.rewrite("x");
    stage.rollouts.reset();
    stage.rollouts.restart();
    let said = stage.said();
    assert_eq!(said.len(), 4);
    assert!(
        said.iter()
            .all(|it| it.starts_with("refused: there is no project")),
        "{said:?}"
    );
    stage.rollouts.end_project();
    assert_eq!(stage.said(), ["idle 0+0"], "it is told again");
    stage.rollouts.set_looping(None);
    assert_eq!(stage.said(), ["loop false"]);
}

#[test]
fn a_project_follows_another_on_the_same_session() {
    let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
    assert!(stage.start());
    stage.rollouts.end_project();
    assert!(stage.rollouts.is_running_in_vain());
    stage.said();
    stage.rollouts.segment_cancelled();
    stage.running = None;
    stage.rollouts.at_boundary();
    assert_eq!(stage.said(), ["anew", "complete", "idle 0+0"]);
    stage.rollouts.begin_another(seeds(&["c"]));
    assert_eq!(stage.said(), ["anew", "start 1/1", "reset ProjectInit 0+0"]);
    assert_eq!(stage.play(), ["c"]);
    stage.rollouts.end_project();
    stage.rollouts.at_boundary();
    stage.said();
    stage.rollouts.begin_another(from_prompt("a fox"));
    assert_eq!(stage.said(), ["rewriting"]);
    stage.rollouts.end_project();
    stage.rollouts.at_boundary();
    assert_eq!(stage.said(), ["anew", "idle 0+0"], "nothing was shown");
    assert!(
        stage.rollouts.take_tasks().is_empty(),
        "the rewrite is cancelled"
    );
}

#[test]
fn a_clip_is_a_rollout_of_one_segment() {
    let setup = ProjectSetup {
        single_clip: true,
        ..from_prompt("a fox")
    };
    let mut stage = Stage::live(setup, PLAIN);
    assert_eq!(stage.play(), ["a fox"]);
    let said = stage.said();
    assert_eq!(
        said[2..],
        [
            "anew",
            "start 1/1",
            "seeds 1",
            "segment 0 Seed a fox",
            "complete"
        ]
    );
    for turn in 2..4 {
        stage.rollouts.make_clip(Clip {
            prompt: prompt("p", "a hill"),
            enhance: true,
            preset: PresetName::default(),
        });
        assert_eq!(stage.said(), ["received p 1"]);
        stage.rollouts.at_boundary();
        stage.rollouts.take_tasks();
        assert_eq!(stage.play(), ["a hill"]);
        let said = stage.said();
        let start = format!("start {turn}/0");
        assert_eq!(
            said[..3],
            ["anew", start.as_str(), "reset SimpleGenerate 0+0"]
        );
        assert_eq!(said.last().unwrap(), "complete");
    }
}

#[test]
fn a_prompt_is_used_once_it_is_prepared() {
    let mut stage = Stage::live(seeds(&[]), SCREENS);
    assert!(!stage.start());
    assert_eq!(stage.said()[4..], ["seeds 0", "dry 0"]);
    stage.rollouts.append(prompt("p", "x"), 8);
    stage.rollouts.append(prompt("q", "y"), 8);
    let tasks = stage.rollouts.take_tasks();
    assert_eq!(tasks.len(), 2);
    assert!(!stage.start() && stage.rollouts.is_preparing());
    assert!(stage.rollouts.remove(tasks[0].id), "the first is blocked");
    stage
        .rollouts
        .prepared(tasks[1].id, PreparedDraft::AsWritten, None);
    assert!(!stage.rollouts.awaits(tasks[1].id));
    assert_eq!(stage.play(), ["y"]);
    let said = stage.said();
    assert_eq!(
        said[..4],
        [
            "received p 1",
            "received q 2",
            "ready q User",
            "resumed User"
        ]
    );
}

#[test]
fn a_model_enhances_and_goes_on_with_the_story() {
    let mut setup = seeds(&["a"]);
    setup.switches = ProjectSwitches {
        enhancing: true,
        extending: true,
        looping: false,
    };
    let mut stage = Stage::live(setup, WRITES);
    assert!(stage.start());
    let task = stage.task();
    let PromptWork::Extend { story } = task.work else {
        panic!("{task:?}");
    };
    assert_eq!(story, ["a"]);
    stage.finish();
    assert!(!stage.start() && stage.rollouts.is_preparing());
    stage.rollouts.extended(task.id, Ok("b".to_owned()));
    assert!(stage.start());
    let task = stage.task();
    stage.rollouts.extended(task.id, Err("no".to_owned()));
    stage.finish();
    stage.said();
    assert!(!stage.start());
    assert_eq!(stage.said(), ["dry 2"]);
    assert!(
        stage.rollouts.take_tasks().is_empty(),
        "only the client's switch tries again"
    );
    stage.rollouts.set_extending(Some(true));
    assert_eq!(
        stage.task().work,
        PromptWork::Extend {
            story: vec!["a".to_owned(), "b".to_owned()]
        }
    );
    stage.rollouts.append(prompt("p", "x"), 8);
    assert_eq!(
        stage.said(),
        ["extension true", "received p 1", "enhancing p"]
    );
    let task = stage.task();
    stage
        .rollouts
        .prepared(task.id, PreparedDraft::NotEnhanced, Some("late".to_owned()));
    assert_eq!(stage.said(), ["fallback p", "ready p User"]);
    assert!(stage.start());
}

#[test]
fn an_extension_that_nobody_can_write_is_not_waited_for() {
    let mut setup = seeds(&["a"]);
    setup.switches.extending = true;
    let mut stage = Stage::live(setup, PLAIN);
    assert_eq!(stage.play(), ["a"]);
    assert_eq!(stage.said().last().unwrap(), "dry 1");
}

#[test]
fn seed_prompts_wait_for_a_filter_that_came_with_a_reload() {
    let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
    assert!(stage.start());
    stage.rollouts.set_abilities(SCREENS);
    stage.finish();
    assert!(!stage.start() && !stage.rollouts.goes_on_alone());
    let task = stage.task();
    assert!(matches!(task.work, PromptWork::Screen { .. }), "{task:?}");
    assert!(stage.rollouts.is_preparing() && stage.rollouts.awaits(task.id));
    stage.rollouts.screened(task.id, true);
    assert_eq!(stage.play(), ["b"]);
    assert!(stage.rollouts.take_tasks().is_empty());

    let another = PromptAbilities {
        write: false,
        filter: Some(2),
    };
    stage.rollouts.set_abilities(another);
    stage.rollouts.reset();
    assert!(!stage.start());
    let task = stage.task();
    stage.said();
    stage.rollouts.screened(task.id, false);
    assert_eq!(stage.said(), ["complete"]);
    stage.rewrite("c");
    assert_eq!(stage.said(), ["rewriting"]);
}

#[test]
fn a_segment_that_is_given_up_ends_its_rollout_and_a_rewrite_goes_on() {
    let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
    assert!(stage.start());
    stage.said();
    stage.rollouts.segment_failed();
    stage.running = None;
    assert_eq!(stage.said(), ["complete"]);
    assert!(!stage.start());
    stage.rewrite("");
    stage.rewrite_to(&["c"]);
    assert_eq!(stage.play(), ["c"]);
}

#[test]
fn a_restart_lifts_the_pause_and_the_cap() {
    let mut stage = Stage::live(seeds(&["a"; 6]), PLAIN);
    stage.play();
    stage.rollouts.set_paused(Some(true));
    stage.said();
    stage.rollouts.restart();
    assert_eq!(stage.said(), ["restarted"]);
    assert_eq!(stage.play().len(), 6);
    assert_eq!(stage.said()[2], "reset CapRestart 0+0");
}

/// What a client knows after what was said to it.
#[derive(Debug, Default)]
struct Shown {
    is_open: bool,
    /// The index of the next segment of the rollout.
    next: u32,
    has_project: bool,
    /// Whether the project has had a rollout.
    has_begun: bool,
}

impl Shown {
    fn see(&mut self, said: &Said) {
        let Said::Tell(event) = said else {
            return;
        };
        match event {
            RolloutEvent::Started(_) => {
                (self.is_open, self.next, self.has_project) = (true, 0, true);
                self.has_begun = true;
            }
            RolloutEvent::RewriteStarted { .. } => self.has_project = true,
            RolloutEvent::Planned(planned) => {
                assert!(self.is_open, "a segment without a rollout");
                assert_eq!(planned.segment_idx, self.next, "a gap");
            }
            RolloutEvent::Completed => {
                assert!(self.is_open || !self.has_begun, "complete twice");
                self.is_open = false;
            }
            RolloutEvent::Idle(_) => {
                assert!(!self.is_open, "idle with a rollout");
                (self.has_project, self.has_begun) = (false, false);
            }
            _ => {}
        }
    }
}

/// One thing that happens, chosen at random.
fn happen(
    stage: &mut Stage,
    shown: &mut Shown,
    random: &mut SmallRng,
    tasks: &mut Vec<PromptTask>,
) {
    let rollouts = &mut stage.rollouts;
    let flip = random.random_bool(0.5);
    match random.random_range(0..22) {
        0..5 if stage.running.is_none() => {
            stage.start();
        }
        5..8 if stage.running.is_some() => {
            stage.finish();
            shown.next += 1;
        }
        8 if stage.running.is_some() => {
            stage.running = None;
            rollouts.segment_failed();
        }
        9 if stage.running.is_some() && rollouts.is_running_in_vain() => {
            stage.running = None;
            rollouts.segment_cancelled();
        }
        10 => rollouts.end_project(),
        11 => {
            rollouts.begin_another(if flip {
                seeds(&["a", "b"])
            } else {
                from_prompt("a")
            });
        }
        12 => rollouts.append(prompt(&random.random::<u64>().to_string(), "x"), 3),
        13 => rollouts.rewrite(RewriteAsk {
            instruction: if flip {
                "night".to_owned()
            } else {
                String::new()
            },
            ..RewriteAsk::default()
        }),
        14 => rollouts.reset(),
        15 => rollouts.restart(),
        16 => rollouts.set_paused(Some(flip)),
        17 => rollouts.set_looping(Some(flip)),
        18 => rollouts.set_extending(Some(flip)),
        19 if flip => {
            rollouts.make_clip(Clip {
                prompt: prompt("clip", "x"),
                enhance: flip,
                preset: PresetName::default(),
            });
        }
        20 | 21 => {
            tasks.extend(rollouts.take_tasks());
            if tasks.is_empty() {
                return;
            }
            let task = tasks.swap_remove(random.random_range(0..tasks.len()));
            match task.work {
                PromptWork::Prepare { .. } if flip => {
                    rollouts.prepared(task.id, PreparedDraft::AsWritten, None);
                }
                PromptWork::Prepare { .. } => {
                    rollouts.remove(task.id);
                }
                PromptWork::Screen { .. } => rollouts.screened(task.id, flip),
                PromptWork::Extend { .. } => {
                    let result = if flip {
                        Ok("e".to_owned())
                    } else {
                        Err("no".to_owned())
                    };
                    rollouts.extended(task.id, result);
                }
                PromptWork::Rollout { request, .. } => {
                    let by = RewrittenBy::Nobody {
                        model: String::new(),
                        latency: Duration::ZERO,
                        reason: "none".to_owned(),
                    };
                    let end = match flip {
                        true => RewriteEnd::Written(by, vec!["w".to_owned(); request.count]),
                        false => RewriteEnd::Blocked("no".to_owned()),
                    };
                    rollouts.rewritten(task.id, end, Duration::ZERO);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn whatever_happens_the_client_sees_whole_rollouts_and_has_a_way_on() {
    let both = PromptAbilities {
        write: true,
        filter: Some(1),
    };
    for seed in 0..400 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut shown = Shown::default();
        let mut tasks = Vec::new();
        let setup = if seed % 2 == 0 {
            seeds(&["a", "b"])
        } else {
            from_prompt("a")
        };
        let mut stage = Stage::live(setup, if seed % 3 == 0 { both } else { PLAIN });
        let see = |stage: &mut Stage, shown: &mut Shown| {
            while let Some(said) = stage.rollouts.take_said() {
                shown.see(&said);
            }
        };
        for _ in 0..300 {
            happen(&mut stage, &mut shown, &mut random, &mut tasks);
            see(&mut stage, &mut shown);
        }
        // The client can always end, and begin again.
        if stage.running.take().is_some() {
            stage.rollouts.segment_finished();
        }
        stage.rollouts.end_project();
        stage.rollouts.at_boundary();
        see(&mut stage, &mut shown);
        assert!(!shown.has_project && !shown.is_open, "seed {seed}");
        stage.rollouts.begin_another(seeds(&["z"]));
        see(&mut stage, &mut shown);
        for task in stage.rollouts.take_tasks() {
            stage.rollouts.screened(task.id, true);
        }
        assert_eq!(stage.play(), ["z"], "seed {seed}");
    }
}
