//! Drawings as SVG that stands in a page: no address, no script, no style of its own but classes of `style.css`.
//!
//! Coordinates are pixels of a drawing [`WIDTH`] wide, which is about a phone, so that text stays readable there. A model
//! has the same colour and mark in all drawings. Every text is escaped here.

mod dots;
mod forest;
mod impact;
mod reliability;
mod roc;
mod slope;
mod sweep;

pub(super) use dots::dots;
pub(super) use forest::forest;
pub(super) use impact::impact;
pub(super) use reliability::reliability;
pub(super) use roc::roc;
pub(super) use slope::slope;
pub(super) use sweep::sweep;

use super::escape::{escape, shorten};

/// Width of every drawing.
pub(super) const WIDTH: f64 = 340.0;
/// Where rows of marks begin and end.
const LEFT: f64 = 14.0;
const RIGHT: f64 = WIDTH - 14.0;
/// How many colours there are.
const COLOURS: usize = 8;

/// What a drawing is of, in the words of its caption.
pub(super) struct Titled {
    /// Its first line.
    pub(super) title: String,
    /// The drawing.
    pub(super) svg: String,
}

/// Where a text is held.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing under way.
struct Drawing {
    height: f64,
    body: String,
}

impl Drawing {
    fn new(height: f64) -> Self {
        Self { height, body: String::new() }
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.body.push_str(&format!(r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#));
    }

    fn rect(&mut self, class: &str, at: (f64, f64), size: (f64, f64)) {
        let ((x, y), (w, h)) = (at, (size.0.max(0.0), size.1.max(0.0)));
        self.body.push_str(&format!(r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}"/>"#));
    }

    fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        if points.is_empty() {
            return;
        }
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.body.push_str(&format!(r#"<polyline class="{class}" points="{}"/>"#, points.join(" ")));
    }

    /// A text of at most `most` characters; where it is cut the whole of it is its title.
    fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str, most: usize) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let shown = shorten(text, most);
        let whole = if shown == text { String::new() } else { format!("<title>{}</title>", escape(text)) };
        let (x, y) = at;
        self.body.push_str(&format!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{whole}{}</text>"#,
            escape(&shown)
        ));
    }

    /// The mark of a model, hollow for a value on few rows; `title` is shown beside the pointer.
    fn mark(&mut self, model: usize, at: (f64, f64), hollow: bool, title: &str) {
        self.body.push_str(&format!("<g><title>{}</title>{}</g>", escape(title), shape(model, at, hollow)));
    }

    /// An interval along x, between the two bounds.
    fn whisker(&mut self, model: usize, low: f64, high: f64, y: f64) {
        let class = format!("w {}", colour(model));
        self.line(&class, (low, y), (high, y));
        for x in [low, high] {
            self.line(&class, (x, y - 2.5), (x, y + 2.5));
        }
    }

    /// Ticks of an axis along x at height `bottom`, with grid lines up to `top`.
    fn across(&mut self, axis: &Axis, top: f64, bottom: f64) {
        for (value, label) in axis.ticks() {
            let x = axis.at(value);
            self.line("grid", (x, top), (x, bottom));
            self.text("tick", (x, bottom + 11.0), Anchor::Middle, &label, 9);
        }
        self.line("axis", (axis.from, bottom), (axis.to, bottom));
    }

    /// Ticks of an axis along y at `left`, with grid lines to `right`.
    fn upward(&mut self, axis: &Axis, left: f64, right: f64) {
        for (value, label) in axis.ticks() {
            let y = axis.at(value);
            self.line("grid", (left, y), (right, y));
            self.text("tick", (left - 4.0, y + 3.0), Anchor::End, &label, 9);
        }
        self.line("axis", (left, axis.from), (left, axis.to));
    }

    /// Diagonal stripes over a rectangle.
    fn hatch(&mut self, at: (f64, f64), size: (f64, f64)) {
        let ((x, y), (w, h)) = (at, size);
        let mut start = 7.0;
        while start < w + h {
            // The stripe from (start, 0) down to (0, start), cut to the rectangle.
            let from = (start.min(w), (start - w).max(0.0));
            let to = ((start - h).max(0.0), start.min(h));
            self.line("hatch", (x + from.0, y + from.1), (x + to.0, y + to.1));
            start += 7.0;
        }
    }

    fn finish(self, label: &str) -> String {
        let (height, body, label) = (self.height.ceil(), self.body, escape(label));
        format!(r#"<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH:.0} {height:.0}">{body}</svg>"#)
    }
}

/// The mark of a model alone, for a legend.
pub(super) fn legend(model: usize) -> String {
    format!(r#"<svg class="key" aria-hidden="true" viewBox="0 0 12 12">{}</svg>"#, shape(model, (6.0, 6.0), false))
}

fn shape(model: usize, at: (f64, f64), hollow: bool) -> String {
    let (x, y) = at;
    let class = format!("{} {}", if hollow { "h" } else { "s" }, colour(model));
    let polygon = |points: &[(f64, f64)]| {
        let points: Vec<String> = points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!(r#"<polygon class="{class}" points="{}"/>"#, points.join(" "))
    };
    match model % 5 {
        0 => format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.6"/>"#),
        1 => polygon(&[(-3.3, -3.3), (3.3, -3.3), (3.3, 3.3), (-3.3, 3.3)]),
        2 => polygon(&[(0.0, -4.4), (4.2, 3.2), (-4.2, 3.2)]),
        3 => polygon(&[(0.0, -4.8), (4.6, 0.0), (0.0, 4.8), (-4.6, 0.0)]),
        _ => polygon(&[(0.0, 4.4), (4.2, -3.2), (-4.2, -3.2)]),
    }
}

/// Class of a colour.
fn colour(index: usize) -> String {
    format!("m{}", index % COLOURS)
}

/// Places values between two pixels.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Axis {
    /// From the smallest to the largest value and a little beyond; some width around a single one.
    fn around(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(|value| value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let span = high - low;
        let room = if span > 0.0 { span * 0.06 } else { (high.abs() * 0.1).max(0.05) };
        let (low, high) = (low - room, high + room);
        // Halves of the largest numbers have no finite distance.
        if (high - low).is_finite() {
            Self { low, high, from, to, log: false }
        } else {
            Self { low: 0.0, high: 1.0, from, to, log: false }
        }
    }

    /// From `low` to `high`.
    fn exact(low: f64, high: f64, from: f64, to: f64) -> Self {
        Self { low, high, from, to, log: false }
    }

    /// By powers of ten.
    fn logarithmic(low: f64, high: f64, from: f64, to: f64) -> Self {
        Self { low, high, from, to, log: true }
    }

    /// The pixel of a value; a value beyond an end is at the end.
    fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            let value = value.max(self.low).log10();
            (value - self.low.log10()) / (self.high.log10() - self.low.log10())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Round values, about five, with their labels.
    fn ticks(&self) -> Vec<(f64, String)> {
        if self.log {
            let (first, last) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
            return (first..=last).map(|power| (10_f64.powi(power), tens(power))).collect();
        }
        let rough = (self.high - self.low) / 5.0;
        let power = rough.log10().floor();
        let unit = 10_f64.powf(power);
        let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * unit).find(|step| *step >= rough).unwrap_or(unit);
        let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
        let first = (self.low / step).ceil();
        let count = ((self.high / step).floor() - first).clamp(0.0, 12.0) as usize;
        let value = |i: usize| (first + i as f64) * step;
        (0..=count).map(value).filter(|v| *v >= self.low && *v <= self.high).map(|v| (v, label(v, decimals))).collect()
    }
}

fn label(value: f64, decimals: usize) -> String {
    let text = if value.abs() >= 1e6 { format!("{value:.0e}") } else { format!("{value:.decimals$}") };
    if text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') {
        text.trim_start_matches('-').to_owned()
    } else {
        text
    }
}

fn tens(power: i32) -> String {
    match power {
        0 => "1".to_owned(),
        -1 => "0.1".to_owned(),
        -2 => "0.01".to_owned(),
        power => format!("1e{power}"),
    }
}
