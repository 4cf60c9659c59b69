//! A session's log as a drawing: a lane for each thing that takes time, one below the other on the same time line.

use std::fmt::{self, Write};

use fastvideo_proto::job::Stage;
use fastvideo_supervisor_core::session::SessionState;
use fastvideo_supervisor_core::session::log::LogEvent as Event;

use super::history::{Attempt, History, Outcome};
use super::text::{COLUMNS, begun, cells, ms, remark, shortened, wire_name};

/// Pixels on the left of the lanes, for their names.
const LEFT: f64 = 112.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 84.0;
const LANE: f64 = 30.0;
/// Of a bar in its lane.
const BAR: f64 = 20.0;
const MIN_PLOT: f64 = 1128.0;
/// Chromium and others draw no further than twice that.
const MAX_PLOT: f64 = 16_000.0;
/// What a usual segment should have, so that its prompt can be read.
const SEGMENT: f64 = 190.0;
/// Average width of a letter, of the size of labels.
const LETTER: f64 = 6.4;
/// Pixels of what takes no time.
const MARK: f64 = 4.0;
/// Pixels between two marks, at least.
const MARKS_APART: f64 = 8.0;
/// Rows of the table.
const MAX_ROWS: usize = 60;
/// Of a prompt in the table.
const PROMPT_CHARS: usize = 68;
const ROW: f64 = 20.0;

