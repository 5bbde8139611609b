//! Every row once an epoch, the same order from the same seed, nothing lost at the edges.

use super::*;
use crate::train::{Average, Method, Schedule, Task};

/// Settings that tests change.
pub(in crate::train) fn settings() -> Settings {
    Settings {
        task: Task::CausalLm,
        method: Method::Full,
        length: Length::Epochs(2.0),
        batch_size: 2,
        accumulation: 3,
        max_tokens: 16,
        packing: false,
        train_on_prompt: false,
        learning_rate: 1e-3,
        schedule: Schedule::Cosine,
        warmup_steps: 0,
        weight_decay: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        max_grad_norm: 1.0,
        average: Average::Tokens,
        recompute: None,
        eval_every: 0,
        patience: 0,
        keep_best: false,
        seed: 7,
        groups: vec![],
        random_flip: false,
        publish_steps: vec![],
        subset: None,
    }
}

fn example(length: usize) -> Example {
    Example {
        tokens: (0..length as u32).collect(),
        learnt: vec![true; length],
        image: None,
        class: None,
        groups: vec![],
    }
}

fn examples(count: usize) -> Vec<Example> {
    (0..count).map(|i| example(2 + i * 5 % 9)).collect()
}

fn epoch(order: &Order, epoch: u64) -> Vec<Vec<Vec<usize>>> {
    let steps = order.steps_per_epoch();
    (epoch * steps..(epoch + 1) * steps).map(|step| order.rows(step)).collect()
}

#[test]
fn every_row_comes_once_an_epoch_whatever_the_sizes() {
    for (count, batch_size, accumulation, packing) in
        [(1, 1, 1, false), (1, 8, 4, true), (13, 2, 3, false), (13, 2, 3, true), (12, 2, 3, false), (50, 7, 1, true)]
    {
        let train = examples(count);
        let settings = Settings { batch_size, accumulation, packing, ..settings() };
        let order = Order::new(&train, &settings).unwrap();
        for number in 0..3 {
            let steps = epoch(&order, number);
            assert!(steps.iter().all(|step| (1..=accumulation).contains(&step.len())));
            let mut rows: Vec<_> = steps.iter().flatten().flatten().copied().collect();
            let most = batch_size * if packing { 16 } else { 1 };
            assert!(steps.iter().flatten().all(|rows| (1..=most).contains(&rows.len())));
            rows.sort_unstable();
            assert_eq!(rows, (0..count).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_last_step_of_an_epoch_is_what_is_left() {
    let order = Order::new(&examples(13), &settings()).unwrap();
    assert_eq!((order.steps_per_epoch(), order.total_steps()), (3, 6));
    let sizes: Vec<Vec<_>> = epoch(&order, 1).iter().map(|step| step.iter().map(Vec::len).collect()).collect();
    assert_eq!(sizes, [vec![2, 2, 2], vec![2, 2, 2], vec![1]]);
    assert!((order.epoch(4) - 4.0 / 3.0).abs() < 1e-12);
}

#[test]
fn seeds_and_epochs_have_orders_of_their_own() {
    let train = examples(40);
    let order = |seed| Order::new(&train, &Settings { seed, ..settings() }).unwrap();
    assert_eq!(order(1).micro_batches(&train, 5), order(1).micro_batches(&train, 5));
    assert_ne!(epoch(&order(1), 0), epoch(&order(2), 0));
    assert_ne!(epoch(&order(1), 0), epoch(&order(1), 1));
    // Written down runs are taken up again: this order must never change.
    assert_eq!(permutation(8, 3, 0), [5, 7, 3, 2, 6, 1, 0, 4]);
}

#[test]
fn permutations_are_uniform() {
    let mut places = [[0_u32; 4]; 4];
    for epoch in 0..4000 {
        for (place, value) in permutation(4, 11, epoch).into_iter().enumerate() {
            places[place][value] += 1;
        }
    }
    // 1000 expected, with a standard deviation of 27.
    assert!(places.iter().flatten().all(|count| count.abs_diff(1000) < 140), "{places:?}");
}

#[test]
fn packing_fills_sequences_and_never_overfills_them() {
    assert_eq!(pack([5, 4, 3, 6, 1].into_iter(), 8), [vec![0, 2], vec![1], vec![3, 4]]);
    assert_eq!(pack([9, 1].into_iter(), 8), [vec![0], vec![1]]);
    let lengths: Vec<_> = (0..300).map(|i| 1 + i * 37 % 16).collect();
    let sequences = pack(lengths.iter().copied(), 16);
    assert!(sequences.iter().all(|rows| rows.iter().map(|row| lengths[*row]).sum::<usize>() <= 16));
    let tokens: usize = lengths.iter().sum();
    assert!(sequences.len() <= tokens.div_ceil(16) * 5 / 4, "{} sequences", sequences.len());
}

#[test]
fn lengths_of_a_run() {
    let steps = |length| Order::new(&examples(13), &Settings { length, ..settings() }).map(|order| order.total_steps());
    assert_eq!(steps(Length::Epochs(0.1)).unwrap(), 1);
    assert_eq!(steps(Length::Epochs(1.5)).unwrap(), 5);
    assert_eq!(steps(Length::Steps(100)).unwrap(), 100);
    for length in [Length::Steps(0), Length::Epochs(0.0), Length::Epochs(-1.0), Length::Epochs(f64::NAN)] {
        assert!(matches!(steps(length), Err(TrainError::Setting { field: "length", .. })), "{length:?}");
    }
    for (batch_size, accumulation, named) in [(0, 1, "batch_size"), (1, 0, "accumulation")] {
        let refused = Order::new(&examples(2), &Settings { batch_size, accumulation, ..settings() });
        assert!(matches!(refused, Err(TrainError::Setting { field, .. }) if field == named));
    }
    assert!(matches!(Order::new(&[], &settings()), Err(TrainError::Data(_))));
}

#[test]
fn targets_are_the_next_tokens_that_are_learnt() {
    let first = Example {
        tokens: vec![5, 6, 7, 8],
        learnt: vec![true, false, true, true],
        image: None,
        class: None,
        groups: vec![],
    };
    let second = Example { tokens: vec![9], learnt: vec![true], ..first.clone() };
    let batch = MicroBatch::new(&[first, second], &[1, 0]);
    assert_eq!((batch.tokens.as_slice(), batch.lengths.as_slice()), ([9, 5, 6, 7, 8].as_slice(), [1, 4].as_slice()));
    assert_eq!(batch.targets, [None, None, Some(7), Some(8), None]);
    assert_eq!((batch.rows.as_slice(), batch.learnt(), batch.classes.len()), ([1, 0].as_slice(), 2, 0));
}

#[test]
fn rows_are_seen_as_steps_come_to_them() {
    let order = Order::new(&examples(13), &settings()).unwrap();
    let of = |steps: std::ops::Range<u64>| steps.flat_map(|step| order.rows(step)).flatten().collect::<BTreeSet<_>>();
    assert_eq!(order.seen(Some(0)), BTreeSet::new());
    assert_eq!(order.seen(Some(1)), of(0..1));
    assert_eq!((order.seen(Some(1)).len(), order.seen(Some(2)).len()), (6, 12));
    assert_eq!(order.seen(Some(2)), of(0..2));
    // A pass has three steps, and the next one sees them all again.
    for steps in [Some(3), Some(4), Some(6), Some(u64::MAX), None] {
        assert_eq!(order.seen(steps), (0..13).collect());
    }
    let half = Settings { length: Length::Epochs(0.5), ..settings() };
    assert_eq!(Order::new(&examples(13), &half).unwrap().seen(None), of(0..2));
}
