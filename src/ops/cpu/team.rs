//! Loops divided among threads, and threads that stay at hand for the many short loops of one pass.
//!
//! rayon lets a thread that finds no work sleep soon, and a step has some hundred products of few rows, each of which would
//! wait until it wakes (without this, 8 streams had up to a tenth less tokens a second). Within [`together`] the other
//! threads of the pool wait awake for the next loop, [`AWAKE`] at most; elsewhere loops are rayon's, and those within a
//! piece are the piece's own. Which piece a thread gets is chance: pieces may not depend on it. Knows no mathematics.
//! After: the fork and join of OpenMP's runtimes, which spin for a while before they block.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// How long a thread waits before it sleeps or lets others have its core.
const AWAKE: Duration = Duration::from_micros(100);

/// Bit of [`Team::state`]: threads may enter the loop.
const OPEN: usize = 1;
/// A thread within the loop, in [`Team::state`].
const INSIDE: usize = 2;
/// The number of the loop begins at this bit.
const NUMBER: u32 = 16;

/// A loop: takes pieces until there are none left.
type Job<'a> = &'a (dyn Fn() + Sync);

thread_local! {
    /// The team that the pass on this thread leads.
    static TEAM: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
    /// Whether this thread computes a piece of a team's loop: loops within it are its own. Would it wait for rayon's, it
    /// could meanwhile be given the part of a helper, whose end would then be waited for by itself.
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// Threads that wait for loops of one leader.
#[derive(Debug)]
struct Team {
    leader: ThreadId,
    /// [`OPEN`], how many helpers are inside, and the number of the loop.
    state: AtomicUsize,
    /// Lies on the leader's stack; valid for who is inside.
    job: AtomicPtr<Job<'static>>,
    ended: AtomicBool,
    asleep: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
    /// What a helper's piece panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Runs `work` on a thread of the pool, the other threads at hand for its loops.
pub fn together<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| {
        let others = rayon::current_num_threads() - 1;
        if others == 0 || WITHIN.get() || TEAM.with_borrow(Option::is_some) {
            return work();
        }
        let team = Arc::new(Team::led_by(thread::current().id()));
        for _ in 0..others {
            let team = Arc::clone(&team);
            // Nobody waits for it: a thread that has other work comes late, or never.
            rayon::spawn(move || team.help());
        }
        TEAM.set(Some(Arc::clone(&team)));
        let _end = Finally(|| {
            TEAM.set(None);
            team.end();
        });
        work()
    })
}

/// Does `work` for every item, in any order.
pub fn each<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync + Send) {
    each_with(items, || (), |(), item| work(item));
}

/// Does `work` for every item, in any order, with something that each thread makes once.
pub(super) fn each_with<T: Send, S>(
    items: Vec<T>,
    make: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, T) + Sync + Send,
) {
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    each_number_with(items.len(), make, |own, number| {
        let item = items[number].lock().unwrap_or_else(PoisonError::into_inner).take();
        item.into_iter().for_each(|item| work(own, item));
    });
}

/// Does `work` for every part of `size` items, of which the last may have fewer, and its number; in any order. Takes no
/// memory.
pub fn each_part<T: Send>(items: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync + Send) {
    let parts = Parts::new(items, size);
    // SAFETY: every number comes once.
    each_number(parts.count(), |number| work(number, unsafe { parts.get(number) }));
}

/// Does `work` for every number below `count`, in any order. Takes no memory.
pub(super) fn each_number(count: usize, work: impl Fn(usize) + Sync + Send) {
    each_number_with(count, || (), |(), number| work(number));
}

/// The same with something that each thread makes once.
pub(super) fn each_number_with<S>(
    count: usize,
    make: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, usize) + Sync + Send,
) {
    if count < 2 || WITHIN.get() {
        let mut own = None;
        return (0..count).for_each(|number| work(own.get_or_insert_with(&make), number));
    }
    let Some(team) = TEAM.take() else {
        return (0..count).into_par_iter().with_max_len(1).for_each_init(make, work);
    };
    let _back = Finally(|| TEAM.set(Some(Arc::clone(&team))));
    let next = AtomicUsize::new(0);
    team.run(&|| {
        let _outside = Finally(|| WITHIN.set(false));
        WITHIN.set(true);
        let mut own = None;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            work(own.get_or_insert_with(&make), number);
        }
    });
}

