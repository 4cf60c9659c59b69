//! Draws a session's log as an SVG picture: one lane for each kind of activity, all on the same time axis.
//!
//! The picture is an overview for documents; [`super::trace`] is for a close look.

use std::io;

use fastvideo_proto::job::Stage;
use fastvideo_supervisor_core::session::SessionState;
use fastvideo_supervisor_core::session::log::LogEvent as Event;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, TRANSPARENT, TextStyle, WHITE};

use super::history::{AttemptOutcome, History, SegmentAttempt};
use super::text::{begun, ms, plain, remark, shortened, wire_name};

/// The lanes from top to bottom.
#[derive(Clone, Copy)]
enum Lane {
    Session,
    Worker,
    Client,
    Segments,
    /// Every other segment: the media of one are still being sent while the next one is generated.
    OtherSegments,
    Llm,
    Queue,
    Denoise,
    Decode,
    Media,
}

const LANES: [(Lane, &str); 10] = [
    (Lane::Session, "session"),
    (Lane::Worker, "worker"),
    (Lane::Client, "client says"),
    (Lane::Segments, "segments"),
    (Lane::OtherSegments, ""),
    (Lane::Llm, "LLM"),
    (Lane::Queue, "queue"),
    (Lane::Denoise, "denoise"),
    (Lane::Decode, "decode"),
    (Lane::Media, "media sent"),
];
const LANE_COUNT: u32 = Lane::Media as u32 + 1;

// All sizes are in pixels.
const MARGIN: u32 = 20;
const TITLE_HEIGHT: u32 = 56;
const LANE_HEIGHT: u32 = 30;
const LANE_NAME_WIDTH: u32 = 90;
const TIME_AXIS_HEIGHT: u32 = 30;
/// The width of an average segment, in which its prompt can be read.
const SEGMENT_WIDTH: usize = 190;
const MIN_PLOT_WIDTH: usize = 1100;
/// Browsers do not draw pictures of more than about twice this width.
const MAX_PLOT_WIDTH: usize = 16_000;
/// The height of a bar in a lane of height 1.
const BAR_HEIGHT: f64 = 0.7;
/// The width of the narrowest bar.
const MIN_BAR_WIDTH: i32 = 2;
/// The assumed average width of a character in a label.
const CHARACTER_WIDTH: i32 = 6;
/// Shorter labels are left out, because they would not be readable.
const MIN_LABEL_CHARACTERS: i32 = 3;
/// Faults that are closer than this share one label.
const FAULT_DISTANCE: i32 = 8;
const FONT: &str = "sans-serif";

const INK: RGBColor = RGBColor(51, 65, 85);
const GRID: RGBColor = RGBColor(226, 232, 240);
const GREY: RGBColor = RGBColor(203, 213, 225);
const SLATE: RGBColor = RGBColor(100, 116, 139);
const AMBER: RGBColor = RGBColor(253, 230, 138);
const GREEN: RGBColor = RGBColor(134, 239, 172);
const BLUE: RGBColor = RGBColor(147, 197, 253);
const DARK_BLUE: RGBColor = RGBColor(96, 165, 250);
const PALE_BLUE: RGBColor = RGBColor(224, 231, 255);
const PURPLE: RGBColor = RGBColor(216, 180, 254);
const TEAL: RGBColor = RGBColor(94, 234, 212);
const RED: RGBColor = RGBColor(220, 38, 38);

type Canvas<'svg> = DrawingArea<SVGBackend<'svg>, Shift>;
type DrawingError = DrawingAreaErrorKind<io::Error>;

/// Something that takes time. Times are seconds since the start of the log.
struct Bar {
    lane: Lane,
    from: f64,
    to: f64,
    color: RGBColor,
    label: String,
}

