//! Every command in every state of a session that has its worker.

use super::*;

/// What a client hears at once, and after `->` what it hears until the next segment has begun or the session waits. A running
/// segment is finished first.
const TABLE: &str = include_str!("table.txt");

type State = (&'static str, fn() -> Stage);
type Command = (&'static str, fn(&mut Rollouts));

const STATES: &[State] = &[
    ("first rewrite", || Stage::live(from_prompt("a"), PLAIN)),
    ("first rewrite blocked", || {
        let mut stage = Stage::live(from_prompt("a"), PLAIN);
        stage.block();
        stage
    }),
    ("running", || {
        let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
        assert!(stage.start());
        stage
    }),
    ("running while rewritten", || {
        let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
        assert!(stage.start());
        stage.rewrite("at dusk");
        stage
    }),
    ("dry", || {
        let mut stage = Stage::live(seeds(&["a"]), PLAIN);
        stage.play();
        stage
    }),
    ("paused", || {
        let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
        assert!(stage.start());
        stage.rollouts.set_paused(Some(true));
        stage.finish();
        assert!(!stage.start());
        stage
    }),
    ("at the cap", || {
        let mut stage = Stage::live(seeds(&["a"; 6]), PLAIN);
        stage.play();
        stage
    }),
    ("given up", || {
        let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
        assert!(stage.start());
        stage.rollouts.segment_failed();
        stage.running = None;
        stage
    }),
    ("clip made", || {
        let mut setup = seeds(&["a"]);
        setup.single_clip = true;
        let mut stage = Stage::live(setup, PLAIN);
        stage.play();
        stage
    }),
    ("ending", || {
        let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
        assert!(stage.start());
        stage.rollouts.end_project();
        stage
    }),
    ("idle", || {
        let mut stage = Stage::live(seeds(&["a", "b"]), PLAIN);
        stage.rollouts.end_project();
        stage.rollouts.at_boundary();
        stage
    }),
];

const COMMANDS: &[Command] = &[
    ("project_init_v1", |rollouts| {
        rollouts.begin_another(seeds(&["n"]));
    }),
    ("end_project_keep_session", Rollouts::end_project),
    ("rewrite_seed_prompts", |rollouts| {
        rollouts.rewrite(RewriteAsk {
            instruction: "at night".to_owned(),
            ..RewriteAsk::default()
        });
    }),
    ("append_prompt", |rollouts| {
        rollouts.append(prompt("u", "x"), 8)
    }),
    ("simple_generate", |rollouts| {
        rollouts.make_clip(Clip {
            prompt: prompt("c", "y"),
            enhance: false,
            preset: PresetName::default(),
        });
    }),
    ("set_enhancement", |rollouts| {
        rollouts.set_enhancing(Some(true))
    }),
    ("set_auto_extension", |rollouts| {
        rollouts.set_extending(Some(true));
    }),
    ("set_loop_generation", |rollouts| {
        rollouts.set_looping(Some(true));
    }),
    ("set_generation_paused", |rollouts| {
        rollouts.set_paused(Some(true));
    }),
    ("reset_to_seed_prompts", Rollouts::reset),
    ("restart_generation", Rollouts::restart),
    ("set_rewrite_model", |rollouts| {
        rollouts.set_rewrite_model("m".to_owned());
    }),
    ("set_rewrite_temperature", |rollouts| {
        rollouts.set_rewrite_temperature(Some(0.5), 1.0);
    }),
];

impl Stage {
    /// Ends the rewrite that runs: the filter blocks it.
    fn block(&mut self) {
        let task = self.task();
        let end = RewriteEnd::Blocked("not that".to_owned());
        self.rollouts.rewritten(task.id, end, Duration::ZERO);
    }

    /// Finishes what runs, and begins what is next, if anything is.
    fn go_on(&mut self) {
        if self.running.is_some() {
            self.finish();
        }
        self.start();
    }
}

#[test]
fn every_command_in_every_state() {
    let mut table = String::new();
    for (state, reach) in STATES {
        table += &format!("{state}\n");
        for (command, give) in COMMANDS {
            let mut stage = reach();
            stage.said();
            give(&mut stage.rollouts);
            let at_once = stage.said().join(", ");
            stage.go_on();
            let then = stage.said().join(", ");
            table += format!("  {command}: {at_once} -> {then}").trim_end();
            table.push('\n');
        }
        table.push('\n');
    }
    assert!(
        table.trim_end() == TABLE.trim_end(),
        "the table is now\n{table}"
    );
}
