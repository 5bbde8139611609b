//! Turns of two kinds of work on one device: interactive steps go before slices of training, and never two at once.
//!
//! Knows neither: each takes its turn as a guard. Engines that take steps at the same time alternate. A slice waits
//! while a step runs or more steps are about to come, but not for ever: when it has waited for `patience` it is the
//! next, so that training is never starved. Nobody spins. One lock, held for a few lines; who waits sleeps on a
//! condition.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Who computes now, and who is next.
#[derive(Debug)]
pub struct Turns {
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody computes.
    taken: bool,
    /// Engines whose steps follow one another: a slice between two of them has to be owed.
    busy: usize,
    /// Engines that wait for a step.
    stepping: usize,
    /// Who had the last step.
    last: usize,
    /// Engines there have been.
    engines: usize,
    /// Slices that wait.
    waiting: usize,
    /// Of these, how many have lost their patience: steps wait for them.
    owed: usize,
}

/// A turn; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// Lets a slice in after it has waited for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Returns what an engine takes its steps from.
    pub fn steps(&self) -> Steps<'_> {
        let mut state = self.lock();
        state.engines += 1;
        Steps { turns: self, engine: state.engines, busy: false }
    }

    /// Waits for the turn of a slice.
    pub fn slice(&self) -> Turn<'_> {
        let due = Instant::now().checked_add(self.patience);
        let mut state = self.lock();
        state.waiting += 1;
        let mut owed = false;
        while state.taken || (state.busy > 0 && !owed) {
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            if !owed && left.is_some_and(|left| left.is_zero()) {
                owed = true;
                state.owed += 1;
                continue;
            }
            state = match left {
                Some(left) if !owed => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                _ => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.waiting -= 1;
        state.owed -= usize::from(owed);
        state.taken = true;
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of it is complete within one statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The steps of one engine.
#[derive(Debug)]
pub struct Steps<'a> {
    turns: &'a Turns,
    engine: usize,
    busy: bool,
}

impl<'a> Steps<'a> {
    /// Waits for the turn of an interactive step: for a running slice or step to end, for slices that are owed theirs, and
    /// for another engine that waits when the last step was this one's.
    ///
    /// Until [`Self::rest`] slices take more steps to be coming.
    pub fn take(&mut self) -> Turn<'a> {
        let mut state = self.turns.lock();
        state.busy += usize::from(!std::mem::replace(&mut self.busy, true));
        state.stepping += 1;
        while state.taken || state.owed > 0 || (state.last == self.engine && state.stepping > 1) {
            state = self.turns.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.stepping -= 1;
        state.last = self.engine;
        state.taken = true;
        Turn(self.turns)
    }

    /// Says that no step follows for now.
    pub fn rest(&mut self) {
        if std::mem::replace(&mut self.busy, false) {
            self.turns.lock().busy -= 1;
            self.turns.changed.notify_all();
        }
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().taken = false;
        self.0.changed.notify_all();
    }
}

/// Lets long work compute in bounded slices, and stops it.
pub trait Slices: Sync {
    /// Waits for the next slice and runs `work` in it; at most one block of the model, forward or backward.
    ///
    /// # Errors
    /// [`Stopped`] when nothing more is to be computed; then `work` may not have run.
    fn slice(&self, work: &mut dyn FnMut()) -> Result<(), Stopped>;

    /// Returns whether nothing more is to be computed, for work beside the device.
    fn is_stopped(&self) -> bool;
}

impl dyn Slices + '_ {
    /// Runs `work` in a slice of its own and returns what it returned.
    ///
    /// # Errors
    /// What `work` returns; [`Stopped`].
    pub fn run<T, E: From<Stopped>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let (mut work, mut done) = (Some(work), None);
        self.slice(&mut || done = work.take().map(|work| work()))?;
        done.unwrap_or_else(|| Err(Stopped.into()))
    }
}