/// Parts of a slice that threads write.
pub(super) struct Parts<'a, T> {
    first: *mut T,
    len: usize,
    size: usize,
    items: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever takes a part sees to it that no other thread has it.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Divides a slice into parts of `size` items; the last may have fewer.
    pub(super) fn new(items: &'a mut [T], size: usize) -> Self {
        Self { first: items.as_mut_ptr(), len: items.len(), size: size.max(1), items: PhantomData }
    }

    pub(super) fn count(&self) -> usize {
        self.len.div_ceil(self.size)
    }

    /// Returns a part.
    ///
    /// # Safety
    /// Nobody else may have it.
    #[expect(clippy::mut_from_ref, reason = "each part once")]
    pub(super) unsafe fn get(&self, number: usize) -> &mut [T] {
        let first = self.len.min(number * self.size);
        // SAFETY: it lies in the slice, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(first), self.size.min(self.len - first)) }
    }
}

/// Calls something when it goes, even if that is because of a panic.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Looks for something again and again, as long as a thread stays awake.
fn spin<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        for _ in 0..32 {
            match look() {
                Some(found) => return Some(found),
                None => std::hint::spin_loop(),
            }
        }
        if began.elapsed() >= AWAKE {
            return None;
        }
    }
}

impl Team {
    fn led_by(leader: ThreadId) -> Self {
        Self {
            leader,
            state: AtomicUsize::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            ended: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
            panic: Mutex::new(None),
        }
    }