const STYLE: &str = "
    text { font: 11px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #334155 }
    .title { font-size: 18px; font-weight: 600; fill: #0f172a }
    .sub, .tick, .head { fill: #64748b }
    .head { font-weight: 600 }
    .lane { font-weight: 600; fill: #475569; text-anchor: end }
    .num { text-anchor: end; font-variant-numeric: tabular-nums }
    .in { fill: #fff; pointer-events: none }
    .grid { stroke: #e2e8f0 } .rule { stroke: #f1f5f9 }
    .prompt { fill: #eef2ff; stroke: #a5b4fc }
    .promptname { fill: #3730a3; pointer-events: none }
    .llm { fill: #a855f7; fill-opacity: .8 } .blocked { fill: #dc2626 }
    .queue { fill: #f59e0b } .denoise { fill: #3b82f6 } .odd { fill: #1d4ed8 }
    .decode { fill: #14b8a6 } .encode { fill: #ccfbf1 } .sent { fill: #22c55e } .lost { fill: #cbd5e1 }
    .state-active { fill: #bbf7d0 } .state-wait { fill: #fde68a } .state-end { fill: #e2e8f0 }
    .worker { fill: #e0e7ff } .message { fill: #64748b }
    .fault { stroke: #dc2626; stroke-width: 1.5; stroke-dasharray: 4 3 } .faultname { fill: #dc2626; font-weight: 600 }
";

/// An SVG document.
pub(super) fn draw(history: &History) -> String {
    let mut out = String::new();
    let plot = Plot::new(history);
    plot.write(&mut out).expect("a string takes any text");
    out
}

struct Plot<'a> {
    history: &'a History,
    /// Pixels of a second.
    scale: f64,
    width: f64,
}

/// The lanes from top to bottom.
#[derive(Clone, Copy)]
enum Lane {
    State,
    Worker,
    Client,
    Prompt,
    /// Two segments overlap: one is on its way while the next is made.
    OtherPrompt,
    Llm,
    Queue,
    Denoise,
    Decode,
    Encode,
    Sent,
}

const LANES: [(Lane, &str); 11] = [
    (Lane::State, "session"),
    (Lane::Worker, "worker"),
    (Lane::Client, "client says"),
    (Lane::Prompt, "segments"),
    (Lane::OtherPrompt, ""),
    (Lane::Llm, "LLM"),
    (Lane::Queue, "queue"),
    (Lane::Denoise, "denoise"),
    (Lane::Decode, "decode"),
    (Lane::Encode, "encode"),
    (Lane::Sent, "media sent"),
];

impl Lane {
    fn top(self) -> f64 {
        TOP + f64::from(self as u8) * LANE + (LANE - BAR) / 2.0
    }
}

const BOTTOM: f64 = TOP + LANE * LANES.len() as f64;

impl<'a> Plot<'a> {
    fn new(history: &'a History) -> Self {
        let mut lengths: Vec<f64> = history
            .attempts
            .iter()
            .map(|attempt| attempt.end() - attempt.asked)
            .collect();
        lengths.sort_by(f64::total_cmp);
        let usual = lengths.get(lengths.len() / 2).copied().unwrap_or_default();
        let wanted = match usual {
            usual if usual > 0.0 => history.length / usual * SEGMENT,
            _ => 0.0,
        };
        let plot = wanted.clamp(MIN_PLOT, MAX_PLOT);
        Self {
            history,
            scale: plot / history.length,
            width: LEFT + plot + RIGHT,
        }
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + at * self.scale
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let rows = self.history.attempts.len();
        let table = match rows {
            0 => 0.0,
            rows => 40.0 + ROW * (rows.min(MAX_ROWS) + 1 + usize::from(rows > MAX_ROWS)) as f64,
        };
        let height = BOTTOM + 36.0 + table;
        let width = self.width;
        writeln!(
            out,
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}">"##
        )?;
        writeln!(out, "<style>{STYLE}</style>")?;
        writeln!(out, r##"<rect width="100%" height="100%" fill="#fff"/>"##)?;
        self.head(out)?;
        self.grid(out)?;
        self.session(out)?;
        self.prompts(out)?;
        for (n, attempt) in self.history.attempts.iter().enumerate() {
            self.attempt(out, n, attempt)?;
        }
        self.faults(out)?;
        self.table(out)?;
        writeln!(out, "</svg>")
    }

    fn head(&self, out: &mut String) -> fmt::Result {
        let history = self.history;
        let id = escaped(&history.session_id);
        let finished = history
            .attempts
            .iter()
            .filter(|attempt| matches!(attempt.outcome, Outcome::Finished { .. }))
            .count();
        let mut facts = vec![
            begun(history),
            format!("{:.1} s", history.length),
            format!("{finished} segments finished"),
        ];
        if let Some((_, Event::Closed { cause, state, .. })) = history
            .known()
            .filter(|(_, event)| matches!(event, Event::Closed { .. }))
            .last()
        {
            facts.push(format!("ended: {cause}, {}", wire_name(state)));
        }
        writeln!(
            out,
            r##"<text class="title" x="20" y="34">Session {id}</text>"##
        )?;
        let facts = escaped(&facts.join("  ·  "));
        writeln!(
            out,
            r##"<text class="sub" x="20" y="54" xml:space="preserve">{facts}</text>"##
        )
    }

    /// Time runs to the right, in seconds.
    fn grid(&self, out: &mut String) -> fmt::Result {
        for (n, (_, name)) in LANES.iter().enumerate() {
            let y = TOP + LANE * n as f64;
            let (x, baseline) = (LEFT - 12.0, y + LANE / 2.0 + 4.0);
            writeln!(
                out,
                r##"<text class="lane" x="{x}" y="{baseline}">{name}</text>"##
            )?;
            if !name.is_empty() {
                let end = self.width - RIGHT;
                writeln!(
                    out,
                    r##"<line class="rule" x1="{LEFT}" y1="{y}" x2="{end:.1}" y2="{y}"/>"##
                )?;
            }
        }
        let step = tick_step(90.0 / self.scale);
        let ticks = (0..).map(|n| f64::from(n) * step);
        for at in ticks.take_while(|at| *at <= self.history.length) {
            let x = self.x(at);
            writeln!(
                out,
                r##"<line class="grid" x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{BOTTOM}"/>"##
            )?;
            let y = BOTTOM + 16.0;
            let digits = if step < 0.1 {
                2
            } else {
                usize::from(step < 1.0)
            };
            writeln!(
                out,
                r##"<text class="tick" text-anchor="middle" x="{x:.1}" y="{y}">{at:.digits$} s</text>"##
            )?;
        }
        Ok(())
    }

    fn session(&self, out: &mut String) -> fmt::Result {
        for (from, to, state) in self.history.states() {
            let class = match state {
                SessionState::Active => "state-active",
                state if state.is_sink() => "state-end",
                _ => "state-wait",
            };
            self.bar(
                out,
                Lane::State,
                class,
                (from, to),
                &wire_name(state),
                "name",
            )?;
        }
        for (from, to, worker) in self.history.workers() {
            self.bar(out, Lane::Worker, "worker", (from, to), &worker, "name")?;
        }
        for (at, event) in self.history.known() {
            if let Event::Message { r#type, .. } = event {
                let (x, y) = (self.x(at), Lane::Client.top() + BAR / 2.0);
                let title = escaped(r#type);
                writeln!(
                    out,
                    r##"<circle class="message" cx="{x:.1}" cy="{y}" r="4"><title>{at:.3} s: {title}</title></circle>"##
                )?;
            }
        }
        Ok(())
    }

    /// What models wrote, what they did not write, and what was blocked.
    fn prompts(&self, out: &mut String) -> fmt::Result {
        for (from, to, by, prompt) in self.history.written() {
            let name = format!("{} {}: {prompt}", ms(by.latency_ms), by.model);
            self.bar(out, Lane::Llm, "llm", (from, to), &name, "in")?;
        }
        for (at, event) in self.history.known() {
            let title = match event {
                Event::PromptFallback { reason, .. } => reason.as_str(),
                Event::PromptBlocked { .. } => "blocked",
                _ => continue,
            };
            let instant = (at, at + MARK / self.scale);
            self.rect(out, Lane::Llm, "blocked", instant, title)?;
        }
        Ok(())
    }

    fn attempt(&self, out: &mut String, n: usize, attempt: &Attempt) -> fmt::Result {
        let lane = match n % 2 {
            0 => Lane::Prompt,
            _ => Lane::OtherPrompt,
        };
        let number = match attempt.attempt {
            1 => format!("#{}", attempt.segment_idx),
            again => format!("#{} again ({again})", attempt.segment_idx),
        };
        let name = match remark(attempt) {
            Some(remark) => format!("{number} [{remark}] {}", attempt.prompt),
            None => format!("{number} {}", attempt.prompt),
        };
        let whole = (attempt.asked, attempt.end());
        self.bar(out, lane, "prompt", whole, &name, "promptname")?;
        if let Some(started) = attempt.started {
            let waited = format!("queue {}", ms(attempt.queue_ms().unwrap_or_default()));
            self.bar(
                out,
                Lane::Queue,
                "queue",
                (attempt.ready, started),
                &waited,
                "in",
            )?;
        }
        for step in attempt.steps.iter().filter(|s| s.stage != Stage::Decode) {
            let class = match step.step % 2 {
                0 => "denoise",
                _ => "denoise odd",
            };
            let title = format!(
                "{} {}: {}",
                wire_name(step.stage),
                step.step,
                ms((step.to - step.from) * 1e3)
            );
            self.rect(out, Lane::Denoise, class, (step.from, step.to), &title)?;
        }
        self.decoding(out, attempt)?;
        if let Some(first) = attempt.first_byte {
            let last = attempt.last_byte.unwrap_or_else(|| attempt.end());
            let class = match attempt.outcome {
                Outcome::Lost | Outcome::TakenBack => "lost",
                _ => "sent",
            };
            let sent = match attempt.bytes {
                0 => String::new(),
                n if n < 1_000_000 => format!("{:.0} kB", n as f64 / 1e3),
                n => format!("{:.1} MB", n as f64 / 1e6),
            };
            self.bar(out, Lane::Sent, class, (first, last), &sent, "in")?;
        }
        Ok(())
    }

    /// The encoder works a little after each frame: its bar says how much that is together.
    fn decoding(&self, out: &mut String, attempt: &Attempt) -> fmt::Result {
        let (
            Some(ended),
            Outcome::Finished {
                decode_ms,
                encode_ms,
            },
        ) = (attempt.ended, attempt.outcome)
        else {
            return Ok(());
        };
        let last_step = attempt.steps.last().map(|step| step.to);
        let from = last_step.unwrap_or(ended - decode_ms / 1e3);
        let decode = (from, (from + decode_ms / 1e3).min(ended));
        self.bar(out, Lane::Decode, "decode", decode, &ms(decode_ms), "in")?;
        let busy = format!(
            "{} {:.0}%",
            ms(encode_ms),
            (encode_ms / decode_ms * 100.0).clamp(0.0, 100.0)
        );
        self.bar(out, Lane::Encode, "encode", decode, &busy, "name")
    }

    /// A line through all lanes where a worker was lost, or the session went to another one.
    fn faults(&self, out: &mut String) -> fmt::Result {
        for (at, what) in self.marks() {
            let (x, top) = (self.x(at), TOP - 8.0);
            let what = escaped(&what);
            writeln!(
                out,
                r##"<line class="fault" x1="{x:.1}" y1="{top}" x2="{x:.1}" y2="{BOTTOM}"/>"##
            )?;
            // Beside the line, on the side where there is room.
            let (anchor, x) = match x > self.width / 2.0 {
                true => ("end", x - 5.0),
                false => ("start", x + 5.0),
            };
            let y = top + 3.0;
            writeln!(
                out,
                r##"<text class="faultname" text-anchor="{anchor}" x="{x:.1}" y="{y}">{what}</text>"##
            )?;
        }
        Ok(())
    }

    /// What happens at about the same time has one line.
    fn marks(&self) -> Vec<(f64, String)> {
        let mut marks: Vec<(f64, String)> = Vec::new();
        for (at, event) in self.history.known() {
            let what = match event {
                Event::Fault {
                    worker_id, reason, ..
                } => format!("{worker_id} lost: {reason}"),
                Event::Handoff { from, to } => format!("{from} → {to}"),
                _ => continue,
            };
            match marks.last_mut() {
                Some((last, all)) if (at - *last) * self.scale < MARKS_APART => {
                    let _ = write!(all, "  ·  {what}");
                }
                _ => marks.push((at, what)),
            }
        }
        marks
    }

    fn table(&self, out: &mut String) -> fmt::Result {
        let attempts = &self.history.attempts;
        if attempts.is_empty() {
            return Ok(());
        }
        let right = |column: usize| 76.0 + 88.0 * column as f64;
        let prompt = right(COLUMNS.len() - 1) + 24.0;
        let mut y = BOTTOM + 60.0;
        for (n, column) in COLUMNS.iter().enumerate() {
            let unit = match *column {
                "segment" | "steps" => "",
                _ => " ms",
            };
            let x = right(n);
            writeln!(
                out,
                r##"<text class="head num" x="{x}" y="{y}">{column}{unit}</text>"##
            )?;
        }
        writeln!(
            out,
            r##"<text class="head" x="{prompt}" y="{y}">prompt</text>"##
        )?;
        for attempt in attempts.iter().take(MAX_ROWS) {
            y += ROW;
            let end = MIN_PLOT + LEFT;
            let rule = y - 14.0;
            writeln!(
                out,
                r##"<line class="grid" x1="20" y1="{rule}" x2="{end}" y2="{rule}"/>"##
            )?;
            for (n, cell) in cells(attempt).iter().enumerate() {
                let x = right(n);
                writeln!(out, r##"<text class="num" x="{x}" y="{y}">{cell}</text>"##)?;
            }
            let remark = remark(attempt).map_or_else(String::new, |remark| format!(" [{remark}]"));
            let text = escaped(&(shortened(&attempt.prompt, PROMPT_CHARS) + &remark));
            writeln!(out, r##"<text x="{prompt}" y="{y}">{text}</text>"##)?;
        }
        if attempts.len() > MAX_ROWS {
            y += ROW;
            let more = attempts.len() - MAX_ROWS;
            writeln!(
                out,
                r##"<text class="sub" x="{prompt}" y="{y}">and {more} more</text>"##
            )?;
        }
        Ok(())
    }

    /// A bar with as much of its name in it as fits.
    fn bar(
        &self,
        out: &mut String,
        lane: Lane,
        class: &str,
        span: (f64, f64),
        name: &str,
        name_class: &str,
    ) -> fmt::Result {
        self.rect(out, lane, class, span, name)?;
        let room = ((span.1 - span.0) * self.scale - 10.0) / LETTER;
        // A word that is cut after two letters says nothing.
        if room < 3.0 {
            return Ok(());
        }
        let (x, y) = (self.x(span.0) + 5.0, lane.top() + BAR / 2.0 + 4.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a few thousand letters at most"
        )]
        let label = escaped(&shortened(name, room as usize));
        writeln!(
            out,
            r##"<text class="{name_class}" x="{x:.1}" y="{y}">{label}</text>"##
        )
    }

    fn rect(
        &self,
        out: &mut String,
        lane: Lane,
        class: &str,
        (from, to): (f64, f64),
        title: &str,
    ) -> fmt::Result {
        let (x, y) = (self.x(from), lane.top());
        let width = ((to - from) * self.scale).max(1.5);
        let title = escaped(title);
        writeln!(
            out,
            r##"<rect class="{class}" x="{x:.1}" y="{y}" width="{width:.1}" height="{BAR}" rx="3"><title>{title}</title></rect>"##
        )
    }
}

/// At least so long, in seconds, and a round number.
fn tick_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1e-3).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

/// Text in XML, which has no control characters at all.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
