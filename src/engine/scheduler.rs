//! Chooses what the next step computes.
//!
//! Holds queues and counts only: no tensor, channel or clock, so every rule here is testable in microseconds.
//! A request is admitted only with room for all that it can ever need, so nothing is preempted and no budget is
//! exceeded. Order: first come, first served; who waits first is admitted first.
//! Units: tokens, bytes of key and value cache.
//! After: vLLM v1 `Scheduler.schedule` (no prefill phase; computed tokens catch up with known tokens).

use std::collections::VecDeque;

/// Names a sequence, or a scoring request, for the life of the engine.
pub(super) type Id = u64;

/// What one step and all sequences together may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Tokens of one step.
    pub(super) step_tokens: usize,
    /// Sequences of one step.
    pub(super) running: usize,
    /// Bytes of key and value cache.
    pub(super) kv_bytes: u64,
}

/// How a request is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Packed with others; begins with this many known tokens.
    Packed(usize),
    /// In slices apart from the steps.
    Alone,
}

/// What a request needs from admission to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    /// How it is computed.
    pub(super) work: Work,
    /// Sequences that it becomes.
    pub(super) sequences: usize,
    /// Bytes of each.
    pub(super) kv_bytes: u64,
}

impl Demand {
    /// Returns the bytes of all its sequences.
    pub(super) fn total_bytes(&self) -> u64 {
        self.kv_bytes.saturating_mul(self.sequences as u64)
    }
}

/// Tokens of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Whose.
    pub(super) id: Id,
    /// How many, at least 1.
    pub(super) tokens: usize,
    /// Whether computed tokens now catch up with known ones, so that the last row gives the next token.
    pub(super) complete: bool,
}

/// What a step computes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Requests that left the queue.
    pub(super) admitted: Vec<Id>,
    /// Computed together.
    pub(super) packed: Vec<Chunk>,
    /// After that one slice is theirs: the first has its turn, others may share it.
    pub(super) alone: Vec<Id>,
}

#[derive(Debug)]
struct Entry {
    id: Id,
    /// Its request's first sequence.
    of: Id,
    demand: Demand,
    known: usize,
    computed: usize,
}

/// The queues.
#[derive(Debug)]
pub(super) struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Entry>,
    /// In order of admission.
    running: Vec<Entry>,
    reserved: u64,
}

impl Scheduler {
    /// Begins with empty queues. A limit of 0 tokens or sequences would stop everything and counts as 1.
    pub(super) fn new(limits: Limits) -> Self {
        let step_tokens = limits.step_tokens.max(1);
        // With a token for each, whoever decodes gets one in every step.
        let running = limits.running.clamp(1, step_tokens);
        let limits = Limits { step_tokens, running, ..limits };
        Self { limits, waiting: VecDeque::new(), running: Vec::new(), reserved: 0 }
    }

    /// Adds a request to the end of the queue. Its demand must fit into an empty cache.
    pub(super) fn enqueue(&mut self, id: Id, demand: Demand) {
        let known = match demand.work {
            Work::Packed(known) => known,
            Work::Alone => 0,
        };
        self.waiting.push_back(Entry { id, of: id, demand, known, computed: 0 });
    }

    /// Plans the next step, into a plan that is used again. `begin` is told who is admitted and how many bytes are
    /// reserved then, and returns how many tokens of it are computed already.
    pub(super) fn schedule(&mut self, plan: &mut Plan, mut begin: impl FnMut(Id, u64) -> usize) {
        plan.admitted.clear();
        plan.packed.clear();
        plan.alone.clear();
        let mut tokens = self.limits.step_tokens;
        let behind = self.running.iter().filter(|e| e.known > e.computed);
        for entry in behind.take(self.limits.running) {
            if tokens == 0 {
                break;
            }
            plan.packed.push(chunk(entry, &mut tokens));
        }
        while tokens > 0 {
            let Some(mut entry) = self.waiting.pop_front() else { break };
            if !self.fits(&entry.demand) {
                self.waiting.push_front(entry);
                break;
            }
            self.reserved += entry.demand.total_bytes();
            plan.admitted.push(entry.id);
            // The last known token gives the next one.
            entry.computed = begin(entry.id, self.reserved).min(entry.known.saturating_sub(1));
            if entry.known > 0 {
                plan.packed.push(chunk(&entry, &mut tokens));
            }
            self.running.push(entry);
        }
        plan.alone.extend(self.running.iter().filter(|e| e.demand.work == Work::Alone).map(|e| e.id));
    }