    /// Runs a loop with whoever is at hand; only the leader calls it.
    fn run(&self, job: Job<'_>) {
        // SAFETY: only the lifetime changes. Who enters does so while the loop is open, and `Finally` waits until all
        // have left before `job` and its place go.
        let mut place = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        self.job.store(&raw mut place, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> NUMBER) + 1;
        self.state.store(number << NUMBER | OPEN, Ordering::SeqCst);
        self.wake();
        {
            let _closed = Finally(|| self.close());
            job();
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Lets nobody enter any more, and waits until all have left.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let inside = || self.state.load(Ordering::Acquire) % (1 << NUMBER) >= INSIDE;
        if spin(|| (!inside()).then_some(())).is_none() {
            while inside() {
                thread::yield_now();
            }
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        // Whoever goes to bed counts itself first and looks for news after that: one of both sees the other.
        if self.asleep.load(Ordering::SeqCst) > 0 {
            let _bed = self.bed();
            self.bell.notify_all();
        }
    }

    fn bed(&self) -> MutexGuard<'_, ()> {
        self.bed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes part in the leader's loops until there are no more.
    fn help(&self) {
        // Whoever leads, or has a piece of another loop to end, came here by waiting for rayon.
        if thread::current().id() == self.leader || WITHIN.get() {
            return;
        }
        let mut last = 0;
        while let Some(state) = self.await_loop(last) {
            if self.state.compare_exchange(state, state + INSIDE, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            last = state >> NUMBER;
            // SAFETY: it was entered, so that the leader waits for this thread before the job goes.
            let job = unsafe { *self.job.load(Ordering::Relaxed) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.state.fetch_sub(INSIDE, Ordering::Release);
        }
    }

    /// Waits for an open loop with another number than `last`; returns `None` at the end.
    fn await_loop(&self, last: usize) -> Option<usize> {
        if let Some(news) = spin(|| self.news(last)) {
            return news;
        }
        let mut bed = self.bed();
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let news = loop {
            match self.news(last) {
                Some(news) => break news,
                None => bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner),
            }
        };
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        news
    }

    /// Returns the state of an open loop with another number than `last`, or that there will be none.
    fn news(&self, last: usize) -> Option<Option<usize>> {
        let state = self.state.load(Ordering::SeqCst);
        if state & OPEN != 0 && state >> NUMBER != last {
            return Some(Some(state));
        }
        self.ended.load(Ordering::SeqCst).then_some(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    /// Adds up what every item of many loops is given, and counts the threads that had a part.
    fn many_loops(pause: impl Fn(usize) + Sync + Send) -> (u64, usize) {
        let threads = Mutex::new(std::collections::HashSet::new());
        let sum = AtomicU64::new(0);
        pool(3).install(|| {
            together(|| {
                for turn in 0..300_u64 {
                    let mut squares = vec![0_u64; 40];
                    each(squares.iter_mut().enumerate().collect(), |(i, out)| {
                        threads.lock().unwrap().insert(thread::current().id());
                        *out = turn * i as u64;
                    });
                    // The loop has ended: all of it is there.
                    sum.fetch_add(squares.iter().sum(), Ordering::Relaxed);
                    pause(turn as usize);
                }
            });
        });
        (sum.into_inner(), threads.into_inner().unwrap().len())
    }

    #[test]
    fn every_item_is_done_once_and_before_the_loop_ends() {
        let expected = (0..300).sum::<u64>() * (0..40).sum::<u64>();
        assert_eq!(many_loops(|_| ()).0, expected);
        // Long enough to fall asleep.
        let (sum, threads) = many_loops(|turn| {
            if turn % 20 == 0 {
                thread::sleep(2 * AWAKE);
            }
        });
        assert_eq!(sum, expected);
        assert!(threads <= 3);
    }

    #[test]
    fn the_others_have_a_part() {
        let met = std::sync::Barrier::new(3);
        pool(3).install(|| {
            together(|| {
                each(vec![(); 3], |()| {
                    met.wait();
                })
            })
        });
        // And again after they have slept.
        pool(3).install(|| {
            together(|| {
                each(vec![(); 3], |()| {
                    met.wait();
                });
                thread::sleep(4 * AWAKE);
                each(vec![(); 3], |()| {
                    met.wait();
                });
            });
        });
    }

    #[test]
    fn loops_within_loops_and_passes_within_passes_end() {
        let count = AtomicUsize::new(0);
        let inner = || {
            each(vec![(); 50], |()| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            (0..50).into_par_iter().for_each(|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        };
        pool(2).install(|| together(|| each(vec![(); 20], |()| together(inner))));
        assert_eq!(count.into_inner(), 20 * 100);
    }

    #[test]
    fn pieces_that_wait_for_rayon_hold_nobody_up() {
        let pool = Arc::new(pool(4));
        let count = Arc::new(AtomicUsize::new(0));
        let passes = [0, 1].map(|_| {
            let (pool, count) = (Arc::clone(&pool), Arc::clone(&count));
            thread::spawn(move || {
                pool.install(|| {
                    for _ in 0..200 {
                        together(|| {
                            each((0..6).collect(), |_: usize| {
                                (0..16).into_par_iter().with_max_len(1).for_each(|_| {
                                    count.fetch_add(1, Ordering::Relaxed);
                                });
                            });
                        });
                    }
                });
            })
        });
        passes.into_iter().for_each(|pass| pass.join().unwrap());
        assert_eq!(count.load(Ordering::Relaxed), 2 * 200 * 6 * 16);
    }

    #[test]
    fn two_passes_share_a_pool() {
        let pool = Arc::new(pool(2));
        let passes = [1_u64, 2].map(|factor| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                pool.install(|| {
                    together(|| {
                        let sum = AtomicU64::new(0);
                        for _ in 0..2000 {
                            each((0..8).collect(), |i: u64| {
                                sum.fetch_add(factor * i, Ordering::Relaxed);
                            });
                        }
                        sum.into_inner()
                    })
                })
            })
        });
        assert_eq!(passes.map(|pass| pass.join().unwrap()), [2000 * 28, 2 * 2000 * 28]);
    }

    #[test]
    fn a_panic_of_any_piece_is_the_leaders_and_the_team_goes_on() {
        pool(2).install(|| {
            together(|| {
                for bad in 0..20 {
                    let failed = catch_unwind(|| {
                        each((0..20).collect(), |i: usize| {
                            thread::sleep(Duration::from_micros(10));
                            assert!(i != bad, "piece {i}");
                        });
                    });
                    let text = failed.unwrap_err().downcast::<String>().unwrap();
                    assert_eq!(*text, format!("piece {bad}"));
                }
                let sum = AtomicUsize::new(0);
                each((0..20).collect(), |i: usize| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 190);
            });
        });
    }
}
