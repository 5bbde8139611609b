//! Data sets whose rows are classified: found, read off the async threads, and kept for the requests that follow.
//!
//! Chooses no rows. One data set is read at a time and one is kept, for a short while after its last use.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Status;

use super::context::Context;
use super::services::blocking;
use super::status;
use crate::dataset::{Dataset, Datasets};

/// How long a data set stays in memory after a request.
const KEPT: Duration = Duration::from_secs(30);

/// Data sets to classify.
#[derive(Debug)]
pub(super) struct Rows {
    datasets: Arc<Datasets>,
    last: Arc<Mutex<Option<Kept>>>,
    /// Reading waits for uploads to be checked: requests wait here, not on threads.
    reading: Semaphore,
}

#[derive(Debug)]
struct Kept {
    dataset: Arc<Dataset>,
    until: Instant,
}

impl Rows {
    pub(super) fn new(datasets: Arc<Datasets>) -> Self {
        Self { datasets, last: Arc::default(), reading: Semaphore::new(1) }
    }

    /// Returns a data set by name or id.
    pub(super) async fn dataset(&self, name_or_id: String, context: &Context) -> Result<Arc<Dataset>, Status> {
        let refused = |error| status::dataset(&error, context);
        let datasets = Arc::clone(&self.datasets);
        let id = blocking(context, move || datasets.get(&name_or_id)).await?.map_err(refused)?.id;
        // Whoever waited finds what the one before has read.
        let _turn = self.reading.acquire().await;
        let dataset = match self.kept(&id) {
            Some(dataset) => dataset,
            None => {
                let datasets = Arc::clone(&self.datasets);
                blocking(context, move || datasets.read(&id)).await?.map_err(refused)?
            }
        };
        self.keep(Arc::clone(&dataset));
        Ok(dataset)
    }

    fn kept(&self, id: &str) -> Option<Arc<Dataset>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|kept| kept.dataset.id == id).map(|kept| Arc::clone(&kept.dataset))
    }

    fn keep(&self, dataset: Arc<Dataset>) {
        let until = Instant::now() + KEPT;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Kept { dataset, until });
        let last = Arc::downgrade(&self.last);
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            let Some(last) = last.upgrade() else { return };
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            last.take_if(|kept| kept.until <= until);
        });
    }
}