    /// Notes that `computed` tokens of a sequence were computed, and whether its next token is known now.
    pub(super) fn advance(&mut self, id: Id, computed: usize, sampled: bool) {
        if let Some(entry) = self.running.iter_mut().find(|e| e.id == id) {
            entry.computed += computed;
            entry.known += usize::from(sampled);
        }
    }

    /// Makes `sibling` of a running request's sequence, with the same tokens and a share of its reservation.
    pub(super) fn fork(&mut self, id: Id, sibling: Id) {
        let Some(at) = self.running.iter().position(|e| e.id == id && e.demand.sequences > 1) else { return };
        let entry = &mut self.running[at];
        entry.demand.sequences -= 1;
        let demand = Demand { sequences: 1, ..entry.demand };
        let sibling = Entry { id: sibling, of: id, demand, known: entry.known, computed: entry.computed };
        // Behind its siblings, and not behind whoever came after them: a long prompt of another request would come first.
        let siblings = self.running[at..].iter().take_while(|e| e.of == id).count();
        self.running.insert(at + siblings, sibling);
    }

    /// Lets another request that is computed in slices have the next turn.
    pub(super) fn rotate_alone(&mut self, id: Id) {
        if let Some(at) = self.running.iter().position(|e| e.id == id) {
            let entry = self.running.remove(at);
            self.running.push(entry);
        }
    }

    /// Takes a sequence out, waiting or running, and frees what it reserved.
    pub(super) fn remove(&mut self, id: Id) {
        self.waiting.retain(|e| e.id != id);
        if let Some(at) = self.running.iter().position(|e| e.id == id) {
            let entry = self.running.remove(at);
            self.reserved -= entry.demand.total_bytes();
        }
    }

    /// Returns the bytes reserved.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reserved
    }

    /// Returns the number of admitted sequences, those that are not forked yet included.
    pub(super) fn running(&self) -> usize {
        self.running.iter().map(|e| e.demand.sequences).sum()
    }

    /// Returns whether nothing waits or runs.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Returns whether a request can be admitted now. One with more sequences than run in a step has its turn when
    /// it is the only one; its sequences then run some after the others.
    fn fits(&self, demand: &Demand) -> bool {
        let sequences = self.running() + demand.sequences <= self.limits.running || self.running.is_empty();
        let bytes = self.reserved.checked_add(demand.total_bytes()).is_some_and(|b| b <= self.limits.kv_bytes);
        sequences && bytes
    }
}

