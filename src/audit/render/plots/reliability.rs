//! Reliability diagram: share of hits against mean confidence, with the counts of the bins below.
//!
//! A calibrated model lies on the diagonal; intervals say how far a bin can be from it by chance.

use super::{Anchor, Axis, Drawing, Titled, colour};
use crate::audit::render::words::{model_name, number, scope_words};
use crate::audit::report::{Reliability, Report};

const SIDE: (f64, f64) = (50.0, 290.0);
const TOP: f64 = 8.0;
const BOTTOM: f64 = TOP + 240.0;
const COUNTS: f64 = BOTTOM + 30.0;

/// Draws one diagram.
pub(in super::super) fn reliability(report: &Report, diagram: &Reliability) -> Titled {
    let (x, y) = (Axis::exact(0.0, 1.0, SIDE.0, SIDE.1), Axis::exact(0.0, 1.0, BOTTOM, TOP));
    let model = diagram.model as usize;
    let mut drawing = Drawing::new(COUNTS + 62.0);
    drawing.across(&x, TOP, BOTTOM);
    drawing.upward(&y, SIDE.0, SIDE.1);
    drawing.line("zero", (x.at(0.0), y.at(0.0)), (x.at(1.0), y.at(1.0)));
    let path: Vec<_> = diagram.bins.iter().map(|bin| (x.at(bin.confidence), y.at(bin.accuracy))).collect();
    drawing.path(&format!("p {}", colour(model)), &path);
    let most = diagram.bins.iter().map(|bin| bin.n).max().unwrap_or(1).max(1);
    for (bin, at) in diagram.bins.iter().zip(&path) {
        let (low, high) = bin.interval;
        drawing.line(&format!("w {}", colour(model)), (at.0, y.at(low)), (at.0, y.at(high)));
        let title = format!(
            "confidence {} to {}: mean {}, hits {} [{}, {}], n {}",
            number(bin.low),
            number(bin.high),
            number(bin.confidence),
            number(bin.accuracy),
            number(low),
            number(high),
            bin.n
        );
        drawing.mark(model, *at, false, &title);
        let tall = 40.0 * bin.n as f64 / most as f64;
        let (left, right) = (x.at(bin.low), x.at(bin.high));
        drawing.rect("bar", (left, COUNTS + 40.0 - tall), (right - left - 1.0, tall));
    }
    drawing.line("axis", (SIDE.0, COUNTS + 40.0), (SIDE.1, COUNTS + 40.0));
    drawing.text("tick", (SIDE.0 - 4.0, COUNTS + 8.0), Anchor::End, &format!("n {most}"), 10);
    drawing.text("tick", (SIDE.0 - 4.0, COUNTS + 42.0), Anchor::End, "n 0", 4);
    drawing.text(
        "tick",
        ((SIDE.0 + SIDE.1) / 2.0, COUNTS + 56.0),
        Anchor::Middle,
        "mean confidence above, rows of each bin below",
        60,
    );
    let rows: u64 = diagram.bins.iter().map(|bin| bin.n).sum();
    let title = format!("{}, {} (n {rows})", model_name(report, diagram.model), scope_words(&diagram.scope));
    let label = format!(
        "Reliability diagram of {title}: share of hits against mean confidence in {} bins.",
        diagram.bins.len()
    );
    Titled { title, svg: drawing.finish(&label) }
}