/// Draws the picture and returns the SVG document.
///
/// # Errors
/// Returns an error when the plotting library cannot draw. With a document in memory there is no known case.
pub(super) fn draw(history: &History) -> Result<String, DrawingError> {
    let plot_width = (SEGMENT_WIDTH * history.attempts.len()).clamp(MIN_PLOT_WIDTH, MAX_PLOT_WIDTH);
    let width =
        u32::try_from(plot_width).expect("it is below the maximum") + LANE_NAME_WIDTH + 2 * MARGIN;
    let height = TITLE_HEIGHT + LANE_COUNT * LANE_HEIGHT + TIME_AXIS_HEIGHT + 2 * MARGIN;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let title = format!("Session {}", printable(&history.session_id));
        root.draw(&text(&title, (20, 22), HPos::Left, 18, INK))?;
        root.draw(&text(&facts(history), (20, 44), HPos::Left, 13, SLATE))?;

        let mut chart = ChartBuilder::on(&root)
            .margin(MARGIN)
            .margin_top(MARGIN + TITLE_HEIGHT)
            .x_label_area_size(TIME_AXIS_HEIGHT)
            .y_label_area_size(LANE_NAME_WIDTH)
            .build_cartesian_2d(0.0..history.length, 0.0..f64::from(LANE_COUNT))?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .axis_style(GRID)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .x_labels(plot_width / 100)
            .x_label_style((FONT, 13).into_font().color(&SLATE))
            .x_label_formatter(&|at| format!("{} s", (at * 1e3).round() / 1e3))
            .draw()?;
        let pixel =
            |at: f64, height: f64| chart.backend_coord(&(at.clamp(0.0, history.length), height));
        for (lane, name) in LANES {
            let (x, y) = pixel(0.0, middle(lane));
            root.draw(&text(name, (x - 10, y), HPos::Right, 13, INK))?;
        }
        for bar in bars(history) {
            draw_bar(&root, pixel, &bar)?;
        }
        let faults = faults(history).map(|(at, what)| (pixel(at, f64::from(LANE_COUNT)), what));
        let (_, bottom) = pixel(0.0, 0.0);
        for ((x, top), what) in merged(faults) {
            root.draw(&PathElement::new([(x, top - 4), (x, bottom)], RED))?;
            // The label is on the side with more room.
            let (side, x) = match x > pixel(history.length / 2.0, 0.0).0 {
                true => (HPos::Right, x - 4),
                false => (HPos::Left, x + 4),
            };
            root.draw(&text(&what, (x, top - 8), side, 13, RED))?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// Draws a bar with as much of its label as fits. `pixel` is the pixel of a time and of a height; the lowest lane is between
/// the heights 0 and 1.
fn draw_bar(
    root: &Canvas<'_>,
    pixel: impl Fn(f64, f64) -> (i32, i32),
    bar: &Bar,
) -> Result<(), DrawingError> {
    let (left, top) = pixel(bar.from, middle(bar.lane) + BAR_HEIGHT / 2.0);
    let (right, bottom) = pixel(bar.to, middle(bar.lane) - BAR_HEIGHT / 2.0);
    let right = right.max(left + MIN_BAR_WIDTH);
    let corners = [(left, top), (right, bottom)];
    root.draw(&Rectangle::new(corners, bar.color.filled()))?;
    let room = (right - left - 10) / CHARACTER_WIDTH;
    if room >= MIN_LABEL_CHARACTERS {
        let label = shortened(&bar.label, usize::try_from(room).unwrap_or_default());
        let (_, y) = pixel(bar.from, middle(bar.lane));
        root.draw(&text(&label, (left + 5, y), HPos::Left, 13, INK))?;
    }
    Ok(())
}

/// Returns the height of the middle of a lane, counted from the bottom in lanes.
fn middle(lane: Lane) -> f64 {
    f64::from(LANE_COUNT - lane as u32) - 0.5
}

/// Returns a line of text that is vertically centred on a pixel.
fn text<'a>(
    text: &str,
    at: (i32, i32),
    side: HPos,
    size: u32,
    color: RGBColor,
) -> Text<'a, (i32, i32), String> {
    let mut style = TextStyle::from((FONT, size).into_font()).pos(Pos::new(side, VPos::Center));
    style.color = color.to_backend_color();
    Text::new(printable(text), at, style)
}

/// Replaces the characters that XML does not allow. The plotting library escapes the others.
fn printable(text: &str) -> String {
    plain(text).replace(['\u{fffe}', '\u{ffff}'], " ")
}