fn chunk(entry: &Entry, tokens: &mut usize) -> Chunk {
    let missing = entry.known - entry.computed;
    let taken = missing.min(*tokens);
    *tokens -= taken;
    Chunk { id: entry.id, tokens: taken, complete: taken == missing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(step_tokens: usize, running: usize, kv_bytes: u64) -> Limits {
        Limits { step_tokens, running, kv_bytes }
    }

    fn packed(prompt: usize, sequences: usize, kv_bytes: u64) -> Demand {
        Demand { work: Work::Packed(prompt), sequences, kv_bytes }
    }

    fn plan(scheduler: &mut Scheduler) -> Vec<(Id, usize, bool)> {
        let mut plan = Plan::default();
        scheduler.schedule(&mut plan, |_, _| 0);
        for chunk in &plan.packed {
            scheduler.advance(chunk.id, chunk.tokens, chunk.complete);
        }
        plan.packed.iter().map(|c| (c.id, c.tokens, c.complete)).collect()
    }

    #[test]
    fn a_long_prompt_comes_in_chunks_and_decode_rides_along() {
        let mut scheduler = Scheduler::new(limits(8, 4, 100));
        scheduler.enqueue(1, packed(3, 1, 10));
        assert_eq!(plan(&mut scheduler), [(1, 3, true)]);
        scheduler.enqueue(2, packed(12, 1, 20));
        assert_eq!(plan(&mut scheduler), [(1, 1, true), (2, 7, false)]);
        assert_eq!(plan(&mut scheduler), [(1, 1, true), (2, 5, true)]);
        assert_eq!(plan(&mut scheduler), [(1, 1, true), (2, 1, true)]);
    }

    #[test]
    fn a_sibling_is_not_behind_the_prompt_of_who_came_later() {
        let mut scheduler = Scheduler::new(limits(8, 4, 100));
        scheduler.enqueue(1, packed(3, 3, 10));
        scheduler.enqueue(2, packed(50, 1, 20));
        assert_eq!(plan(&mut scheduler), [(1, 3, true), (2, 5, false)]);
        scheduler.fork(1, 3);
        scheduler.fork(1, 4);
        assert_eq!(plan(&mut scheduler), [(1, 1, true), (3, 1, true), (4, 1, true), (2, 5, false)]);
    }

    #[test]
    fn what_is_computed_already_is_not_computed_again_but_for_the_last_token() {
        let mut scheduler = Scheduler::new(limits(8, 4, 100));
        scheduler.enqueue(1, packed(12, 1, 20));
        scheduler.enqueue(2, packed(3, 1, 10));
        let (mut plan, mut asked) = (Plan::default(), Vec::new());
        scheduler.schedule(&mut plan, |id, reserved| {
            asked.push((id, reserved));
            9
        });
        assert_eq!(asked, [(1, 20), (2, 30)]);
        let chunks = plan.packed.iter().map(|c| (c.id, c.tokens, c.complete));
        assert_eq!(chunks.collect::<Vec<_>>(), [(1, 3, true), (2, 1, true)]);
    }

    #[test]
    fn who_does_not_fit_waits_and_holds_back_those_behind() {
        let mut scheduler = Scheduler::new(limits(8, 4, 100));
        scheduler.enqueue(1, packed(1, 1, 60));
        scheduler.enqueue(2, packed(1, 1, 60));
        scheduler.enqueue(3, packed(1, 1, 10));
        assert_eq!(plan(&mut scheduler), [(1, 1, true)]);
        assert_eq!(plan(&mut scheduler), [(1, 1, true)]);
        scheduler.remove(1);
        assert_eq!(plan(&mut scheduler), [(2, 1, true), (3, 1, true)]);
        assert_eq!(scheduler.reserved_bytes(), 70);
    }

    #[test]
    fn siblings_share_the_reservation_and_free_it_one_by_one() {
        let mut scheduler = Scheduler::new(limits(8, 4, 100));
        scheduler.enqueue(1, packed(5, 3, 30));
        assert_eq!(plan(&mut scheduler), [(1, 5, true)]);
        scheduler.fork(1, 2);
        scheduler.fork(1, 3);
        scheduler.fork(1, 4);
        assert_eq!((scheduler.running(), scheduler.reserved_bytes()), (3, 90));
        assert_eq!(plan(&mut scheduler), [(1, 1, true), (2, 1, true), (3, 1, true)]);
        scheduler.remove(2);
        assert_eq!((scheduler.running(), scheduler.reserved_bytes()), (2, 60));
    }

    #[test]
    fn more_sequences_than_a_step_takes_run_when_alone() {
        let mut scheduler = Scheduler::new(limits(8, 2, 100));
        scheduler.enqueue(1, packed(1, 3, 10));
        assert_eq!(plan(&mut scheduler), [(1, 1, true)]);
        scheduler.fork(1, 2);
        scheduler.fork(1, 3);
        assert_eq!(plan(&mut scheduler), [(1, 1, true), (2, 1, true)]);
        scheduler.remove(1);
        assert_eq!(plan(&mut scheduler), [(2, 1, true), (3, 1, true)]);
    }

    #[test]
    fn requests_that_run_alone_take_turns() {
        let mut scheduler = Scheduler::new(limits(8, 4, 100));
        let alone = Demand { work: Work::Alone, sequences: 1, kv_bytes: 1 };
        scheduler.enqueue(1, alone);
        scheduler.enqueue(2, alone);
        let mut plan = Plan::default();
        let turns = std::array::from_fn(|_| {
            scheduler.schedule(&mut plan, |_, _| 0);
            scheduler.rotate_alone(plan.alone[0]);
            plan.alone[0]
        });
        assert_eq!(turns, [1, 2, 1, 2]);
    }

    /// A request of the property: prompt, new tokens of each sequence, sequences, alone or packed.
    type Case = (usize, usize, usize, bool);

    proptest! {
        #[test]
        fn budgets_hold_everybody_ends_and_order_is_kept(
            requests in prop::collection::vec((1usize..40, 1usize..12, 1usize..4, any::<bool>()), 1..24),
            cancelled in prop::collection::vec(any::<(u8, u8)>(), 0..6),
            step_tokens in 1usize..32,
            running in 1usize..6,
        ) {
            let demand = |&(prompt, new, sequences, alone): &Case| Demand {
                work: if alone { Work::Alone } else { Work::Packed(prompt) },
                sequences: if alone { 1 } else { sequences },
                kv_bytes: (prompt + new) as u64,
            };
            let kv_bytes = requests.iter().map(|r| demand(r).total_bytes()).max().unwrap();
            let mut scheduler = Scheduler::new(limits(step_tokens, running, kv_bytes));
            let mut left = std::collections::HashMap::new();
            for (id, request) in requests.iter().enumerate() {
                scheduler.enqueue(id as Id, demand(request));
                left.insert(id as Id, request.1);
            }
            let (mut plan, mut admitted, mut next) = (Plan::default(), Vec::new(), requests.len() as Id);
            let mut step = 0;
            while !scheduler.is_empty() {
                step += 1;
                prop_assert!(step < 20_000, "somebody never ends");
                for &(at, victim) in &cancelled {
                    if usize::from(at) == step {
                        scheduler.remove(Id::from(victim));
                        left.remove(&Id::from(victim));
                    }
                }
                scheduler.schedule(&mut plan, |id, reserved| {
                    assert!(reserved <= kv_bytes);
                    id as usize % 5
                });
                prop_assert!(plan.packed.iter().map(|c| c.tokens).sum::<usize>() <= step_tokens);
                prop_assert!(plan.packed.len() <= running);
                prop_assert!(plan.packed.iter().all(|c| c.tokens > 0));
                prop_assert!(scheduler.reserved_bytes() <= kv_bytes);
                prop_assert!(scheduler.is_empty() || !plan.alone.is_empty() || !plan.packed.is_empty());
                admitted.extend(plan.admitted.iter().copied());
                let sampled = plan.packed.iter().map(|c| (c.id, c.tokens, c.complete));
                let turns = sampled.chain(plan.alone.first().map(|id| (*id, 0, true))).collect::<Vec<_>>();
                for (id, tokens, complete) in turns {
                    scheduler.advance(id, tokens, complete && tokens > 0);
                    if !complete {
                        continue;
                    }
                    let case = requests.get(id as usize);
                    let first = case.is_some_and(|r| left.get(&id) == Some(&r.1));
                    if let (true, Some(&(_, new, sequences, false))) = (first, case) {
                        for _ in 1..sequences {
                            scheduler.fork(id, next);
                            left.insert(next, new - 1);
                            next += 1;
                        }
                    }
                    let rest = left.get_mut(&id).unwrap();
                    *rest = rest.saturating_sub(1);
                    if *rest == 0 {
                        scheduler.remove(id);
                    }
                }
            }
            prop_assert_eq!(scheduler.reserved_bytes(), 0);
            prop_assert!(admitted.is_sorted(), "not first come, first served");
        }
    }
}
