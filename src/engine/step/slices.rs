//! What a turn computes apart from its packed step: one slice of scores or classes.
//!
//! How large it is and who shares it is `alone.rs`.

use std::time::Instant;

use super::{Alone, Core, Id, Plan};
use crate::engine::alone::{self, Room};

impl Core {
    pub(super) fn alone_slice(&mut self, plan: &Plan) {
        let started = Instant::now();
        let packs = self.model.info().device == "cpu";
        let room = Room::new(packs, self.settings.max_step_tokens, !plan.packed.is_empty());
        let turn = |id: &Id| plan.alone.iter().position(|other| other == id);
        let tasks = self.alone.iter_mut().filter_map(|(id, task)| Some((turn(id)?, (*id, task))));
        let mut tasks: Vec<_> = tasks.collect();
        tasks.sort_by_key(|(turn, _)| *turn);
        let tasks = tasks.into_iter().map(|(_, task)| task).collect();
        let outcomes = alone::advance(tasks, self.model.as_ref(), room);
        let computed = outcomes.iter().flat_map(|(_, outcome)| outcome).map(|slice| slice.computed).sum();
        self.metrics.iteration_tokens.observe(computed as f64);
        self.shared.measure(computed, started.elapsed());
        for (id, outcome) in outcomes {
            match outcome {
                Ok(slice) => {
                    self.metrics.prompt_tokens.inc_by(slice.prompt as u64);
                    self.metrics.scored_tokens.inc_by(slice.scored as u64);
                    self.scheduler.rotate_alone(id);
                    if self.alone.get(&id).is_some_and(Alone::is_done) {
                        self.finish_alone(id);
                    }
                }
                Err(error) => {
                    if let Some(task) = self.alone.get(&id) {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(parent: task.span(), error, "request failed");
                    }
                    self.fail(id, Some(error));
                }
            }
        }
    }

    fn finish_alone(&mut self, id: Id) {
        self.scheduler.remove(id);
        let Some(mut task) = self.alone.remove(&id) else { return };
        if let Alone::Score(task) = &mut task {
            let (adapter, prompt, cache) = task.beginning();
            let room = self.settings.kv_bytes().saturating_sub(self.scheduler.reserved_bytes());
            self.prefixes.keep(adapter, prompt.clone(), std::mem::take(cache), room);
        }
        self.metrics.e2e_request_latency.observe(task.arrival().elapsed().as_secs_f64());
        self.metrics.request_success.with_label_values(&["stop"]).inc();
        task.finish();
    }
}
