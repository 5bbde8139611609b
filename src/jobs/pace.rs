//! How a job computes beside serving: in slices between the steps of requests, until it is told to stop; and how fast.
//!
//! Decides nothing about order (`turns` does) and writes nothing down.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Jobs;
use crate::config::JobsSettings;
use crate::turns::{Slices, Stopped, Turns};

/// Weight of the newest step in what is taken for the present speed.
const NEWEST: f64 = 0.1;

/// Slices of one job.
#[derive(Debug)]
pub(super) struct Paced<'a> {
    pub(super) turns: &'a Turns,
    /// A caller wants this job to end.
    pub(super) cancelled: &'a AtomicBool,
    /// The server cannot wait any longer.
    pub(super) halted: &'a AtomicBool,
}

impl Paced<'_> {
    /// Returns whether nothing more is to be computed.
    pub(super) fn is_stopped(&self) -> bool {
        self.cancelled.load(Ordering::Acquire) || self.halted.load(Ordering::Acquire)
    }

    /// Lets steps of requests go first; returns whether nothing more is to be computed.
    pub(super) fn yields(&self) -> bool {
        if self.is_stopped() {
            return true;
        }
        drop(self.turns.slice());
        self.is_stopped()
    }

    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.is_stopped() { Err(Stopped) } else { Ok(()) }
    }
}

impl Slices for Paced<'_> {
    fn slice(&self, work: &mut dyn FnMut()) -> Result<(), Stopped> {
        self.check()?;
        let _turn = self.turns.slice();
        // It may have waited for long.
        self.check()?;
        work();
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        Paced::is_stopped(self)
    }
}

impl Jobs {
    /// Lets steps of requests go first, as a job does, for statistics that are no job; returns whether nothing more is to
    /// be computed: because of `left`, or because the server cannot wait any longer.
    pub fn yields(&self, left: &AtomicBool) -> bool {
        let inner = self.inner();
        Paced { turns: &inner.parts.turns, cancelled: left, halted: &inner.halted }.yields()
    }
}

/// When the next checkpoint is to be written: by steps or by time, whichever is sooner.
#[derive(Debug)]
pub(super) struct Due<'a> {
    settings: &'a JobsSettings,
    kept: u64,
    written: Instant,
}

impl<'a> Due<'a> {
    /// Begins at the step of the last checkpoint.
    pub(super) fn new(settings: &'a JobsSettings, kept: u64) -> Self {
        Self { settings, kept, written: Instant::now() }
    }

    /// Returns the step of the last checkpoint.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// Returns whether one is to be written after step `at`.
    pub(super) fn is_due(&self, at: u64) -> bool {
        let steps = self.settings.checkpoint_steps;
        steps > 0 && at.saturating_sub(self.kept) >= steps
            || self.written.elapsed() >= Duration::from_secs(self.settings.checkpoint_seconds)
    }

    /// Takes down that one was written after step `at`.
    pub(super) fn note(&mut self, at: u64) {
        (self.kept, self.written) = (at, Instant::now());
    }
}

/// Running averages of steps, the newest counting most.
#[derive(Debug, Default)]
pub(super) struct Speed {
    /// Tokens and seconds of a step; none was measured at first.
    step: Option<(f64, f64)>,
}

impl Speed {
    /// Returns the seconds that a step takes; 0 before the first.
    pub(super) fn seconds(&self) -> f64 {
        self.step.map_or(0.0, |(_, seconds)| seconds)
    }

    /// Takes a step into account; returns tokens a second and the seconds that `left` steps will take.
    pub(super) fn note(&mut self, tokens: u64, elapsed: Duration, left: u64) -> (f64, f64) {
        // A clock may not see the shortest steps.
        let now = (tokens as f64, elapsed.as_secs_f64().max(1e-9));
        let mix = |old: f64, new: f64| old + NEWEST * (new - old);
        let (tokens, seconds) = self.step.map_or(now, |old| (mix(old.0, now.0), mix(old.1, now.1)));
        self.step = Some((tokens, seconds));
        (tokens / seconds, left as f64 * seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_follows_the_steps_and_stays_a_number() {
        let mut speed = Speed::default();
        assert_eq!(speed.seconds(), 0.0);
        assert_eq!(speed.note(100, Duration::from_secs(2), 10), (50.0, 20.0));
        assert_eq!(speed.seconds(), 2.0);
        for _ in 0..200 {
            speed.note(100, Duration::from_secs(1), 1);
        }
        let (rate, left) = speed.note(100, Duration::from_secs(1), 3);
        assert!((rate - 100.0).abs() < 1e-3 && (left - 3.0).abs() < 1e-3, "{rate} {left}");
        let (rate, left) = Speed::default().note(u64::MAX, Duration::ZERO, 0);
        assert!(rate.is_finite() && left == 0.0);
    }

    #[test]
    fn nothing_is_computed_once_stopped() {
        let (turns, off, on) = (Turns::new(Duration::ZERO), AtomicBool::new(false), AtomicBool::new(true));
        let mut runs = 0;
        for (cancelled, halted) in [(&off, &off), (&on, &off), (&off, &on)] {
            let paced = Paced { turns: &turns, cancelled, halted };
            let result = paced.slice(&mut || runs += 1);
            assert_eq!(result.is_err(), paced.is_stopped());
            assert_eq!(paced.yields(), paced.is_stopped());
        }
        assert_eq!(runs, 1);
    }
}