/// Returns the line below the title.
fn facts(history: &History) -> String {
    let is_finished = |a: &&SegmentAttempt| matches!(a.outcome, AttemptOutcome::Finished { .. });
    let finished = history.attempts.iter().filter(is_finished).count();
    let mut facts = vec![
        begun(history),
        format!("{:.1} s", history.length),
        format!("{finished} segments finished"),
    ];
    let ends = history.known().filter_map(|(_, event)| match event {
        Event::Closed { cause, state, .. } => Some((cause, state)),
        _ => None,
    });
    if let Some((cause, state)) = ends.last() {
        facts.push(format!("ended: {cause}, {}", wire_name(state)));
    }
    facts.join("  ·  ")
}

fn bars(history: &History) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut add = |lane, (from, to), color, label: String| {
        bars.push(Bar {
            lane,
            from,
            to,
            color,
            label,
        });
    };
    for (from, to, state) in history.states() {
        let color = match state {
            SessionState::Active => GREEN,
            state if state.is_sink() => GREY,
            _ => AMBER,
        };
        add(Lane::Session, (from, to), color, wire_name(state));
    }
    for (from, to, worker) in history.workers() {
        add(Lane::Worker, (from, to), PALE_BLUE, worker);
    }
    for (from, to, by, prompt) in history.generated_prompts() {
        let label = format!("{} {}: {prompt}", ms(by.latency_ms), by.model);
        add(Lane::Llm, (from, to), PURPLE, label);
    }
    for (at, event) in history.known() {
        let (lane, color) = match event {
            Event::Message { .. } => (Lane::Client, SLATE),
            Event::PromptFallback { .. } | Event::PromptBlocked { .. } => (Lane::Llm, RED),
            _ => continue,
        };
        add(lane, (at, at), color, String::new());
    }
    for (n, attempt) in history.attempts.iter().enumerate() {
        let lane = match n % 2 {
            0 => Lane::Segments,
            _ => Lane::OtherSegments,
        };
        let whole = (attempt.requested, attempt.end());
        add(lane, whole, PALE_BLUE, segment_label(attempt));
        if let Some(started) = attempt.started {
            let label = ms(attempt.queue_ms().unwrap_or_default());
            add(Lane::Queue, (attempt.ready, started), AMBER, label);
        }
        for step in attempt.steps.iter().filter(|s| s.stage != Stage::Decode) {
            let color = match step.step % 2 {
                0 => BLUE,
                _ => DARK_BLUE,
            };
            add(Lane::Denoise, (step.from, step.to), color, String::new());
        }
        if let Some((from, to)) = attempt.decoding() {
            add(Lane::Decode, (from, to), TEAL, ms((to - from) * 1e3));
        }
        if let Some(first) = attempt.first_byte {
            let last = attempt.last_byte.unwrap_or_else(|| attempt.end());
            let color = match attempt.outcome {
                AttemptOutcome::WorkerLost | AttemptOutcome::TakenBack => GREY,
                _ => GREEN,
            };
            let label = match attempt.bytes {
                0 => String::new(),
                bytes => format!("{:.1} MB", bytes as f64 / 1e6),
            };
            add(Lane::Media, (first, last), color, label);
        }
    }
    bars
}

fn segment_label(attempt: &SegmentAttempt) -> String {
    let name = attempt.name();
    match remark(attempt) {
        Some(remark) => format!("{name} [{remark}] {}", attempt.prompt),
        None => format!("{name} {}", attempt.prompt),
    }
}

/// Returns the times and labels of worker losses, and of handovers to another worker.
fn faults(history: &History) -> impl Iterator<Item = (f64, String)> {
    history.known().filter_map(|(at, event)| match event {
        Event::Fault {
            worker_id, reason, ..
        } => Some((at, format!("{worker_id} lost: {reason}"))),
        Event::Handoff { from, to } => Some((at, format!("{from} → {to}"))),
        _ => None,
    })
}

/// Joins the labels of faults at about the same place.
fn merged(faults: impl Iterator<Item = ((i32, i32), String)>) -> Vec<((i32, i32), String)> {
    let mut merged: Vec<((i32, i32), String)> = Vec::new();
    for ((x, y), what) in faults {
        match merged.last_mut() {
            Some(((last, _), all)) if x - *last < FAULT_DISTANCE => {
                all.push_str("  ·  ");
                all.push_str(&what);
            }
            _ => merged.push(((x, y), what)),
        }
    }
    merged
}
