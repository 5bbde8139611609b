//! What an audit would cost, as far as it was measured.

use super::audits::{audit, model, trained};
use super::*;
use crate::train::Task as Learning;

#[test]
fn steps_without_tokens_are_measured_and_count_for_their_own_base_only() {
    let house = House::new();
    let asked = audit("fair", vec![trained("b", 7)], None);
    let costs = |house: &House| {
        let estimate = house.jobs.estimate_audit(&asked).unwrap();
        (estimate.training_seconds, estimate.scoring_seconds)
    };
    assert_eq!(costs(&house), (None, None));
    // A step on images counts no tokens.
    let images = Settings { task: Learning::ImageClassification, ..settings() };
    let job = house.jobs.create(FineTuning { settings: images, ..wanted("a") }, None).unwrap();
    let last = house.ended(job.id).last.unwrap();
    assert!(last.tokens_per_second == 0.0 && last.step_seconds > 0.0, "{last:?}");
    let (training, scoring) = costs(&house);
    // As many rows a step as what is asked for has.
    let expected = STEPS as f64 * last.step_seconds;
    assert!((training.unwrap() / expected - 1.0).abs() < 1e-9, "{training:?} {expected}");
    assert_eq!(scoring, None);
    let first = audit("first", vec![model("base", SourceWanted::Base)], None);
    house.ended(house.jobs.create_audit(first, None).unwrap().id);
    assert!(costs(&house).1.is_some_and(|seconds| seconds > 0.0));

    let other = House::with(house.stop(), Hooks::default(), limits(), "other");
    assert_eq!(costs(&other), (None, None));
}
