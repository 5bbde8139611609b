//! ROC curves of one membership attack on all models, on logarithmic axes.
//!
//! False-positive rates below one over the number of non-members cannot be told from zero; they are hatched.

use super::{Anchor, Axis, Drawing, Titled, colour, shape};
use crate::audit::render::escape::escape;
use crate::audit::render::words::{attack_words, model_name, scope_words};
use crate::audit::report::{Report, Roc};

const SIDE: (f64, f64) = (46.0, 306.0);
const TOP: f64 = 8.0;
const BOTTOM: f64 = TOP + 260.0;

/// Draws curves of the same attack on the same rows; none without one.
pub(in super::super) fn roc(report: &Report, curves: &[&Roc]) -> Option<Titled> {
    let first = *curves.first()?;
    // The curve that resolves least says what is hatched, the one that resolves most how far the axes go.
    let least = curves.iter().map(|curve| curve.others).min().unwrap_or(1).max(1) as f64;
    let most = curves.iter().map(|curve| curve.others).max().unwrap_or(1).max(1) as f64;
    let floor = 10_f64.powf((-most.log10()).floor() - 1.0).max(1e-7);
    let x = Axis::logarithmic(floor, 1.0, SIDE.0, SIDE.1);
    let y = Axis::logarithmic(floor, 1.0, BOTTOM, TOP);
    let mut drawing = Drawing::new(BOTTOM + 30.0);
    drawing.across(&x, TOP, BOTTOM);
    drawing.upward(&y, SIDE.0, SIDE.1);
    drawing.hatch((SIDE.0, TOP), (x.at(1.0 / least) - SIDE.0, BOTTOM - TOP));
    drawing.line("zero", (SIDE.0, BOTTOM), (SIDE.1, TOP));
    let middle = (SIDE.0 + SIDE.1) / 2.0;
    for curve in curves {
        let model = curve.model as usize;
        // Points at rate 0 have no place on a logarithmic axis: they stand at its end.
        let path: Vec<_> = curve.points.iter().map(|(fpr, tpr)| (x.at(*fpr), y.at(*tpr))).collect();
        drawing.path(&format!("p {}", colour(model)), &path);
        if let Some(at) = path.iter().min_by(|a, b| (a.0 - middle).abs().total_cmp(&(b.0 - middle).abs())) {
            let name =
                format!("{} (members {}, others {})", model_name(report, curve.model), curve.members, curve.others);
            drawing.body.push_str(&format!("<g><title>{}</title>{}</g>", escape(&name), shape(model, *at, false)));
        }
    }
    drawing.text(
        "tick",
        ((SIDE.0 + SIDE.1) / 2.0, BOTTOM + 25.0),
        Anchor::Middle,
        "false-positive rate; up: true-positive rate",
        60,
    );
    let parameter = first.parameter.map_or(String::new(), |parameter| format!(" {parameter}"));
    let title = format!(
        "{}{parameter}, {}: members {}, others {}",
        attack_words(first.attack),
        scope_words(&first.scope),
        first.members,
        first.others
    );
    let label = format!(
        "ROC of the membership attack {title}, logarithmic axes, {} models. Hatched: rates below 1/{least}, which cannot be resolved.",
        curves.len()
    );
    Some(Titled { title: format!("{title}; hatched: cannot be resolved"), svg: drawing.finish(&label) })
}