/// Long work was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// No time passes in these tests: patience is either never lost or lost at once.
    const ENDLESS: Duration = Duration::MAX;

    fn until(condition: impl Fn() -> bool) {
        while !condition() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_slice_runs_at_once_when_nothing_else_does() {
        let turns = Turns::new(ENDLESS);
        let mut steps = turns.steps();
        drop(turns.slice());
        drop(turns.slice());
        drop(steps.take());
        steps.rest();
        drop(turns.slice());
    }

    #[test]
    fn a_patient_slice_waits_between_steps_and_runs_when_they_rest() {
        let turns = Turns::new(ENDLESS);
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let mut steps = turns.steps();
            let step = steps.take();
            scope.spawn(|| {
                let _turn = turns.slice();
                order.lock().unwrap().push("slice");
            });
            until(|| turns.lock().waiting == 1);
            drop(step);
            for _ in 0..100 {
                let _turn = steps.take();
                order.lock().unwrap().push("step");
            }
            assert_eq!(turns.lock().waiting, 1);
            steps.rest();
        });
        let order = order.into_inner().unwrap();
        assert_eq!((order.len(), order[100]), (101, "slice"));
    }

    #[test]
    fn an_impatient_slice_is_the_next() {
        let turns = Turns::new(Duration::ZERO);
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let mut steps = turns.steps();
            let step = steps.take();
            for _ in 0..2 {
                scope.spawn(|| {
                    let _turn = turns.slice();
                    order.lock().unwrap().push("slice");
                });
            }
            until(|| turns.lock().owed == 2);
            drop(step);
            let _turn = steps.take();
            order.lock().unwrap().push("step");
        });
        assert_eq!(order.into_inner().unwrap(), ["slice", "slice", "step"]);
        let state = turns.lock();
        assert_eq!((state.waiting, state.owed, state.taken), (0, 0, false));
    }

    #[test]
    fn a_slice_under_endless_steps_is_not_starved() {
        let turns = Turns::new(Duration::from_millis(1));
        let (stop, slices) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut steps = turns.steps();
                while !stop.load(Ordering::SeqCst) {
                    drop(steps.take());
                }
            });
            until(|| turns.lock().busy > 0);
            for _ in 0..10 {
                drop(turns.slice());
                slices.fetch_add(1, Ordering::SeqCst);
            }
            stop.store(true, Ordering::SeqCst);
        });
        assert_eq!(slices.into_inner(), 10);
    }

    #[test]
    fn never_two_at_once() {
        let turns = Turns::new(Duration::ZERO);
        let inside = AtomicUsize::new(0);
        let alone = || {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _turn = turns.slice();
                        alone();
                    }
                });
            }
            scope.spawn(|| {
                let mut steps = turns.steps();
                for index in 0..500 {
                    let turn = steps.take();
                    alone();
                    drop(turn);
                    if index % 10 == 0 {
                        steps.rest();
                    }
                }
            });
        });
    }

    #[test]
    fn two_engines_alternate() {
        let turns = Turns::new(ENDLESS);
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let mut steps = turns.steps();
            let first = steps.take();
            for engine in 0..2 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let mut steps = turns.steps();
                    for _ in 0..50 {
                        let _turn = steps.take();
                        order.lock().unwrap().push(engine);
                        // The other one is on its way, unless it has had all of its steps.
                        let left = order.lock().unwrap().iter().filter(|other| **other != engine).count() < 50;
                        until(|| !left || turns.lock().stepping == 1);
                    }
                });
            }
            until(|| turns.lock().stepping == 2);
            drop(first);
        });
        let order = order.into_inner().unwrap();
        assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
        assert_eq!(turns.lock().busy, 0);
    }

    #[test]
    fn a_panic_ends_its_turn() {
        let turns = Turns::new(ENDLESS);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = turns.slice();
            panic!("in a slice");
        }));
        caught.unwrap_err();
        drop(turns.steps().take());
    }
}
