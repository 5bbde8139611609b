//! Logits of a classification head as labels and probabilities.
//!
//! Computes no logit. Rules are those of transformers' text-classification pipeline: softmax over the labels where one is
//! right, a sigmoid each where several may be or where there is one label, nothing for a regression.

use super::info::count;
use super::pb;
use crate::lora::{Classes, Problem};

/// Describes one text; `logits` is `[labels]`, one a name of `classes`.
pub(super) fn classification(logits: &[f32], classes: &Classes, tokens: usize) -> pb::Classification {
    let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    let label = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    pb::Classification {
        label: count(label),
        label_name: classes.names.get(label).cloned().unwrap_or_default(),
        probabilities: probabilities(&logits, classes.problem),
        logits,
        token_count: count(tokens),
        row: 0,
    }
}

fn probabilities(logits: &[f64], problem: Problem) -> Vec<f64> {
    match problem {
        Problem::Regression => Vec::new(),
        Problem::Single if logits.len() > 1 => {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(|power| power / sum).collect()
        }
        Problem::Single | Problem::Multi => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(logits: &[f32], problem: Problem) -> pb::Classification {
        classification(logits, &Classes { problem, ..Classes::unnamed(logits.len()) }, 7)
    }

    #[test]
    fn one_right_label_is_a_softmax() {
        let got = of(&[1.0, 3.0, 2.0], Problem::Single);
        assert_eq!((got.label, got.label_name.as_str(), got.token_count), (1, "LABEL_1", 7));
        // exp(-2), 1, exp(-1) over their sum.
        for (got, expected) in got.probabilities.iter().zip([0.090_030_57, 0.665_240_96, 0.244_728_47]) {
            assert!((got - expected).abs() < 1e-7);
        }
        let huge = of(&[1e30, -1e30], Problem::Single);
        assert_eq!(huge.probabilities, [1.0, 0.0]);
    }

    #[test]
    fn several_right_labels_are_a_sigmoid_each() {
        let got = of(&[0.0, -2.0], Problem::Multi);
        assert_eq!(got.label, 0);
        assert!((got.probabilities[0] - 0.5).abs() < 1e-12 && (got.probabilities[1] - 0.119_202_92).abs() < 1e-7);
        assert!((of(&[-2.0], Problem::Single).probabilities[0] - 0.119_202_92).abs() < 1e-7);
        assert_eq!(of(&[-1e30], Problem::Multi).probabilities, [0.0]);
        assert!(of(&[0.3], Problem::Regression).probabilities.is_empty());
    }
}
